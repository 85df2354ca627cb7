"""The idle copies of one plan, and the price of evicting each.

A copy is *idle* at a position of the timeline if it has been read before and is next read after it. Evicting it there
frees its bytes; before the next read, it is recomputed from what is available by then::

                          position
            x ...............│............ x           x: reads of a copy, which is idle in between
            │  evict                       │
            └▶ dropped here     recompute ─┘           price: the seconds of the ops that recompute it

Three cases, by where the reads lie (``IdleCopies._between_reads``):

- both in backward: the copy is dropped after the first read, together with the virtual copies that are fused into its
  readers and read it once more;
- the first in forward, the second in backward: the value is not saved at all;
- both in forward, or a value that is not saved: nothing to evict.

Recomputing a copy may read values that are alive but would otherwise be dropped earlier. Those are evicted at their own
last use as well, so that they are recomputed in turn instead of being kept alive for this (``_priced``).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.materialization import Materialization
from rematpass.core.schedule import Plan
from rematpass.core.simulate import LiveInterval, Timeline
from rematpass.core.solve.problem import NOT_SAVED, Eviction, Problem


@dataclass(frozen=True)
class PricedEviction:
    """What to evict, the bytes that it frees, and the seconds of recomputation that it costs."""

    evictions: frozenset[Eviction]
    nbytes: int
    seconds: float


class IdleCopies:
    """The idle copies of ``plan``, by position. ``banned``: evictions that are not proposed; it may grow meanwhile."""

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        timeline: Timeline,
        copies: Materialization,
        banned: set[frozenset[Eviction]],
    ) -> None:
        self.problem, self.timeline, self.banned = problem, timeline, banned
        self.trace, self.saved = copies.trace, frozenset(plan.saved)
        graph, first = problem.graph, timeline.first_backward
        own = graph.is_backward[self.trace.op[first:]].astype(np.int64)
        # For each run of backward, the index in ``backward_ops`` of the op that it is or is made for.
        self.own_index: list[int] = (np.cumsum(own) - own).tolist()
        intervals = sorted(timeline.intervals, key=lambda t: t.born)
        self.intervals = [t for t in intervals if t.nbytes and not t.outlives and self._can_be_recomputed(t.value)]
        producers = (graph.producer[t.value] for t in self.intervals)
        seconds = [0.0 if op is None else problem.costs.run[op] for op in producers]
        of_others = graph.nbytes_of_others[[t.value for t in self.intervals]].tolist()
        # Per interval, a lower bound on the seconds per byte of evicting it: recomputing it runs its own op at least.
        self.lowest_price = [
            s / (t.nbytes + more) for s, t, more in zip(seconds, self.intervals, of_others, strict=True)
        ]
        self.cache: dict[tuple[int, int], PricedEviction | None] = {}  # by interval, and which of its reads is next
        self.born = np.array([t.born for t in self.intervals], np.int64)
        self.end = np.array([t.end for t in self.intervals], np.int64)
        self.values, self.born_at = self.trace.value.tolist(), self.trace.born.tolist()
        self.last_read = np.where(self.trace.outlives, len(timeline.runs), self.trace.last_read).tolist()
        self.virtual_copies = self._virtual_copies(copies.sources)

    def _virtual_copies(self, sources_of: Mapping[int, tuple[int, ...]]) -> dict[tuple[int, int], list[int]]:
        """(value, copy) in memory -> the virtual copies that are computed from it and are read in backward."""
        first, numbers = self.timeline.first_backward, self.trace.number.tolist()
        by_source: dict[int, list[int]] = {}
        for copy, sources in sources_of.items():
            if self.last_read[copy] > first:
                for s in sources:
                    by_source.setdefault(s, []).append(copy)
        return {(self.values[s], numbers[s]): virtual for s, virtual in by_source.items()}

    def _can_be_recomputed(self, value: int) -> bool:
        producer = self.problem.graph.producer[value]
        return producer is not None and producer not in self.problem.graph.runs_once

    def at(self, position: int) -> Iterator[PricedEviction]:
        """What can be evicted at ``position``, the lowest seconds per byte first.

        An interval is priced in full only when its lower bound comes first in the queue.
        """
        there = np.flatnonzero((self.born < position) & (position <= self.end)).tolist()
        queue: list[tuple[float, int, int, PricedEviction | None]] = [
            (self.lowest_price[i], -self.intervals[i].nbytes, i, None) for i in there
        ]
        heapq.heapify(queue)
        while queue:
            _, size, i, choice = heapq.heappop(queue)
            if choice is not None:
                yield choice
                continue
            choice = self._choice(i, position)
            if choice is not None and choice.evictions not in self.banned:
                heapq.heappush(queue, (choice.seconds / choice.nbytes, size, i, choice))

    def _choice(self, i: int, position: int) -> PricedEviction | None:
        """Evicting interval number ``i`` over ``position``; None if it is read there, or not read again."""
        t = self.intervals[i]
        later = bisect_left(t.reads, position)
        if later == len(t.reads) or t.reads[later] == position or t.made >= position:
            return None
        if (i, later) not in self.cache:  # many peak regions lie between one read and the next
            self.cache[i, later] = self._between_reads(t, later)
        return self.cache[i, later]

    def _between_reads(self, t: LiveInterval, later: int) -> PricedEviction | None:
        """Evicting ``t`` before its read number ``later``; None if that frees nothing or is impossible."""
        first = self.timeline.first_backward
        before, after = (t.reads[later - 1] if later else t.made), t.reads[later]
        if after < first or (before < first and t.value not in self.saved):
            return None
        if before < first:  # backward has not read it yet
            return self._priced({(t.value, NOT_SAVED)}, t, after)
        last, again = self.own_index[before - first], self.own_index[after - first]
        if last == again:
            return None
        virtual = self.virtual_copies.get((t.value, t.copy), ())
        fused = [self.values[c] for c in virtual if self.born_at[c] <= before < self.last_read[c]]
        if any(self._is_backwards(v) for v in fused):
            return None  # an own op of backward runs once, and its virtual result needs this copy
        return self._priced({(v, last) for v in (t.value, *fused)}, t, after)

    def _is_backwards(self, value: int) -> bool:
        producer = self.problem.graph.producer[value]
        return producer is not None and bool(self.problem.graph.is_backward[producer])

    def _priced(self, evictions: set[Eviction], t: LiveInterval, after: int) -> PricedEviction | None:
        """``evictions`` of ``t`` with its price, if it is recomputed before position ``after``; None if it cannot."""
        graph = self.problem.graph
        gone = {v for v, _ in evictions}
        chain = graph.ancestors([t.value], _Available(self.copies_of, after, gone))
        if not graph.runs_once.isdisjoint(chain) or self._reads_lost_input(chain):
            return None
        again = self.own_index[after - self.timeline.first_backward]
        for v in (v for op in chain for v in graph.ops[op].writes if v not in gone):
            last = self._last_use(v, after)
            if last is not None and last < again:
                evictions.add((v, last))  # else recomputing t would keep the copy of v alive until here
        nbytes = t.nbytes
        if any(index == NOT_SAVED for _, index in evictions):
            nbytes += int(graph.nbytes_of_others[t.value])
        return PricedEviction(frozenset(evictions), nbytes, sum(self.problem.costs.run[op] for op in chain))

    def _reads_lost_input(self, chain: list[int]) -> bool:
        """Whether one of the ops reads an input that forward overwrites or that cannot be saved."""
        graph = self.problem.graph
        inputs = {v for op in chain for v in graph.ops[op].reads if graph.producer[v] is None}
        return not inputs <= graph.kept_inputs

    def _last_use(self, value: int, before: int) -> int | None:
        """The index of the own op for which backward last makes or reads ``value`` before a position; None if never."""
        positions, start = self._uses
        first = self.timeline.first_backward
        index = bisect_left(positions, before - first, start[value], start[value + 1])
        return self.own_index[positions[index - 1]] if index > start[value] else None

    @cached_property
    def _uses(self) -> tuple[list[int], list[int]]:
        """The runs of backward that make or read each value, ascending, and where those of each value start."""
        graph, ops = self.problem.graph, self.trace.op[self.timeline.first_backward :]
        reads, writes = graph.touched_rows.take(ops), graph.written_rows.take(ops)
        positions, values = (np.append(r, w) for r, w in zip(reads, writes, strict=True))
        order = np.lexsort((positions, values))
        start = np.searchsorted(values[order], np.arange(len(graph.values) + 1))
        return positions[order].tolist(), start.tolist()

    @cached_property
    def copies_of(self) -> dict[object, list[tuple[int, int]]]:
        """For each value, its copies that backward can read: (position that makes it, position of its last read)."""
        always = (-1, len(self.timeline.runs))
        found: dict[object, list[tuple[int, int]]] = {v: [always] for v in self.problem.graph.kept_inputs}
        first = self.timeline.first_backward
        for value, born, last in zip(self.values, self.born_at, self.last_read, strict=True):
            if born >= first or value in self.saved:
                found.setdefault(value, []).append((born, last))
        return found


@dataclass(frozen=True)
class _Available:
    """The values that can be read at ``position`` of backward, except those in ``gone``."""

    copies: Mapping[object, Sequence[tuple[int, int]]]
    position: int
    gone: set[int]

    def __contains__(self, value: object) -> bool:
        if value in self.gone:
            return False
        for born, last in self.copies.get(value, ()):  # noqa: SIM110  (any() takes twice as long)
            if born < self.position < last:
                return True
        return False
