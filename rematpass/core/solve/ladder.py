"""All plans that are worth simulating: those of every solver, and what the local search makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline
from rematpass.core.solve.baselines import chen_sqrt, recompute_all, save_all
from rematpass.core.solve.local_search.evict import descend
from rematpass.core.solve.local_search.refine import fill_up, refine
from rematpass.core.solve.mincut import breakpoints
from rematpass.core.solve.problem import Problem, Solver
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.solve.segmentation import nested
from rematpass.core.solve.segmentation.segments import segments
from rematpass.core.solve.state import State

_STARTS = ("segments", "mincut", "chen_sqrt")  # the ways down begin at the lowest plan of each of these
_HIGH = 1.25  # times the lowest start: one that lies higher leads down on two ways
_FILLS = 16  # limits that the fastest plan under each is filled up to
_LADDER_GAPS = 24  # between the plans found so far that others are sought for
_VERTICES = 24  # of the parametric cut


@dataclass(frozen=True)
class Rung:
    """A plan with its timeline."""

    plan: Plan
    timeline: Timeline

    @property
    def rung(self) -> Rung:
        """This rung: it is its own candidate where the simulator's peak is the one to go by (``frontier.select``)."""
        return self

    @property
    def peak(self) -> int:
        return self.timeline.peak

    @property
    def seconds(self) -> float:
        return self.timeline.step_seconds


def mincut(problem: Problem) -> tuple[Plan, ...]:
    """The vertices of the parametric cut under one price for all bytes, recomputed just in time."""
    vertices = breakpoints(problem.network, problem.costs, problem.trials(_VERTICES, least=3))
    return tuple(schedule_late(problem.graph, vertex.cut.saved, "mincut") for vertex in vertices)


def all_plans(problem: Problem) -> tuple[Plan, ...]:
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
    "ladder": all_plans,
    "mincut": mincut,
    "save_all": save_all,
    "recompute_all": recompute_all,
    "chen_sqrt": chen_sqrt,
    "nested": nested.nested,
}
