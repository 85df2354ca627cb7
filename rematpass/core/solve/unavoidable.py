"""Bytes that every plan has in memory, whatever it saves and recomputes: what a lower bound may count on.

Moments do not depend on the plan: forward's own ops in their order, the *end of forward*, backward's own ops in theirs.
(That is the time axis of ``segmentation/time_axis.py`` with one more moment in the middle.) At each moment some bytes
are alive in every plan (``UnavoidableBytes.nbytes``), and more in plans that make a certain choice
(``ConditionalBytes``). The choices are those of the minimum cut (``mincut.py``): an op is recomputed or it is not.

- *Unavoidable* (``_count_tangent``, ``_count_backward``, ``_count_forward``): forward's outputs from when they are
  made, to the end, or to the end of forward if the caller releases them; tangents to their last read; what backward
  makes, from then to its last read, gradients to the end; what forward's own ops still read; what an own op of backward
  reads, while it runs; the workspace of each own op.
- *If a value is saved* (``if_saved``): if the producer of a value is not recomputed, what backward reads is the one
  copy that forward made. It is alive until the last own op of backward that reads it. If a step calls the graph several
  times, the copies of the other calls are alive at every moment.
- *If a reader of a value is recomputed* (``if_reader_recomputed``): if the producer is not recomputed but a reader is,
  then the value, or something computed from it, is alive until the last own op that needs it::

        v (saved) ─▶ [exp, recomputed] ─▶ u ─▶ [own op at moment t]        before t: v or else u is in memory

  since nothing can recompute u once v is gone. An op with several arguments charges this to only one of them
  (``_charged_argument``), so that no byte is counted twice.

Under a fusing compiler a value may be virtual: it is computed inside its readers, and what it is computed from lives
until they have run. So only what cannot be virtual counts: the results of ops that are not repeated in each
reader, what an op that does not fuse reads, and what is returned or saved. An op that fuses may overwrite an argument
at its last read; there, a life ends one moment early. Random numbers drawn from a seed are not counted at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.cost import ALWAYS_REALIZED, FREE, FUSIBLE
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side
from rematpass.core.ragged import Bools, Floats, Ints

Life = tuple[int, int, int]  # first moment, the moment after the last, bytes (negative: those count elsewhere already)


@dataclass(frozen=True)
class ConditionalBytes:
    """Bytes that choices entail: ``choice[i]`` has ``nbytes[i]`` alive from ``first[i]`` to before ``end[i]``."""

    count: int  # of choices
    choice: Ints
    first: Ints
    end: Ints
    nbytes: Floats

    @classmethod
    def of(cls, lives: list[list[Life]]) -> ConditionalBytes:
        """From the lives that each choice entails."""
        flat = [(choice, *life) for choice, of in enumerate(lives) for life in of if life[0] < life[1] and life[2]]
        table = np.array(flat, np.int64).reshape(-1, 4)
        return cls(len(lives), table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.float64))

    def cost(self, prices: Floats) -> Floats:
        """What each choice pays under a price per byte at each moment; never negative."""
        total = np.concatenate([[0.0], np.cumsum(prices)])
        paid = np.bincount(self.choice, self.nbytes * (total[self.end] - total[self.first]), self.count)
        return np.maximum(paid, 0.0)

    def usage(self, chosen: Bools, count: int) -> Floats:
        """Bytes alive at each of ``count`` moments if the choices ``chosen`` are made."""
        lives = chosen[self.choice]
        change: Floats = np.bincount(self.first[lives], self.nbytes[lives], count + 1).astype(np.float64)
        change -= np.bincount(self.end[lives], self.nbytes[lives], count + 1)
        usage: Floats = np.cumsum(change)[:count]
        return usage


@dataclass(frozen=True)
class _Need:
    """``nbytes`` at every moment of backward before ``end``, except the moments where they are ``counted`` already."""

    end: int
    nbytes: int
    counted: frozenset[int] = frozenset()

    @staticmethod
    def least(needs: Iterable[_Need]) -> _Need:
        """What is needed whichever of ``needs`` applies."""
        needs = list(needs)
        if not needs:
            return _Need(0, 0)
        counted = frozenset().union(*(n.counted for n in needs))
        return _Need(min(n.end for n in needs), min(n.nbytes for n in needs), counted)


class UnavoidableBytes:
    """The unavoidable and conditional bytes of ``graph`` by moment.

    ``fuse``: whether a fusing compiler runs the plan (see ``simulate``).
    """

    def __init__(self, graph: JointGraph, fuse: bool) -> None:
        self.graph, self.fuse = graph, fuse
        forward = graph.forward_ops
        own = [op.id for op in graph.backward_ops]
        self.end_of_forward = len(forward)
        self.count = len(forward) + 1 + len(own)
        self.moment_of = {op: moment for moment, op in enumerate(forward)}
        self.moment_of |= {op: self.end_of_forward + 1 + i for i, op in enumerate(own)}
        self._fuses = [op.kind in FUSIBLE | FREE for op in graph.ops]
        self._outputs, self._gradients = set(graph.fwd_outputs), set(graph.bwd_outputs)
        self._change = np.zeros(self.count + 1, np.int64)  # of the unavoidable bytes, from one moment to the next
        self._saved: dict[int, list[Life]] = {}  # value -> its lives if it is saved
        self._last: dict[int, int] = {}  # value -> the last moment of these
        self._read_at: dict[int, frozenset[int]] = {}  # value -> moments of backward at which it is alive in any case
        for value in graph.values:
            producer = graph.producer[value.id]
            if value.origin is Origin.TANGENT:
                self._count_tangent(value.id)
            elif producer is not None and graph.sides[producer] is Side.BACKWARD:
                self._count_backward(value.id, graph.ops[producer])
            elif producer is not None:
                self._count_forward(value.id, graph.ops[producer])

    @cached_property
    def nbytes(self) -> Ints:
        """Bytes at each moment that every plan has alive."""
        total: Ints = np.cumsum(self._change)[:-1]
        for op, moment in self.moment_of.items():
            total[moment] += self.graph.ops[op].nbytes_workspace
        return total

    @cached_property
    def with_forced_saves(self) -> Ints:
        """``nbytes``, and what backward reads of values that only forward may compute: these are saved in any plan."""
        graph = self.graph
        forced = np.zeros(len(graph.values), np.bool_)
        for v in graph.backward_reads:
            producer = graph.producer[v]
            once = producer is not None and producer in graph.runs_once and graph.sides[producer] is Side.FORWARD
            forced[v] = once or producer is None
        return self.nbytes + self.if_saved.usage(forced, self.count).astype(np.int64)

    def working_set(self) -> tuple[int, Op | None]:
        """The most bytes that every plan has alive at one moment, and the op that runs then (None: end of forward)."""
        if not self.with_forced_saves.any():
            return 0, None
        peak = int(self.with_forced_saves.argmax())
        op = next((self.graph.ops[op] for op, moment in self.moment_of.items() if moment == peak), None)
        return int(self.with_forced_saves[peak]), op

    @cached_property
    def if_saved(self) -> ConditionalBytes:
        """Bytes if backward needs a value and its producer is not recomputed; one choice per value."""
        of_others = [[(0, self.count, nbytes)] if nbytes else [] for nbytes in self.graph.nbytes_of_others.tolist()]
        return ConditionalBytes.of([self._saved.get(v, []) + others for v, others in enumerate(of_others)])

    @cached_property
    def reader_pairs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The choices of ``if_reader_recomputed``: ops that are not recomputed, and for each a reader that is."""
        return tuple(op for op, _, _ in self._pairs), tuple(reader for _, reader, _ in self._pairs)

    @cached_property
    def if_reader_recomputed(self) -> ConditionalBytes:
        """Bytes after a value's own last read, if a reader is recomputed and its producer is not; a choice per pair."""
        return ConditionalBytes.of([lives for _, _, lives in self._pairs])

    # Lives of single values.

    def _count(self, value: int, first: int, last: int) -> None:
        """Count the bytes of ``value`` as unavoidable from moment ``first`` to ``last``."""
        if last >= first:
            self._change[first] += self.graph.values[value].nbytes
            self._change[last + 1] -= self.graph.values[value].nbytes

    def _last_moment(self, value: int, reader: int) -> int:
        """The last moment at which ``value`` is surely in memory, if ``reader`` is the last op to read it."""
        op, nbytes = self.graph.ops[reader], self.graph.values[value].nbytes
        overwritten = self.fuse and op.kind in FUSIBLE and any(self.graph.values[w].nbytes == nbytes for w in op.writes)
        return self.moment_of[reader] - overwritten

    def _readers(self, value: int, side: Side) -> list[int]:
        return [r for r in self.graph.readers[value] if self.graph.sides[r] is side]

    def _is_realized(self, op: Op) -> bool:
        """Whether the results of ``op`` are in memory, whatever reads them."""
        return not self.fuse or not self._fuses[op.id] or op.kind in ALWAYS_REALIZED

    def _is_drawn(self, op: Op) -> bool:
        """Whether the results of ``op`` are random numbers that may be drawn again in each reader."""
        return self.fuse and op.kind is Kind.SEEDED

    def _count_tangent(self, value: int) -> None:
        reads = [self.moment_of[r] for r in self._readers(value, Side.BACKWARD)]
        if value in self._gradients:
            reads = [self.count - 1]
        self._count(value, self.end_of_forward + 1, max(reads, default=-1))

    def _count_backward(self, value: int, op: Op) -> None:
        """A value that depends on tangents."""
        born, readers = self.moment_of[op.id], self._readers(value, Side.BACKWARD)
        if value in self._gradients:
            self._count(value, born, self.count - 1)
        elif not self._is_drawn(op) and (self._is_realized(op) or not all(self._fuses[r] for r in readers)):
            self._count(value, born, max([born, *(self._last_moment(value, r) for r in readers)]))

    def _count_forward(self, value: int, op: Op) -> None:
        """A value that does not depend on tangents: count what is unavoidable, note its lives if it is saved."""
        graph, nbytes, realized = self.graph, self.graph.values[value].nbytes, self._is_realized(op)
        if value in self._outputs and graph.holds_outputs:
            self._count(value, self.moment_of[op.id], self.count - 1)
            return
        if self._is_drawn(op) and value not in self._outputs:
            return
        first = self.moment_of[op.id] if graph.sides[op.id] is Side.FORWARD else self.end_of_forward
        in_forward = self._readers(value, Side.FORWARD)
        if value in self._outputs:
            self._count(value, first, self.end_of_forward)
            first = self.end_of_forward + 1
        elif first < self.end_of_forward and (realized or not all(self._fuses[r] for r in in_forward)):
            until = max([first, *(self._last_moment(value, r) for r in in_forward)])
            self._count(value, first, until)
            first = until + 1
        in_backward = self._readers(value, Side.BACKWARD)
        ends = {r: self._last_moment(value, r) for r in in_backward}
        read_at = {ends[r] for r in in_backward if ends[r] == self.moment_of[r] and (realized or not self._fuses[r])}
        for moment in read_at:
            self._count(value, moment, moment)
        last = self.count - 1 if value in self._gradients else max([self.end_of_forward, *ends.values()])
        self._last[value], self._read_at[value] = last, frozenset(read_at)
        counted = [(moment, moment + 1, -nbytes) for moment in read_at if first <= moment <= last]
        self._saved[value] = [(first, last + 1, nbytes), *counted]

    # Needs: what stays alive of a value in what is computed from it.

    @cached_property
    def _charged_argument(self) -> dict[int, int]:
        """For each op that may be recomputed, the one argument that its readers' needs are charged to."""
        charged: dict[int, int] = {}
        for op in self.graph.ops:
            candidates = [v for v in op.reads if v in self._saved]
            if self.graph.sides[op.id] is not Side.BACKWARD and candidates:
                charged[op.id] = min(candidates, key=self._preference)
        return charged

    def _preference(self, value: int) -> tuple[bool, int, int]:
        """Charge values that have bytes, then few readers outside backward, then many bytes."""
        nbytes = self.graph.values[value].nbytes
        return not nbytes, len(self.graph.readers[value]) - len(self._readers(value, Side.BACKWARD)), -nbytes

    @cached_property
    def _needs(self) -> dict[int, _Need]:
        """For each op that may be recomputed: what stays alive of its results, or of what is computed from them.

        This holds if backward runs the op and what it reads is gone.
        """
        needs: dict[int, _Need] = {}
        for op in reversed(self.graph.ops):
            if self.graph.sides[op.id] is not Side.BACKWARD:
                needs[op.id] = _Need.least(self._need_of(v, needs) for v in op.writes)
        return needs

    def _need_of(self, value: int, needs: dict[int, _Need]) -> _Need:
        graph, nbytes = self.graph, self.graph.values[value].nbytes
        if value not in self._saved:
            return _Need(0, 0)
        in_backward = self._readers(value, Side.BACKWARD)
        if value in self._gradients:
            return _Need(self.count, nbytes, self._read_at[value])
        if in_backward:  # a reader that fuses may overwrite the value, or what it is computed from
            end = max(self.moment_of[r] + (not self.fuse or graph.ops[r].kind not in FUSIBLE) for r in in_backward)
            return _Need(end, nbytes, self._read_at[value])
        if any(self._charged_argument.get(r) != value for r in graph.readers[value]):
            return _Need(0, 0)
        need = _Need.least(needs[r] for r in graph.readers[value])
        return _Need(need.end, min(need.nbytes, nbytes), need.counted)

    @cached_property
    def _pairs(self) -> list[tuple[int, int, list[Life]]]:
        """(producer that is not recomputed, reader that is, lives); each moment of a value belongs to one pair."""
        pairs = []
        for value, last in self._last.items():
            producer = self.graph.producer[value]
            assert producer is not None
            first, nbytes = max(last, self.end_of_forward) + 1, self.graph.values[value].nbytes
            readers = [r for r in self.graph.readers[value] if self._charged_argument.get(r) == value]
            for reader in sorted(readers, key=lambda r: (-self._needs[r].nbytes, self._needs[r].end)):
                need = self._needs[reader]
                held = min(need.nbytes, nbytes)
                if need.end > first and held:
                    counted = [(moment, moment + 1, -held) for moment in need.counted if first <= moment < need.end]
                    pairs.append((producer, reader, [(first, need.end, held), *counted]))
                    first = need.end
        return pairs
