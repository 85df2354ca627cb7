"""Prices for the bytes at each moment: the minimum cut under prices, and the linear program that finds good ones.

``bound.py`` has the formulation. ``Relaxation.cut`` solves the cut under given prices; ``MasterProblem.tighten``
alternates between the program, whose duals are prices, and the cut, which is a new column of the program::

        MasterProblem ── prices ──▶ Relaxation.cut ── line ──▶ the bound
              ▲                          │
              └──────── column ──────────┘
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from ortools.linear_solver import pywraplp

from rematpass.core.op import Origin, Side
from rematpass.core.ragged import Floats
from rematpass.core.solve.mincut import ROUNDING, PairwiseCosts
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.unavoidable import UnavoidableBytes

# The linear program counts in steps (seconds) and in the fastest plan's peak (bytes), so that its numbers are near 1.
_EXCESS_PENALTY = 1e3  # steps per unit above the limit: keeps the program feasible, and limits prices
_FEASIBLE = 1e-6  # of the limit: an excess below this is rounding
_PARAMETERS = "change_status_to_imprecise: false"  # the proof does not rest on the program's last digits


@dataclass(frozen=True)
class Column:
    """A cut: its seconds beyond ``base``, and its bytes at each moment beyond the unavoidable ones."""

    seconds: float
    nbytes: Floats


class Relaxation:
    """The minimum cut under prices: the limit on the peak is relaxed. Each solve adds a line to ``lines``."""

    def __init__(self, problem: Problem) -> None:
        self.problem, graph, costs = problem, problem.graph, problem.costs
        self.unavoidable = UnavoidableBytes(graph, problem.fuse)
        kept = self._always_kept
        once = [op.id for op in graph.ops if graph.sides[op.id] is not Side.EITHER or op.id in self._wanted]
        self.base = sum(costs.run[op] for op in once) + sum(costs.keep[v] for v in kept)
        free = [v.origin is Origin.STATIC or v.id in kept for v in graph.values]
        self._keep = np.where(free, 0.0, np.array(costs.keep, np.float64))
        self._run = np.array(
            [0.0 if side is Side.EITHER else s for s, side in zip(costs.run, graph.sides, strict=True)]
        )
        self.lines: list[tuple[float, float]] = []

    @cached_property
    def _always_kept(self) -> frozenset[int]:
        """Inputs of forward that backward's own ops touch, or that backward returns: every plan keeps them."""
        graph = self.problem.graph
        touched = {v for op in graph.backward_ops for v in graph.touched[op.id]} | set(graph.bwd_outputs)
        return frozenset(touched.intersection(graph.forward_inputs))

    @cached_property
    def _wanted(self) -> set[int]:
        """Ops of neither side that backward's own ops depend on: every plan runs them, on one side or on both."""
        graph = self.problem.graph
        needed, wanted = set(graph.backward_reads), set()
        for op in reversed(graph.ops):
            if graph.sides[op.id] is Side.EITHER and not needed.isdisjoint(op.writes):
                wanted.add(op.id)
                needed.update(op.reads)
        return wanted

    @property
    def floor(self) -> int:
        """The most bytes that every plan has at one moment."""
        return self.unavoidable.working_set()[0]

    def cut(self, prices: Floats) -> Column:
        """The cheapest cut under ``prices`` (seconds per byte at each moment); its line is added.

        Raises:
            ContradictoryMarks: no plan exists.
        """
        unavoidable, graph = self.unavoidable, self.problem.graph
        not_recomputed, recomputed = unavoidable.reader_pairs
        pairwise = PairwiseCosts(not_recomputed, recomputed, unavoidable.if_reader_recomputed.cost(prices))
        keep = self._keep + unavoidable.if_saved.cost(prices)
        cut = self.problem.network.solve(self._run.tolist(), keep.tolist(), pairwise)
        saved = np.zeros(len(graph.values), np.bool_)
        saved[list(cut.saved)] = True
        pairs = zip(not_recomputed, recomputed, strict=True)
        due = np.array([b in cut.recomputed and a not in cut.recomputed for a, b in pairs], np.bool_)
        nbytes = unavoidable.if_saved.usage(saved, unavoidable.count)
        nbytes = nbytes + unavoidable.if_reader_recomputed.usage(due, unavoidable.count)
        seconds = float(self._run[list(cut.recomputed)].sum() + self._keep[list(cut.saved)].sum())
        arcs = len(self._run) + len(keep) + len(recomputed)
        slack = arcs * ROUNDING * float(self._run.sum() + keep.sum() + pairwise.costs.sum())  # capacities are rounded
        start = self.base + seconds + float(prices @ (nbytes + unavoidable.nbytes)) - slack
        self.lines.append((start, float(prices.sum())))
        return Column(seconds, nbytes)


