"""A plan as decisions, before it is scheduled: what the segments and the local search pass on."""

from __future__ import annotations

from dataclasses import dataclass

from rematpass.core.schedule import Plan
from rematpass.core.solve.problem import Eviction, Problem


@dataclass(frozen=True)
class State:
    """A plan as decisions: what is saved, and what is let go when (with all that is made of it and fused away)."""

    saved: frozenset[int]
    evicted: frozenset[Eviction] = frozenset()

    def saving(self, values: frozenset[int]) -> State:
        """Save these as well, and do not let them go in between."""
        return State(self.saved | values, frozenset(x for x in self.evicted if x[0] not in values))

    def after(self, evictions: frozenset[Eviction]) -> State:
        dropped = {v for v, moment in evictions if moment < 0}
        return State(self.saved - dropped, self.evicted | {x for x in evictions if x[1] >= 0})

    def plan(self, problem: Problem, solver: str) -> Plan:
        return problem.plan(solver, self.saved, self.evicted)
