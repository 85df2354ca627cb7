"""What every plan has in memory, whatever it saves and recomputes: what a proof may count on.

TimeAxis stand still: forward's own ops in their order, the *turn* (the end of forward), backward's own ops in theirs.
At each of them some bytes are alive in every plan (``unavoidable``), and more in the plans that make a certain choice
(``Claims``). Choices are those of the cut (``mincut``): an op runs again in backward, usefully, or it does not.

- *Unavoidable*: forward's outputs from their birth on, or to the turn where the caller lets them go; tangents to their
  last read; what backward makes, from its birth to its last read, gradients to the end; in forward what its own ops
  still read; what an own op of backward reads, at its moment; the workspace of each own op.
- *Saved*: if the op of a value does not run again, then what backward reads of it is the one copy that forward made,
  which lives from its birth to the last of backward's own ops that read it. Where a step calls the graph several times,
  the other calls have theirs at every moment.
- *Held*: if that value's reader runs again, then the value or something made of it lives until the last own op that
  asks for it::

        v (saved) ─▶ [exp, again] ─▶ u ─▶ [own op at moment t]        before t: v, or else u, is in memory

  for nothing can make u again once v is gone. An op with several arguments passes this on to one of them only, so that
  no byte is counted twice.

Under a compiler that fuses, a value may be virtual: computed in its readers, so that what it is made of lives until
they have run. Counted is then only what cannot be virtual: what an op makes that is not computed anew in each reader,
what an op that does not fuse reads, and what is handed out or saved. An op that fuses may overwrite what it reads for
the last time: there a life ends one moment early. Random numbers that are drawn from a seed are not counted at all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rematpass.core.cost import ALWAYS_REALIZED, FREE, FUSIBLE
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Claims:
    """Bytes that choices entail: ``choice[i]`` has ``nbytes[i]`` alive from ``first[i]`` to before ``end[i]``."""

    count: int  # of choices
    choice: Ints
    first: Ints
    end: Ints
    nbytes: Floats

    @classmethod
    def of(cls, lives: list[list[tuple[int, int, int]]]) -> Claims:
        """From the lives (first, end, bytes) of each choice."""
        flat = [(choice, *life) for choice, its in enumerate(lives) for life in its if life[0] < life[1] and life[2]]
        table = np.array(flat, np.int64).reshape(-1, 4)
        return cls(len(lives), table[:, 0], table[:, 1], table[:, 2], table[:, 3].astype(np.float64))

    def cost(self, prices: Floats) -> Floats:
        """What each choice pays under a price per byte at each moment; never negative."""
        total = np.concatenate([[0.0], np.cumsum(prices)])
        paid = np.bincount(self.choice, self.nbytes * (total[self.end] - total[self.first]), self.count)
        return np.maximum(paid, 0.0)

    def usage(self, chosen: NDArray[np.bool_], count: int) -> Floats:
        """Bytes alive at each of ``count`` moments when the choices ``chosen`` are made."""
        its = chosen[self.choice]
        change: Floats = np.bincount(self.first[its], self.nbytes[its], count + 1).astype(np.float64)
        change -= np.bincount(self.end[its], self.nbytes[its], count + 1)
        usage: Floats = np.cumsum(change)[:count]
        return usage


@dataclass(frozen=True)
class _Need:
    """``nbytes`` at every moment of backward before ``end`` but those in ``holes``, where they count already."""

    end: int
    nbytes: int
    holes: frozenset[int] = frozenset()

    @staticmethod
    def least(needs: Iterable[_Need]) -> _Need:
        """What is needed whichever of these comes true."""
        needs = list(needs)
        if not needs:
            return _Need(0, 0)
        holes = frozenset().union(*(n.holes for n in needs))
        return _Need(min(n.end for n in needs), min(n.nbytes for n in needs), holes)


class Certain:
    """The certain bytes of one graph. ``fuse``: whether a fusing compiler runs the plan (``simulate``)."""

    def __init__(self, graph: JointGraph, fuse: bool) -> None:
        self.graph, self.fuse = graph, fuse
        forward = graph.forward_ops
        own = [op.id for op in graph.backward_ops]
        self.turn = len(forward)
        self.count = len(forward) + 1 + len(own)
        self.moment = {op: i for i, op in enumerate(forward)} | {op: self.turn + 1 + i for i, op in enumerate(own)}
        self._fuses = [op.kind in FUSIBLE | FREE for op in graph.ops]
        self._outputs, self._gradients = set(graph.fwd_outputs), set(graph.bwd_outputs)
        self._change = np.zeros(self.count + 1, np.int64)
        self._saved: dict[int, list[tuple[int, int, int]]] = {}  # value -> its lives when it is saved
        self._last: dict[int, int] = {}  # value -> the moment at which the last of them ends
        self._asked: dict[int, frozenset[int]] = {}  # value -> own moments at which it is alive in any case
        for value in graph.values:
            producer = graph.producer[value.id]
            if value.origin is Origin.TANGENT:
                self._tangent(value.id)
            elif producer is not None and graph.sides[producer] is Side.BACKWARD:
                self._of_backward(value.id, graph.ops[producer])
            elif producer is not None:
                self._of_forward(value.id, graph.ops[producer])

    @cached_property
    def unavoidable(self) -> Ints:
        """Bytes at each moment that every plan has alive."""
        total: Ints = np.cumsum(self._change)[:-1]
        for op, moment in self.moment.items():
            total[moment] += self.graph.ops[op].nbytes_workspace
        return total

    @cached_property
    def always(self) -> Ints:
        """The same, and what backward reads of values that only one run of forward may make."""
        graph = self.graph
        forced = np.zeros(len(graph.values), np.bool_)
        for v in graph.backward_reads:
            producer = graph.producer[v]
            once = producer is not None and producer in graph.runs_once and graph.sides[producer] is Side.FORWARD
            forced[v] = once or producer is None
        return self.unavoidable + self.saved.usage(forced, self.count).astype(np.int64)

    def working_set(self) -> tuple[int, Op | None]:
        """The most bytes that every plan has alive at one moment, and the op that runs then (None: the turn)."""
        if not self.always.any():
            return 0, None
        moment = int(self.always.argmax())
        return int(self.always[moment]), next((self.graph.ops[o] for o, m in self.moment.items() if m == moment), None)

    @cached_property
    def saved(self) -> Claims:
        """What lives when the op of a value does not run again though backward wants the value: a choice per value."""
        of_others = [[(0, self.count, nbytes)] if nbytes else [] for nbytes in self.graph.nbytes_of_others.tolist()]
        return Claims.of([self._saved.get(v, []) + others for v, others in enumerate(of_others)])

    @cached_property
    def pairs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The choices of ``held``: ops that do not run again, and for each an op that does and reads its value."""
        return tuple(op for op, _, _ in self._holds), tuple(reader for _, reader, _ in self._holds)

    @cached_property
    def held(self) -> Claims:
        """What lives longer than its own readers ask, because another reader runs again: a choice per pair of ops."""
        return Claims.of([lives for _, _, lives in self._holds])

    # Lives: the bytes of single values.

    def _always(self, value: int, first: int, last: int) -> None:
        if last >= first:
            self._change[first] += self.graph.values[value].nbytes
            self._change[last + 1] -= self.graph.values[value].nbytes

    def _last_moment(self, value: int, reader: int) -> int:
        """The last moment at which ``value`` is in memory for sure, if ``reader`` is the last to read it."""
        op, nbytes = self.graph.ops[reader], self.graph.values[value].nbytes
        overwritten = self.fuse and op.kind in FUSIBLE and any(self.graph.values[w].nbytes == nbytes for w in op.writes)
        return self.moment[reader] - overwritten

    def _readers(self, value: int, side: Side) -> list[int]:
        return [r for r in self.graph.readers[value] if self.graph.sides[r] is side]

    def _is_written(self, op: Op) -> bool:
        """Whether what ``op`` makes is in memory whoever reads it."""
        return not self.fuse or not self._fuses[op.id] or op.kind in ALWAYS_REALIZED

    def _is_drawn(self, op: Op) -> bool:
        return self.fuse and op.kind is Kind.SEEDED

    def _tangent(self, value: int) -> None:
        reads = [self.moment[r] for r in self._readers(value, Side.BACKWARD)]
        if value in self._gradients:
            reads = [self.count - 1]
        self._always(value, self.turn + 1, max(reads, default=-1))

    def _of_backward(self, value: int, op: Op) -> None:
        born, readers = self.moment[op.id], self._readers(value, Side.BACKWARD)
        if value in self._gradients:
            self._always(value, born, self.count - 1)
        elif not self._is_drawn(op) and (self._is_written(op) or not all(self._fuses[r] for r in readers)):
            self._always(value, born, max([born, *(self._last_moment(value, r) for r in readers)]))

    def _of_forward(self, value: int, op: Op) -> None:
        """A value that does not depend on tangents."""
        graph, nbytes, written = self.graph, self.graph.values[value].nbytes, self._is_written(op)
        if value in self._outputs and graph.holds_outputs:
            self._always(value, self.moment[op.id], self.count - 1)
            return
        if self._is_drawn(op) and value not in self._outputs:
            return
        first = self.moment[op.id] if graph.sides[op.id] is Side.FORWARD else self.turn
        early = self._readers(value, Side.FORWARD)
        if value in self._outputs:
            self._always(value, first, self.turn)
            first = self.turn + 1
        elif first < self.turn and (written or not all(self._fuses[r] for r in early)):
            until = max([first, *(self._last_moment(value, r) for r in early)])
            self._always(value, first, until)
            first = until + 1
        late = self._readers(value, Side.BACKWARD)
        ends = {r: self._last_moment(value, r) for r in late}
        asked = {ends[r] for r in late if ends[r] == self.moment[r] and (written or not self._fuses[r])}
        for moment in asked:
            self._always(value, moment, moment)
        last = self.count - 1 if value in self._gradients else max([self.turn, *ends.values()])
        self._last[value], self._asked[value] = last, frozenset(asked)
        holes = [(moment, moment + 1, -nbytes) for moment in asked if first <= moment <= last]
        self._saved[value] = [(first, last + 1, nbytes), *holes]

    # Needs: what lives on in what is made of it.

    @cached_property
    def _inplace_candidate(self) -> dict[int, int]:
        """For each op that a cut can move, the one argument that it passes its readers' needs on to."""
        inplace_candidates: dict[int, int] = {}
        for op in self.graph.ops:
            candidates = [v for v in op.reads if v in self._saved]
            if self.graph.sides[op.id] is not Side.BACKWARD and candidates:
                inplace_candidates[op.id] = min(candidates, key=self._readers_again_then_size)
        return inplace_candidates

    def _readers_again_then_size(self, value: int) -> tuple[bool, int, int]:
        nbytes = self.graph.values[value].nbytes
        return not nbytes, len(self.graph.readers[value]) - len(self._readers(value, Side.BACKWARD)), -nbytes

    @cached_property
    def _needs(self) -> dict[int, _Need]:
        """For each op that a cut can move: what lives in backward of what it makes, or of what is made of that, if it
        runs there and what it reads is gone."""
        needs: dict[int, _Need] = {}
        for op in reversed(self.graph.ops):
            if self.graph.sides[op.id] is not Side.BACKWARD:
                needs[op.id] = _Need.least(self._need_of(v, needs) for v in op.writes)
        return needs

    def _need_of(self, value: int, needs: dict[int, _Need]) -> _Need:
        graph, nbytes = self.graph, self.graph.values[value].nbytes
        if value not in self._saved:
            return _Need(0, 0)
        late = self._readers(value, Side.BACKWARD)
        if value in self._gradients:
            return _Need(self.count, nbytes, self._asked[value])
        if late:  # a reader that fuses may overwrite it, or what it is made of
            end = max(self.moment[r] + (not self.fuse or graph.ops[r].kind not in FUSIBLE) for r in late)
            return _Need(end, nbytes, self._asked[value])
        if any(self._inplace_candidate.get(r) != value for r in graph.readers[value]):
            return _Need(0, 0)
        need = _Need.least(needs[r] for r in graph.readers[value])
        return _Need(need.end, min(need.nbytes, nbytes), need.holes)

    @cached_property
    def _holds(self) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
        """(op that does not run again, reader that does, lives), each moment of a value's extra life once."""
        holds = []
        for value, last in self._last.items():
            producer = self.graph.producer[value]
            assert producer is not None
            first, nbytes = max(last, self.turn) + 1, self.graph.values[value].nbytes
            readers = [r for r in self.graph.readers[value] if self._inplace_candidate.get(r) == value]
            for reader in sorted(readers, key=lambda r: (-self._needs[r].nbytes, self._needs[r].end)):
                need = self._needs[reader]
                held = min(need.nbytes, nbytes)
                if need.end > first and held:
                    holes = [(hole, hole + 1, -held) for hole in need.holes if first <= hole < need.end]
                    holds.append((producer, reader, [(first, need.end, held), *holes]))
                    first = need.end
        return holds
