"""A proven lower bound on the seconds of a step, for every peak: how much could still be won.

For prices ``p_t >= 0`` per byte at each moment t (``certain``), a plan whose peak is at most ``B`` takes at least ::

        L(p) - B * sum_t p_t,     L(p) = base + sum_t p_t unavoidable_t + mincut(run again, keep + prices of its life)

seconds: at no moment has it more than B bytes, so what it pays beyond its seconds is at most ``B * sum_t p_t``, and no
plan pays less than the cut. ``base``: what every plan spends, each op of forward and backward once. One vector of
prices is thus a *line* over all peaks, and the bound is the highest of the lines: convex, piecewise linear, falling.

The best prices for a peak solve the dual of a linear program: mix cuts so that no moment has more than B bytes, at the
least seconds. ``_Master`` holds that program. It starts with few cuts and few moments and grows (``_tighten``): the
prices of its solution give a new line and a new cut; moments at which the mix is above B are added. Whatever the
program's answer, a line is valid, since L(p) is reckoned anew by a cut; so nothing rests on the solver of the program.

**What it assumes**: the seconds of the cost model; forward's and backward's own ops in their order (mutations last),
ops of neither side where the plan wants them; the bytes of ``simulate``. Within that it holds for every plan, however
often it drops and recomputes a value. It does not count the bytes that recomputation itself passes through, so near
the floor it lies low.

Source: Lagrangian relaxation, and its columns by Dantzig and Wolfe 1960 (doi 10.1287/opre.8.1.101).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from ortools.linear_solver import pywraplp

from rematpass.core.op import Origin, Side
from rematpass.core.solve.mincut import ROUNDING, PairwiseCosts
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.unavoidable import Certain
from rematpass.errors import ContradictoryMarks

ASSUMES = "for the cost model's seconds and backward's own ops in their order"

_MOST_CUTS = 40  # for one peak
_ENOUGH = 1e-4  # of a step: closer to the best mix of cuts than this is close enough
_MOST_MOMENTS = 6  # added at a time
_APART = 3  # moments added together lie further apart than this
_ABOVE = 1e3  # steps that it costs to be above the limit by as much as the fastest plan takes: prices end there
_PARAMETERS = "change_status_to_imprecise: false"  # nothing rests on the program's last digits

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bound:
    """``lines``: (seconds, seconds per byte): no plan of peak B takes less than ``seconds - B * per_byte``.

    ``floor``: no plan has a peak below it.
    """

    lines: tuple[tuple[float, float], ...]
    floor: int

    def seconds(self, peak: float) -> float:
        """No plan whose peak is at most ``peak`` takes less; infinite below ``floor``."""
        if peak < self.floor:
            return math.inf
        return max((start - peak * slope if slope else start for start, slope in self.lines), default=0.0)

    def gap(self, seconds: float, peak: float) -> float:
        """How much longer ``seconds`` is than the bound for ``peak``, as a share of the bound; at least 0."""
        least = self.seconds(peak)
        return max(0.0, seconds / least - 1) if least > 0 else 0.0

    def curve(self, low: float, high: float) -> tuple[tuple[int, float], ...]:
        """The corners from peak ``low`` (or the floor) to ``high``, by rising peak: (peak, seconds)."""
        low = max(low, self.floor)
        if not self.lines or low > high:
            return ()
        corners = {math.ceil(low), math.floor(high)}
        envelope = _upper_envelope(self.lines)
        for (start, slope), (lower, flatter) in itertools.pairwise(envelope):
            corner = (start - lower) / (slope - flatter)
            if low < corner < high:
                corners.add(round(corner))
        return tuple((peak, self.seconds(peak)) for peak in sorted(corners))


def lower_bound(problem: Problem, peaks: Iterable[float]) -> Bound:
    """The bound, as tight as it gets at ``peaks`` (bytes); valid at every other peak too.

    Past ``problem.deadline`` it stays as tight as it is by then. Empty where the user's marks allow no plan at all.
    """
    try:
        relaxed = _Relaxed(problem)
        master = _Master(relaxed)
    except ContradictoryMarks:
        return Bound((), 0)
    for peak in sorted(peaks, reverse=True):
        if peak >= relaxed.floor:
            master.tighten(peak)
    return Bound(tuple(_upper_envelope(relaxed.lines)), relaxed.floor)


def least_seconds(problem: Problem, peak: int | None) -> float:
    """What no plan of a peak of at most ``peak`` bytes beats; without a peak, no plan at all."""
    if peak is None:
        return lower_bound(problem, ()).seconds(math.inf)
    return lower_bound(problem, (peak,)).seconds(peak)


def _upper_envelope(lines: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that are the highest somewhere, the steepest first."""
    highest: dict[float, float] = {}
    for start, slope in lines:
        highest[slope] = max(start, highest.get(slope, -math.inf))
    found: list[tuple[float, float]] = []
    for slope, start in sorted(highest.items(), reverse=True):
        while found and start >= found[-1][0]:
            found.pop()  # flatter and higher from the start
        while len(found) > 1 and _crossing(found[-2], (start, slope)) <= _crossing(*found[-2:]):
            found.pop()
        found.append((start, slope))
    return found


