"""What is free under a limit, and what is worth saving there instead of being recomputed.

A saved value takes its bytes from when forward makes it until backward would have recomputed it. Where that much is
free all along, saving it costs one read and one write, and spares the ops that backward runs for nothing else::

            limit ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
                  ╭──╮   free   ╭──╮
              ╭───╯  ╰──────────╯  ╰──
              forward   x..........x            a value, from forward until backward first recomputes it

If a step calls the graph several times, the other calls save the value too, and their copies take bytes all the time.

``_that_fit`` finds the values that fit one at a time, ``_exclusive_ops`` what each spares; ``worth_saving`` takes them
by seconds per byte as long as they fit together.

Source: filling a knapsack by density, with one capacity per position of the timeline.
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
class Headroom:
    """What ``timeline`` leaves free under ``limit`` bytes. ``saved``: values that its plan saves."""

    problem: Problem
    saved: frozenset[int]
    timeline: Timeline
    limit: int

    def worth_saving(self, exclude: frozenset[int] = frozenset()) -> list[int]:
        """Values, except ``exclude``, that fit all together; those that spare the most seconds per byte first."""
        graph, costs = self.problem.graph, self.problem.costs
        free = self.limit - self.timeline.live_array
        made, again = self._spans
        found = []
        for value in set(self._that_fit(free)) - exclude:
            exclusive = self._exclusive_ops(value)
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
        """Savable values that backward recomputes and whose bytes are ``free`` until then, each taken by itself."""
        graph, (made, again) = self.problem.graph, self._spans
        values = np.flatnonzero((made >= 0) & (again >= 0) & graph.savable & ~graph.marked(self.saved))
        fit: list[int] = values[graph.nbytes[values] <= _range_minimum(free, made[values], again[values])].tolist()
        return fit

    @cached_property
    def _ops(self) -> Ints:
        """The op of each run."""
        return RunArrays.of(self.timeline.runs).op

    @cached_property
    def _spans(self) -> tuple[Ints, Ints]:
        """For each value, the position at which forward makes it, and the first at which backward does; -1 for none."""
        graph = self.problem.graph
        positions, values = graph.written_rows.take(self._ops)
        split = int(np.searchsorted(positions, self.timeline.first_backward))
        made, again = np.full((2, len(graph.values)), -1)
        made[values[:split]] = positions[:split]
        again[values[split:][::-1]] = positions[split:][::-1]  # reversed, so that the first of several positions stays
        return made, again

    @cached_property
    def _backward_runs(self) -> list[int]:
        """For each op, how often backward runs it."""
        ops = self._ops[self.timeline.first_backward :]
        times: list[int] = np.bincount(ops, minlength=len(self.problem.graph.ops)).tolist()
        return times

    def _exclusive_ops(self, value: int) -> set[int]:
        """The ops that backward runs only for ``value``: its producer, and what only they read."""
        graph, runs = self.problem.graph, self._backward_runs
        producer = graph.producer[value]
        assert producer is not None
        if any(runs[r] for v in graph.ops[producer].writes if v != value for r in graph.readers[v]):
            return set()  # it has to run for its other results
        found = {producer}
        todo = list(graph.ops[producer].reads)
        while todo:
            v = todo.pop()
            op = graph.producer[v]
            if op is None or op in found or v in self.saved or graph.sides[op] is Side.BACKWARD or not runs[op]:
                continue
            readers = {r for w in graph.ops[op].writes for r in graph.readers[w] if runs[r]}
            if readers <= found and not any(w in graph.bwd_outputs for w in graph.ops[op].writes):
                found.add(op)
                todo.extend(graph.ops[op].reads)
        return found


def _range_minimum(numbers: Ints, start: Ints, stop: Ints) -> Ints:
    """The minimum of ``numbers[start[i] : stop[i]]`` for each i.

    Each range is covered by two stretches of a power of two, which may overlap; ``least`` holds the minimum of every
    stretch of the current length.

    Source: the sparse table of Bender and Farach-Colton 2000, "The LCA problem revisited".
    """
    level = np.frexp(stop - start)[1] - 1
    least, found = numbers, np.empty_like(start)
    for power in range(level.max(initial=-1) + 1):
        here = level == power
        found[here] = np.minimum(least[start[here]], least[stop[here] - 2**power])
        least = np.minimum(least[: -(2**power)], least[2**power :])
    return found
