"""All plans that are worth simulating: those of every solver, and what the local search makes of them.

``all_plans`` takes these steps; ``frontier.build`` then keeps what nothing else beats::

        mincut, segments, chen_sqrt, save_all, recompute_all        starts: one optimum or heuristic each
          └─▶ the lowest plan of some, and of nested boundaries
                └─▶ descend      evict idle copies until the peak falls no further: the floor
                      └─▶ fill_up      save what fits beside the fastest plan under some limits
                            └─▶ refine       search for plans in the largest gaps of the ladder
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
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

_STARTS = ("segments", "mincut", "chen_sqrt")  # solvers whose lowest plan starts a descent

Found = tuple[State, Plan]


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
    """The vertices of the parametric cut under one price for all bytes, each scheduled late."""
    effort = problem.effort
    most = problem.trials(effort.mincut_vertices, effort.mincut_vertices_at_least)
    vertices = breakpoints(problem.network, problem.costs, most)
    return tuple(schedule_late(problem.graph, vertex.cut.saved, "mincut") for vertex in vertices)


def all_plans(problem: Problem) -> tuple[Plan, ...]:
    """The plans of all solvers and of the local search, in the steps of the module docstring."""
    effort = problem.effort
    plans = [plan for solver in (mincut, segments, chen_sqrt, save_all, recompute_all) for plan in solver(problem)]
    ceiling = min((Rung(plan, problem.timeline(plan)) for plan in plans), key=lambda rung: (rung.seconds, rung.peak))
    nested_plans = list(nested.states(problem))
    starts, descents = _descents(problem, plans, nested_plans)
    found = [*starts, *nested_plans, *itertools.chain.from_iterable(descents)]
    found += [(State(frozenset(plan.saved)), plan) for plan in plans]
    lowest = max(1, min(problem.timeline(plan).peak for _, plan in found))
    fills = problem.trials(effort.fill_limits, effort.fill_limits_at_least)
    limits = np.geomspace(lowest, max(lowest, ceiling.peak), 1 + fills)[:-1]
    found += fill_up(problem, found, [int(limit) for limit in limits])
    found += refine(problem, found, problem.trials(effort.ladder_gaps))
    return tuple(plan for _, plan in found)


def _descents(
    problem: Problem, plans: Iterable[Plan], nested_plans: list[Found]
) -> tuple[list[Found], list[Iterator[Found]]]:
    """The plans that descents start from, and the descents."""
    starts = [(State(frozenset(plan.saved)), plan) for plan in _lowest(problem, plans)]
    highest, (low, high) = starts[-1], (problem.timeline(starts[i][1]).peak for i in (0, -1))
    if nested_plans:
        starts.append(min(nested_plans, key=lambda found: problem.timeline(found[1]).peak))
    descents = [descend(problem, *start) for start in starts]
    if high > problem.effort.coarse_descent_ratio * low:  # from high up, large steps end at another floor
        descents.append(descend(problem, *highest, stride=high / low))
    return starts, descents


def _lowest(problem: Problem, plans: Iterable[Plan]) -> list[Plan]:
    """The lowest plan of each solver in ``_STARTS``, the lowest first; fewer of them for large graphs."""
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