def _crossing(steep: tuple[float, float], flat: tuple[float, float]) -> float:
    return (steep[0] - flat[0]) / (steep[1] - flat[1])


@dataclass(frozen=True)
class _Column:
    """A cut: seconds beyond ``base``, and the bytes beyond the unavoidable ones at each moment."""

    seconds: float
    nbytes: Floats


class _Relaxed:
    """The cut under prices; collects a line each time it is solved."""

    def __init__(self, problem: Problem) -> None:
        self.problem, graph, costs = problem, problem.graph, problem.costs
        self.certain = Certain(graph, problem.fuse)
        kept = self._surely_kept
        once = [op.id for op in graph.ops if graph.sides[op.id] is not Side.EITHER or op.id in self._wanted]
        self.base = sum(costs.run[op] for op in once) + sum(costs.keep[v] for v in kept)
        free = [v.origin is Origin.STATIC or v.id in kept for v in graph.values]
        self._keep = np.where(free, 0.0, np.array(costs.keep, np.float64))
        self._run = np.array(
            [0.0 if side is Side.EITHER else s for s, side in zip(costs.run, graph.sides, strict=True)]
        )
        self.lines: list[tuple[float, float]] = []

    @cached_property
    def _surely_kept(self) -> frozenset[int]:
        """Inputs that backward's own ops touch, or that it returns: every plan keeps them."""
        graph = self.problem.graph
        touched = {v for op in graph.backward_ops for v in graph.touched[op.id]} | set(graph.bwd_outputs)
        return frozenset(touched.intersection(graph.forward_inputs))

    @cached_property
    def _wanted(self) -> set[int]:
        """Ops of neither side that backward's own ops are made of: every plan runs them, on one side or both."""
        graph = self.problem.graph
        needed, wanted = set(graph.backward_reads), set()
        for op in reversed(graph.ops):
            if graph.sides[op.id] is Side.EITHER and not needed.isdisjoint(op.writes):
                wanted.add(op.id)
                needed.update(op.reads)
        return wanted

    @property
    def floor(self) -> int:
        """Bytes that every plan has at one moment."""
        return self.certain.working_set()[0]

    def cut(self, prices: Floats) -> _Column:
        """The cheapest cut under ``prices`` (seconds per byte at each moment), and its line.

        Raises:
            ContradictoryMarks: there is no plan.
        """
        certain, graph = self.certain, self.problem.graph
        not_again, again = certain.pairs
        held = PairwiseCosts(not_again, again, certain.held.cost(prices))
        keep = self._keep + certain.saved.cost(prices)
        cut = self.problem.network.solve(self._run.tolist(), keep.tolist(), held)
        saved = np.zeros(len(graph.values), np.bool_)
        saved[list(cut.saved)] = True
        holds = np.array(
            [b in cut.recomputed and a not in cut.recomputed for a, b in zip(not_again, again, strict=True)], np.bool_
        )
        nbytes = certain.saved.usage(saved, certain.count) + certain.held.usage(holds, certain.count)
        seconds = float(self._run[list(cut.recomputed)].sum() + self._keep[list(cut.saved)].sum())
        arcs = len(self._run) + len(keep) + len(again)
        slack = arcs * ROUNDING * float(self._run.sum() + keep.sum() + held.costs.sum())  # capacities are rounded
        start = self.base + seconds + float(prices @ (nbytes + certain.unavoidable)) - slack
        self.lines.append((start, float(prices.sum())))
        return _Column(seconds, nbytes)


