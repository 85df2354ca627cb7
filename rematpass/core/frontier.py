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
from rematpass.core.solve.baselines import chen_sqrt, recompute_all, save_all
from rematpass.core.solve.local_search.evict import State, descend
from rematpass.core.solve.local_search.refine import fill_up, pareto, refine
from rematpass.core.solve.mincut import breakpoints
from rematpass.core.solve.problem import Problem, Solver
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.solve.segmentation import nested
from rematpass.core.solve.segmentation.segments import segments

_STARTS = ("segments", "mincut", "chen_sqrt")  # the ways down begin at the lowest plan of each of these
_HIGH = 1.25  # times the lowest start: one that lies higher leads down on two ways
_FILLS = 16  # limits that the fastest plan under each is filled up to
_LADDER_GAPS = 24  # between the plans found so far that others are sought for
_VERTICES = 24  # of the parametric cut


def peak_allowed(budget: int, device: str) -> int:
    """The highest planned peak that fits a budget of ``budget`` bytes on a device: "cpu", or a GPU's name."""
    parts = _parts(device)
    return budget * parts // (parts + 1)


def least_budget(peak: int, device: str) -> int:
    """The lowest budget in bytes that a planned peak of ``peak`` fits on a device: "cpu", or a GPU's name."""
    parts = _parts(device)
    return -(-peak * (parts + 1) // parts)


def _parts(device: str) -> int:
    """A planned peak and one part more of so many must fit a budget in bytes.

    A GPU's allocator counts more than it is asked for where it does not split a block; a CPU's counts a few bytes.
    """
    return 1000 if device.startswith("cpu") else 100


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
    return tuple(schedule_late(problem.graph, vertex.cut.saved, "mincut") for vertex in vertices)


def everything(problem: Problem) -> tuple[Plan, ...]:
    """The plans of all solvers, what is found on the way down from the lowest of each, the fastest of these under some
    limits, filled up to them, and what fills the largest holes."""
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
    found += [(State(frozenset(plan.saved)), plan) for plan in plans]
    lowest = max(1, min(problem.timeline(plan).peak for _, plan in found))
    limits = np.geomspace(lowest, max(lowest, ceiling.peak), 1 + problem.trials(_FILLS, least=8))[:-1]
    found += fill_up(problem, found, [int(limit) for limit in limits])
    found += refine(problem, found, problem.trials(_LADDER_GAPS))
    return tuple(plan for _, plan in found)


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
    with without_collection():
        rungs = [Rung(plan, problem.timeline(plan)) for plan in dict.fromkeys(SOLVERS[solver](problem))]
    # A hair above the limit, so that recomputing exactly one forward is not lost to the rounding of a sum.
    allowed = problem.max_recompute * problem.forward_seconds * (1 + 1e-9)
    within = [rung for rung in rungs if rung.timeline.recompute_seconds <= allowed]
    return Ladder(pareto(within or [min(rungs, key=lambda r: r.timeline.recompute_seconds)]))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Without Python's cycle collector: solvers make millions of small objects and no cycles, and it would walk them
    all again and again, for half of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
