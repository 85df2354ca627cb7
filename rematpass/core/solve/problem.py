"""What every solver is given, and the one signature they share: ``Problem -> tuple[Plan, ...]``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph, Side
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Materialization, Timeline, materialization, timeline_of
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.errors import PlanTimeout

# Ops up to which a graph gets every trial that the solvers know. Simulating a plan takes time in proportion to the ops,
# so beyond that the number of trials falls as the ops rise, and planning stays near-linear.
_FULL_EFFORT = 2500

_KEPT = 32  # materializations, of plans that a search may ask for again

# A value that is let go, and after which of backward's own ops.
Eviction = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """A graph with its costs. ``fuse``: whether a fusing compiler runs the plan (``simulate``);
    ``max_recompute``: how much backward may recompute, in forwards; ``deadline``: when planning has to have ended, by
    ``time.monotonic``."""

    graph: JointGraph
    costs: Costs
    fuse: bool = True
    max_recompute: float = 1.0
    deadline: float = math.inf

    def trials(self, most: int, least: int = 1) -> int:
        """How many of ``most`` trials this graph is given: all up to 2,500 ops, then fewer, but at least ``least``."""
        return max(least, round(most * min(1.0, _FULL_EFFORT / max(1, len(self.graph.ops)))))

    @cached_property
    def network(self) -> Network:
        return Network(self.graph)

    @cached_property
    def _plans(self) -> dict[tuple[str, frozenset[int], frozenset[Eviction]], Plan]:
        return {}

    def plan(self, solver: str, saved: frozenset[int], evicted: frozenset[Eviction] = frozenset()) -> Plan:
        """The plan that saves ``saved``, made just in time, once: solvers come by the same decisions again and again.

        Raises:
            PlanError: something that must not run twice would have to.
        """
        key = (solver, saved, evicted)
        if key not in self._plans:
            moments: dict[int, list[int]] = {}
            for value, moment in sorted(evicted):
                moments.setdefault(moment, []).append(value)
            self._plans[key] = schedule_late(self.graph, saved, solver, moments)
        return self._plans[key]

    @cached_property
    def _timelines(self) -> dict[Plan, Timeline]:
        return {}

    @cached_property
    def _latest(self) -> dict[Plan, Materialization]:
        return {}

    def timeline(self, plan: Plan) -> Timeline:
        """The simulator's answer for ``plan``; asked for once.

        Raises:
            PlanTimeout: it is later than ``deadline``. Every solver asks for each of its plans, so all of them stop.
        """
        if time.monotonic() > self.deadline:
            raise PlanTimeout("planning took longer than planning_seconds allows; raise it, or take a simpler solver")
        if plan not in self._timelines:
            there = self.materialization(plan)
            self._timelines[plan] = timeline_of(self.graph, plan, self.costs, there, fuse=self.fuse)
        return self._timelines[plan]

    def materialization(self, plan: Plan) -> Materialization:
        """What of ``plan`` takes bytes: kept for the plans that came last, since it is large."""
        if plan in self._latest:
            return self._latest[plan]
        while len(self._latest) >= self.trials(_KEPT):
            del self._latest[next(iter(self._latest))]
        self._latest[plan] = materialization(self.graph, plan, fuse=self.fuse)
        return self._latest[plan]

    @cached_property
    def forward_seconds(self) -> float:
        """Seconds of one forward."""
        sides = self.graph.sides
        return sum(s for op, s in zip(self.graph.ops, self.costs.run, strict=True) if sides[op.id] is Side.FORWARD)


Solver = Callable[[Problem], tuple[Plan, ...]]
