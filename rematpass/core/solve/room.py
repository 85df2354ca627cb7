"""What is free under a peak, and what is worth saving there instead of being recomputed.

A saved value takes its bytes from forward until backward would have made it again. Where the timeline leaves that much
free all the way, saving it costs a read and a write, and saves the ops that nobody else wants::

            limit ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
                  ╭──╮   free   ╭──╮
              ╭───╯  ╰──────────╯  ╰──
              forward   x..........x            a value of forward, until backward first makes it again

Source: filling a knapsack by density, with one capacity per moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rematpass.core.graph import Origin, Side
from rematpass.core.simulate import Timeline
from rematpass.core.solve.problem import Problem


@dataclass(frozen=True)
class Room:
    """``saved``: what is saved already; ``limit``: bytes that no moment of ``timeline`` may exceed."""

    problem: Problem
    saved: frozenset[int]
    timeline: Timeline
    limit: int

    def worth_saving(self, but: frozenset[int] = frozenset()) -> list[int]:
        """Values ``but`` these that fit all together, those that spare most seconds per byte first."""
        graph, costs = self.problem.graph, self.problem.costs
        found = []
        for value in self._remade.keys() - but:
            exclusive = self._only_for(value)
            gain = sum(costs.run[op] for op in exclusive) - costs.keep[value]
            nbytes = graph.values[value].nbytes
            if gain > 0:
                found.append((gain / max(nbytes, 1), value, exclusive))
        found.sort(key=lambda entry: (-entry[0], entry[1]))
        free = self.limit - np.array(self.timeline.live, np.int64)
        taken: list[int] = []
        spared: set[int] = set()
        for _, value, exclusive in found:
            span = slice(self._made[value], self._remade[value])
            nbytes = graph.values[value].nbytes
            if spared.isdisjoint(exclusive) and (free[span] >= nbytes).all():
                free[span] -= nbytes
                taken.append(value)
                spared |= exclusive
        return taken

    @cached_property
    def _made(self) -> dict[int, int]:
        """For each value of forward, the position that makes it there."""
        graph, first = self.problem.graph, self.timeline.first_backward
        return {v: p for p, run in enumerate(self.timeline.runs[:first]) for v in graph.ops[run.op].writes}

    @cached_property
    def _remade(self) -> dict[int, int]:
        """For each value that backward makes again and that can be saved, the first position of backward that does."""
        graph, first = self.problem.graph, self.timeline.first_backward
        found: dict[int, int] = {}
        for position, run in enumerate(self.timeline.runs[first:], first):
            op = graph.ops[run.op]
            if graph.sides[run.op] is Side.BACKWARD or op.must_recompute:
                continue
            for v in op.writes:
                value = graph.values[v]
                if v in self._made and v not in self.saved and not value.cannot_save and value.origin is Origin.OP:
                    found.setdefault(v, position)
        return found

    @cached_property
    def _again(self) -> NDArray[np.int64]:
        """For each op, how often backward runs it."""
        count = np.zeros(len(self.problem.graph.ops), np.int64)
        for run in self.timeline.runs[self.timeline.first_backward :]:
            count[run.op] += 1
        return count

    def _only_for(self, value: int) -> set[int]:
        """The ops that backward runs for nothing but ``value``: its own, and those that only they read."""
        graph = self.problem.graph
        producer = graph.producer[value]
        assert producer is not None
        if any(self._again[r] for v in graph.ops[producer].writes if v != value for r in graph.readers[v]):
            return set()  # it has to run for its other results
        found = {producer}
        todo = list(graph.ops[producer].reads)
        while todo:
            v = todo.pop()
            op = graph.producer[v]
            if op is None or op in found or v in self.saved or graph.sides[op] is Side.BACKWARD or not self._again[op]:
                continue
            readers = {r for w in graph.ops[op].writes for r in graph.readers[w] if self._again[r]}
            if readers <= found and not any(w in graph.bwd_outputs for w in graph.ops[op].writes):
                found.add(op)
                todo.extend(graph.ops[op].reads)
        return found