@dataclass
class MasterProblem:
    """The linear program: shares of cuts that add up to one, with at most B bytes at each of some moments."""

    relaxation: Relaxation
    columns: list[Column] = field(default_factory=list)
    rows: dict[int, pywraplp.Constraint] = field(default_factory=dict)  # moment -> its limit

    def __post_init__(self) -> None:
        self._program = pywraplp.Solver.CreateSolver("GLOP")
        self._program.SetSolverSpecificParametersAsString(_PARAMETERS)
        self._program.Objective().SetMinimization()
        self._sum_of_shares = self._program.Constraint(1.0, 1.0)
        self._shares: list[pywraplp.Variable] = []
        unavoidable = self.relaxation.unavoidable
        fastest = self.relaxation.cut(np.zeros(unavoidable.count))
        self._step = self.relaxation.base or 1.0  # seconds
        self._unit = float(max(1.0, (fastest.nbytes + unavoidable.nbytes).max(initial=0.0)))  # bytes
        self._add_column(fastest)
        self._add_row(unavoidable.end_of_forward)

    def tighten(self, peak: float) -> None:
        """Add lines until the bound at ``peak`` bytes is as high as it gets."""
        relaxation, effort = self.relaxation, self.relaxation.problem.effort
        free: Floats = np.asarray((peak - relaxation.unavoidable.nbytes) / self._unit, np.float64)
        for moment, row in self.rows.items():
            row.SetUb(free[moment])
        best = -math.inf
        for _ in range(effort.bound_cuts):
            if time.monotonic() > relaxation.problem.deadline:
                return
            least = self._solve(free)
            if least is None:
                return
            column = relaxation.cut(self._prices())
            start, slope = relaxation.lines[-1]
            best = max(best, start - peak * slope - relaxation.base)
            if least - best <= effort.bound_tolerance * self._step or not self._add_column(column):
                return

    def _solve(self, free: Floats) -> float | None:
        """The seconds of the best mix of the current cuts under the limit at every moment; None if the solver fails."""
        effort = self.relaxation.problem.effort
        while True:
            if self._program.Solve() != pywraplp.Solver.OPTIMAL:
                return None
            shares = [share.solution_value() for share in self._shares]
            mixed = sum(share * c.nbytes for share, c in zip(shares, self.columns, strict=True) if share > 0)
            above = mixed / self._unit - free
            worst: list[int] = []
            for moment in np.argsort(-above)[: effort.bound_moments_scanned].tolist():
                if above[moment] <= _FEASIBLE * max(1.0, free.max()) or len(worst) == effort.bound_moments:
                    break
                if moment not in self.rows and all(abs(moment - w) > effort.bound_moment_spacing for w in worst):
                    worst.append(moment)
            if not worst:
                return float(self._program.Objective().Value()) * self._step
            for moment in worst:
                self._add_row(moment)
                self.rows[moment].SetUb(free[moment])

    def _prices(self) -> Floats:
        """The dual prices of the limits: seconds per byte at each moment."""
        prices = np.zeros(self.relaxation.unavoidable.count)
        for moment, row in self.rows.items():
            prices[moment] = max(0.0, -row.dual_value()) * self._step / self._unit
        return prices

    def _add_column(self, column: Column) -> bool:
        """Add a cut to the program, unless it is known; return whether it is new."""
        if any(c.seconds == column.seconds and np.array_equal(c.nbytes, column.nbytes) for c in self.columns):
            return False
        share = self._program.NumVar(0.0, self._program.infinity(), "")
        self._sum_of_shares.SetCoefficient(share, 1.0)
        self._program.Objective().SetCoefficient(share, column.seconds / self._step)
        for moment, row in self.rows.items():
            row.SetCoefficient(share, column.nbytes[moment] / self._unit)
        self.columns.append(column)
        self._shares.append(share)
        return True

    def _add_row(self, moment: int) -> None:
        """Add the limit at one moment, which may be exceeded at a penalty."""
        row = self._program.Constraint(-self._program.infinity(), self._program.infinity())
        excess = self._program.NumVar(0.0, self._program.infinity(), "")
        row.SetCoefficient(excess, -1.0)
        self._program.Objective().SetCoefficient(excess, _EXCESS_PENALTY)
        for share, column in zip(self._shares, self.columns, strict=True):
            row.SetCoefficient(share, column.nbytes[moment] / self._unit)
        self.rows[moment] = row