@dataclass
class _Master:
    """The program: shares of cuts that add up to one, with at most B bytes at each of some moments."""

    relaxed: _Relaxed
    columns: list[_Column] = field(default_factory=list)
    rows: dict[int, pywraplp.Constraint] = field(default_factory=dict)  # moment -> its limit

    def __post_init__(self) -> None:
        self._program = pywraplp.Solver.CreateSolver("GLOP")
        self._program.SetSolverSpecificParametersAsString(_PARAMETERS)
        self._program.Objective().SetMinimization()
        self._whole = self._program.Constraint(1.0, 1.0)
        self._shares: list[pywraplp.Variable] = []
        fastest = self.relaxed.cut(np.zeros(self.relaxed.certain.count))
        # The program counts in steps and in the fastest plan's peak, so that its numbers are near 1.
        self._step = self.relaxed.base or 1.0
        self._unit = float(max(1.0, (fastest.nbytes + self.relaxed.certain.unavoidable).max(initial=0.0)))
        self._add_column(fastest)
        self._add_row(self.relaxed.certain.turn)

    def tighten(self, peak: float) -> None:
        """Add lines until the highest at ``peak`` is as high as it gets."""
        room: Floats = np.asarray((peak - self.relaxed.certain.unavoidable) / self._unit, np.float64)
        for moment, row in self.rows.items():
            row.SetUb(room[moment])
        best = -math.inf
        for _ in range(_MOST_CUTS):
            if time.monotonic() > self.relaxed.problem.deadline:
                return
            least = self._solve(room)
            if least is None:
                return
            column = self.relaxed.cut(self._prices())
            start, slope = self.relaxed.lines[-1]
            best = max(best, start - peak * slope - self.relaxed.base)
            if least - best <= _ENOUGH * self._step or not self._add_column(column):
                return

    def _solve(self, room: Floats) -> float | None:
        """Mix the cuts there are, under the limit at every moment; the seconds of the best mix, None if it cannot."""
        while True:
            if self._program.Solve() != pywraplp.Solver.OPTIMAL:
                return None
            shares = [share.solution_value() for share in self._shares]
            mixed = sum(share * c.nbytes for share, c in zip(shares, self.columns, strict=True) if share > 0)
            above = mixed / self._unit - room
            worst: list[int] = []
            for moment in np.argsort(-above)[: 40 * _MOST_MOMENTS].tolist():
                if above[moment] <= 1e-6 * max(1.0, room.max()) or len(worst) == _MOST_MOMENTS:
                    break
                if moment not in self.rows and all(abs(moment - other) > _APART for other in worst):
                    worst.append(moment)
            if not worst:
                return float(self._program.Objective().Value()) * self._step
            for moment in worst:
                self._add_row(moment)
                self.rows[moment].SetUb(room[moment])

    def _prices(self) -> Floats:
        prices = np.zeros(self.relaxed.certain.count)
        for moment, row in self.rows.items():
            prices[moment] = max(0.0, -row.dual_value()) * self._step / self._unit
        return prices

    def _add_column(self, column: _Column) -> bool:
        """Whether it is a new one."""
        if any(c.seconds == column.seconds and np.array_equal(c.nbytes, column.nbytes) for c in self.columns):
            return False
        share = self._program.NumVar(0.0, self._program.infinity(), "")
        self._whole.SetCoefficient(share, 1.0)
        self._program.Objective().SetCoefficient(share, column.seconds / self._step)
        for moment, row in self.rows.items():
            row.SetCoefficient(share, column.nbytes[moment] / self._unit)
        self.columns.append(column)
        self._shares.append(share)
        return True

    def _add_row(self, moment: int) -> None:
        row = self._program.Constraint(-self._program.infinity(), self._program.infinity())
        above = self._program.NumVar(0.0, self._program.infinity(), "")
        row.SetCoefficient(above, -1.0)
        self._program.Objective().SetCoefficient(above, _ABOVE)
        for share, column in zip(self._shares, self.columns, strict=True):
            row.SetCoefficient(share, column.nbytes[moment] / self._unit)
        self.rows[moment] = row
