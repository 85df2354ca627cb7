"""The ladder: every plan worth having between the floor and the ceiling; a budget only selects.

The planner computes the same ladder whatever the budget, each rung simulated, and throws out a plan that another one
beats in both seconds and peak. So the rungs fall in peak as they rise in seconds, and less budget can never mean more
memory. The judge (``verify.py``) sees a rung when it is about to be carried out: of dozens, that is one or a few.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline
from rematpass.core.solve import nested
from rematpass.core.solve.baselines import chen_sqrt, recompute_all, save_all
from rematpass.core.solve.descent import State, climb, descend, fill_up
from rematpass.core.solve.just_in_time import just_in_time
from rematpass.core.solve.mincut import breakpoints
from rematpass.core.solve.problem import Problem, Solver
from rematpass.core.solve.segments import segments

_STARTS = ("segments", "mincut", "chen_sqrt")  # the ways down begin at the lowest plan of each of these
_HIGH = 1.25  # times the lowest start: one that lies higher leads down on two ways
_HAIR = 0.002  # of the lowest peak: what a plan may lie above it to be the start of the way up
_FILLS = 16  # limits that the fastest plan under each is filled up to
_LIMITS = 16  # that the lowest plan is filled up to, one after the other
_VERTICES = 24  # of the parametric cut

# A plan fits a budget in bytes when its planned peak and a hundredth more do.
_SPARE = 100


def peak_allowed(budget: int) -> int:
    """The highest planned peak that fits a budget of ``budget`` bytes."""
    return budget * _SPARE // (_SPARE + 1)


def least_budget(peak: int) -> int:
    """The lowest budget in bytes that a planned peak of ``peak`` fits."""
    return -(-peak * (_SPARE + 1) // _SPARE)


@dataclass(frozen=True)
class Rung:
    """A plan with its timeline."""

    plan: Plan
    timeline: Timeline

    @property
    def peak(self) -> int:
        return self.timeline.peak

    @property
    def seconds(self) -> float:
        return self.timeline.step_seconds


@dataclass(frozen=True)
class Ladder:
    """Rungs from the fastest (the ceiling) to the one with the lowest peak (the floor)."""

    rungs: tuple[Rung, ...]

    @property
    def ceiling(self) -> int:
        return self.rungs[0].peak

    @property
    def floor(self) -> int:
        return self.rungs[-1].peak

    def limit(self, fraction: float) -> int:
        """The bytes that a fraction stands for: floor + fraction x (ceiling - floor)."""
        return self.floor + int(fraction * (self.ceiling - self.floor))

    def fastest_under(self, nbytes: int) -> Rung | None:
        """The fastest plan whose peak is at most ``nbytes``; None when there is none."""
        return next((rung for rung in self.rungs if rung.peak <= nbytes), None)


def mincut(problem: Problem) -> tuple[Plan, ...]:
    """The vertices of the parametric cut under one price for all bytes, recomputed just in time."""
    vertices = breakpoints(problem.network, problem.costs, problem.trials(_VERTICES, least=3))
    return tuple(just_in_time(problem.graph, vertex.cut.saved, "mincut") for vertex in vertices)


def everything(problem: Problem) -> tuple[Plan, ...]:
    """The plans of all solvers, what is found on the way down from the lowest of each and on the way up from there, and
    the fastest of all of these under some limits, filled up to them."""
    plans = [plan for solver in (mincut, segments, chen_sqrt, save_all, recompute_all) for plan in solver(problem)]
    ceiling = min((Rung(plan, problem.timeline(plan)) for plan in plans), key=lambda rung: (rung.seconds, rung.peak))
    starts = [(State(frozenset(plan.saved)), plan) for plan in _lowest(problem, plans)]
    highest, (low, high) = starts[-1], (problem.timeline(starts[i][1]).peak for i in (0, -1))
    within = list(nested.states(problem))
    if within:
        starts.append(min(within, key=lambda found: problem.timeline(found[1]).peak))
    ways_down = [descend(problem, *start) for start in starts]
    if high > _HIGH * low:  # from the highest start, large steps end at another floor than small ones
        ways_down.append(descend(problem, *highest, stride=high / low))
    found = [*starts, *within, *itertools.chain.from_iterable(ways_down)]
    bottom, lowest = _fastest_of_the_lowest(problem, found)

    def limits(most: int, least: int) -> list[int]:
        first, last = (max(1, peak) for peak in (problem.timeline(lowest).peak, ceiling.peak))
        return [int(limit) for limit in np.geomspace(first, last, 1 + problem.trials(most, least))[:-1]]

    for start in (bottom, *_with_outputs(problem, bottom)):
        found += climb(problem, start, limits(_LIMITS, least=8))
    found += [(State(frozenset(plan.saved)), plan) for plan in plans]
    return (*(plan for _, plan in found), *fill_up(problem, found, limits(_FILLS, least=1)))


def _fastest_of_the_lowest(problem: Problem, found: Iterable[tuple[State, Plan]]) -> tuple[State, Plan]:
    """Of those that lie a hair above the lowest: many do, where the peak is what backward hands out."""
    found = list(found)
    highest = (1 + _HAIR) * min(problem.timeline(plan).peak for _, plan in found)
    near = [(state, plan) for state, plan in found if problem.timeline(plan).peak <= highest]
    return min(near, key=lambda entry: problem.timeline(entry[1]).step_seconds)


def _with_outputs(problem: Problem, state: State) -> list[State]:
    """``state`` with forward's outputs saved, where the caller lets go of them and it does not save them itself.

    They are large (logits), and a way up fills small values in first, so that there is no room for them later.
    """
    graph = problem.graph
    ops = [] if graph.holds_outputs else [op for op in graph.ops if not op.must_recompute]
    made = (v for op in ops for v in op.writes if not graph.values[v].cannot_save)
    outputs = frozenset(made).intersection(graph.fwd_outputs)
    return [] if outputs <= state.saved else [state.saving(outputs)]


def _lowest(problem: Problem, plans: Iterable[Plan]) -> list[Plan]:
    """The lowest plan of each solver that a way down begins at, the lowest first."""
    lowest: dict[str, Plan] = {}
    for plan in plans:
        best = lowest.setdefault(plan.solver, plan)
        if problem.timeline(plan).peak < problem.timeline(best).peak:
            lowest[plan.solver] = plan
    starts = sorted((lowest[name] for name in _STARTS if name in lowest), key=lambda plan: problem.timeline(plan).peak)
    return starts[: problem.trials(len(_STARTS))]


SOLVERS: dict[str, Solver] = {
    "ladder": everything,
    "mincut": mincut,
    "save_all": save_all,
    "recompute_all": recompute_all,
    "chen_sqrt": chen_sqrt,
    "nested": nested.nested,
}


def build(problem: Problem, solver: str = "ladder") -> Ladder:
    """Solve, simulate, and keep what nothing else beats.

    Plans that recompute more than ``problem.max_recompute`` forwards are left out, unless there are no others.

    Raises:
        ContradictoryMarks: no plan exists.
        PlanError: a solver made a plan that runs an op without its inputs.
    """
    with _without_collection():
        rungs = [Rung(plan, problem.timeline(plan)) for plan in dict.fromkeys(SOLVERS[solver](problem))]
    # A hair above the limit, so that recomputing exactly one forward is not lost to the rounding of a sum.
    allowed = problem.max_recompute * problem.forward_seconds * (1 + 1e-9)
    within = [rung for rung in rungs if rung.timeline.recompute_seconds <= allowed]
    return Ladder(pareto(within or [min(rungs, key=lambda r: r.timeline.recompute_seconds)]))


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Without Python's cycle collector: solvers make millions of small objects and no cycles, and it would walk them
    all again and again, for half of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def pareto(rungs: Iterable[Rung]) -> tuple[Rung, ...]:
    """Those that no other beats in both seconds and peak, from the fastest on."""
    best: list[Rung] = []
    for rung in sorted(rungs, key=lambda r: (r.seconds, r.peak)):
        if not best or rung.peak < best[-1].peak:
            best.append(rung)
    return tuple(best)
