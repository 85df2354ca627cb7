"""What is free under a peak, and what is worth saving there instead of being recomputed.

A saved value takes its bytes from forward until backward would have made it again. Where the timeline leaves that much
free all the way, saving it costs a read and a write, and saves the ops that nobody else wants::

            limit ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
                  ╭──╮   free   ╭──╮
              ╭───╯  ╰──────────╯  ╰──
              forward   x..........x            a value of forward, until backward first makes it again

Where a step calls the graph several times, the other calls save it as well, which takes as much at every moment.

Source: filling a knapsack by density, with one capacity per moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.op import Side
from rematpass.core.ragged import Ints
from rematpass.core.schedule import RunArrays
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
        free = self.limit - self.timeline.live_array
        made, again = self._spans
        found = []
        for value in set(self._that_fit(free)) - but:
            exclusive = self._only_for(value)
            gain = sum(costs.run[op] for op in exclusive) - costs.keep[value]
            nbytes = graph.values[value].nbytes
            if gain > 0:
                found.append((gain / max(nbytes, 1), value, exclusive))
        found.sort(key=lambda entry: (-entry[0], entry[1]))
        taken: list[int] = []
        spared: set[int] = set()
        for _, value, exclusive in found:
            span = slice(made[value], again[value])
            nbytes = graph.values[value].nbytes
            of_others = int(graph.nbytes_of_others[value])
            if of_others and free.min() < of_others:
                continue
            if spared.isdisjoint(exclusive) and (free[span] >= nbytes + of_others).all():
                free[span] -= nbytes
                free -= of_others
                taken.append(value)
                spared |= exclusive
        return taken

    def _that_fit(self, free: Ints) -> list[int]:
        """Values that can be saved and are made again, where ``free`` has the bytes of each, one at a time."""
        graph, (made, again) = self.problem.graph, self._spans
        values = np.flatnonzero((made >= 0) & (again >= 0) & graph.savable & ~graph.marked(self.saved))
        fit: list[int] = values[graph.nbytes[values] <= _least(free, made[values], again[values])].tolist()
        return fit

    @cached_property
    def _ops(self) -> Ints:
        """The op of each run."""
        return RunArrays.of(self.timeline.runs).op

    @cached_property
    def _spans(self) -> tuple[Ints, Ints]:
        """For each value the position of forward that makes it, and the first of backward that does; -1 for none."""
        graph = self.problem.graph
        positions, values = graph.written_rows.take(self._ops)
        late = int(np.searchsorted(positions, self.timeline.first_backward))
        made, again = np.full((2, len(graph.values)), -1)
        made[values[:late]] = positions[:late]
        again[values[late:][::-1]] = positions[late:][::-1]  # of several positions the first stays
        return made, again

    @cached_property
    def _times(self) -> list[int]:
        """For each op, how often backward runs it."""
        ops = self._ops[self.timeline.first_backward :]
        times: list[int] = np.bincount(ops, minlength=len(self.problem.graph.ops)).tolist()
        return times

    def _only_for(self, value: int) -> set[int]:
        """The ops that backward runs for nothing but ``value``: its own, and those that only they read."""
        graph = self.problem.graph
        producer = graph.producer[value]
        assert producer is not None
        if any(self._times[r] for v in graph.ops[producer].writes if v != value for r in graph.readers[v]):
            return set()  # it has to run for its other results
        found = {producer}
        todo = list(graph.ops[producer].reads)
        while todo:
            v = todo.pop()
            op = graph.producer[v]
            if op is None or op in found or v in self.saved or graph.sides[op] is Side.BACKWARD or not self._times[op]:
                continue
            readers = {r for w in graph.ops[op].writes for r in graph.readers[w] if self._times[r]}
            if readers <= found and not any(w in graph.bwd_outputs for w in graph.ops[op].writes):
                found.add(op)
                todo.extend(graph.ops[op].reads)
        return found


def _least(numbers: Ints, start: Ints, stop: Ints) -> Ints:
    """The least of ``numbers`` from each of ``start`` up to the ``stop`` beside it: of two stretches whose lengths are
    powers of two, and which may overlap.

    Source: the sparse table of Bender and Farach-Colton 2000, "The LCA problem revisited".
    """
    level = np.frexp(stop - start)[1] - 1
    least, found = numbers, np.empty_like(start)
    for power in range(level.max(initial=-1) + 1):
        here = level == power
        found[here] = np.minimum(least[start[here]], least[stop[here] - 2**power])
        least = np.minimum(least[: -(2**power)], least[2**power :])
    return found
