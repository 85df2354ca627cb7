"""The input of every solver, and the signature that all solvers share: ``Problem -> tuple[Plan, ...]``.

A problem also caches what solvers ask for repeatedly: plans by their decisions, and timelines by plan.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.materialization import Materialization, materialization
from rematpass.core.op import Side
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline, timeline_of
from rematpass.core.solve.effort import DEFAULT_EFFORT, Effort
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.errors import PlanTimeout

# A value, and the index in ``graph.backward_ops`` of the op after which it is dropped; the index ``NOT_SAVED`` means
# that forward does not save the value.
Eviction = tuple[int, int]
NOT_SAVED = -1


@dataclass(frozen=True)
class Problem:
    """A graph, its costs, and what a plan may do.

    ``fuse``: whether a fusing compiler runs the plan (see ``simulate``). ``max_recompute``: the most that backward may
    recompute, in multiples of ``forward_seconds``. ``deadline``: the time by which planning has to end, in seconds of
    ``time.monotonic``.
    """

    graph: JointGraph
    costs: Costs
    fuse: bool = True
    max_recompute: float = 1.0
    deadline: float = math.inf
    effort: Effort = DEFAULT_EFFORT

    def trials(self, most: int, least: int = 1) -> int:
        """``most`` trials for a graph of up to ``effort.full_effort_ops`` ops, fewer beyond, never below ``least``."""
        return max(least, round(most * min(1.0, self.effort.full_effort_ops / max(1, len(self.graph.ops)))))

    @cached_property
    def network(self) -> Network:
        """The network of the minimum cut."""
        return Network(self.graph)

    @cached_property
    def _plans(self) -> dict[tuple[str, frozenset[int], frozenset[Eviction]], Plan]:
        return {}

    def plan(self, solver: str, saved: frozenset[int], evicted: frozenset[Eviction] = frozenset()) -> Plan:
        """The plan that saves ``saved`` and drops ``evicted``, scheduled late. Cached: solvers repeat decisions.

        Raises:
            PlanError: the plan would run an op twice that must run once.
        """
        key = (solver, saved, evicted)
        if key not in self._plans:
            evicted_after: dict[int, list[int]] = {}
            for value, after in sorted(evicted):
                evicted_after.setdefault(after, []).append(value)
            self._plans[key] = schedule_late(self.graph, saved, solver, evicted_after)
        return self._plans[key]

    @cached_property
    def _timelines(self) -> dict[Plan, Timeline]:
        return {}

    @cached_property
    def _materializations(self) -> dict[Plan, Materialization]:
        return {}

    def timeline(self, plan: Plan) -> Timeline:
        """The simulated timeline of ``plan``, cached.

        Raises:
            PlanTimeout: ``deadline`` has passed. Every solver simulates its plans here, so every solver stops in time.
        """
        if time.monotonic() > self.deadline:
            raise PlanTimeout(
                "planning took longer than planning_seconds allows; raise it, or choose a simpler solver such as mincut"
            )
        if plan not in self._timelines:
            copies = self.materialization(plan)
            self._timelines[plan] = timeline_of(self.graph, plan, self.costs, copies, fuse=self.fuse)
        return self._timelines[plan]

    def materialization(self, plan: Plan) -> Materialization:
        """Which copies of ``plan`` are in memory. Large, so only the most recent ones are cached."""
        if plan in self._materializations:
            return self._materializations[plan]
        while len(self._materializations) >= self.trials(self.effort.kept_materializations):
            del self._materializations[next(iter(self._materializations))]
        self._materializations[plan] = materialization(self.graph, plan, fuse=self.fuse)
        return self._materializations[plan]

    @cached_property
    def forward_seconds(self) -> float:
        """Seconds of one forward pass."""
        sides = self.graph.sides
        return sum(s for op, s in zip(self.graph.ops, self.costs.run, strict=True) if sides[op.id] is Side.FORWARD)


Solver = Callable[[Problem], tuple[Plan, ...]]
