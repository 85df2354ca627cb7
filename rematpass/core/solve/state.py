"""A plan as decisions, before it is scheduled: what nested boundaries and the local search pass on."""

from __future__ import annotations

from dataclasses import dataclass

from rematpass.core.schedule import Plan
from rematpass.core.solve.problem import NOT_SAVED, Eviction, Problem


@dataclass(frozen=True)
class State:
    """What forward saves, and what backward drops before its last use, to be recomputed later."""

    saved: frozenset[int]
    evicted: frozenset[Eviction] = frozenset()

    def saving(self, values: frozenset[int]) -> State:
        """Also save ``values``, and evict none of them."""
        return State(self.saved | values, frozenset(x for x in self.evicted if x[0] not in values))

    def evicting(self, evictions: frozenset[Eviction]) -> State:
        """Also evict ``evictions``; values that they mark ``NOT_SAVED`` are not saved."""
        not_saved = {v for v, after in evictions if after == NOT_SAVED}
        return State(self.saved - not_saved, self.evicted | {x for x in evictions if x[1] != NOT_SAVED})

    def plan(self, problem: Problem, solver: str) -> Plan:
        """The schedule of these decisions.

        Raises:
            PlanError: it would run an op twice that must run once.
        """
        return problem.plan(solver, self.saved, self.evicted)
