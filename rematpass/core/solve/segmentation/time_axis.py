"""The timeline that bounds and prices stand on, fixed before anything is decided.

A moment is an op of forward or an own op of backward, in their order; a recomputation belongs to the op that it is
made for. A *position* is a moment of forward, and also the boundary right after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rematpass.core.cost import FREE, FUSIBLE, materialized
from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Side
from rematpass.core.ragged import Ints
from rematpass.core.schedule import Runs
from rematpass.core.simulate import Timeline


@dataclass(frozen=True)
class TimeAxis:
    """TimeAxis of ``graph``. ``fuse``: whether ops that fuse pass their readers on to what they read."""

    graph: JointGraph
    fuse: bool

    @cached_property
    def of_op(self) -> dict[int, int]:
        """The moment of each op of forward and of backward."""
        ops = *self.graph.forward_ops, *(op.id for op in self.graph.backward_ops)
        return {id: moment for moment, id in enumerate(ops)}

    @cached_property
    def count(self) -> int:
        return len(self.of_op)

    @cached_property
    def first_backward(self) -> int:
        return len(self.graph.forward_ops)

    @cached_property
    def in_memory(self) -> frozenset[int]:
        """Values that take bytes when they are recomputed."""
        return materialized(self.graph) if self.fuse else frozenset(range(len(self.graph.values)))

    @cached_property
    def made(self) -> Ints:
        """For each value, the position at which forward makes it; -1 for inputs and for what backward makes."""
        made = np.full(len(self.graph.values), -1, np.int64)
        for op in self.graph.ops:
            if self.graph.sides[op.id] is not Side.BACKWARD:
                made[list(op.writes)] = self._position(op)
        return made

    def _position(self, op: Op) -> int:
        """Forward's ops stand at their moment; an op of neither side right after what it reads."""
        if op.id in self.of_op:
            return self.of_op[op.id]
        producers = [self.graph.producer[v] for v in op.reads]
        return max((self._position(self.graph.ops[p]) for p in producers if p is not None), default=0)

    @cached_property
    def last_forward(self) -> Ints:
        """For each value, the last moment of forward that makes or reads it."""
        last: Ints = self.made.copy()
        for op in self.graph.ops:
            if self.graph.sides[op.id] is Side.FORWARD:
                last[list(op.reads)] = self.of_op[op.id]
        return last

    @cached_property
    def needed(self) -> tuple[Ints, Ints]:
        """For each value, the first and the last moment of backward that reads it; ``count`` and -1 where none does.

        A value that fuses away passes its readers on to what it is made of.
        """
        first = np.full(len(self.graph.values), self.count, np.int64)
        last = np.full(len(self.graph.values), -1, np.int64)
        last[list(self.graph.bwd_outputs)] = self.count - 1
        for op in reversed(self.graph.ops):
            if self.graph.sides[op.id] is Side.BACKWARD:
                start = end = self.of_op[op.id]
            elif op.kind in FUSIBLE | FREE and not any(v in self.in_memory for v in op.writes):
                start = min((int(first[v]) for v in op.writes), default=self.count)
                end = max((int(last[v]) for v in op.writes), default=-1)
            else:
                continue
            for v in op.reads:
                first[v], last[v] = min(first[v], start), max(last[v], end)
        return first, last

    @cached_property
    def entry(self) -> Ints:
        """For each position, the moment from which backward reads nothing of weight that forward makes after it.

        Of weight is what takes a thousandth of the largest value: a scale or a mask that is read to the end must not
        hold up all segments.
        """
        latest = np.full(self.first_backward + 1, self.first_backward, np.int64)
        _, last = self.needed
        heavy = self.nbytes.max(initial=0.0) / 1000
        for v in self.in_memory:
            if self.made[v] > 0 and self.nbytes[v] >= heavy:
                latest[self.made[v] - 1] = max(latest[self.made[v] - 1], last[v] + 1)
        entry: Ints = np.maximum.accumulate(latest[::-1])[::-1][: self.first_backward]
        return entry

    def live(self, timeline: Timeline) -> NDArray[np.float64]:
        """Bytes at each moment: the most while its op, or a recomputation for it, runs."""
        return self._most(timeline, timeline.live_array.astype(np.float64))

    def _most(self, timeline: Timeline, nbytes: NDArray[np.float64]) -> NDArray[np.float64]:
        """At each moment the most of ``nbytes``, one for each run; a recomputation is for the op that comes next."""
        of_op = np.full(len(self.graph.ops), -1, np.int64)
        of_op[list(self.of_op)] = list(self.of_op.values())
        runs = Runs.of(timeline.runs)
        moment = np.where(runs.copy > 0, -1, of_op[runs.op])
        steps = np.arange(len(moment))
        following = np.minimum.accumulate(np.where(moment >= 0, steps, len(moment))[::-1])[::-1]
        most = np.zeros(self.count)
        np.maximum.at(most, np.append(moment, self.count - 1)[following], nbytes)
        return most

    def own_bytes(self, timeline: Timeline) -> NDArray[np.float64]:
        """Bytes at each moment that belong to backward itself and to forward's outputs: gradients and temporaries.

        ``timeline``: of a plan that recomputes next to nothing, so that what is alive is backward's own.
        """
        own = np.zeros(len(timeline.runs) + 1)
        outputs = set(self.graph.fwd_outputs)
        for t in timeline.intervals:
            producer = self.graph.producer[t.value]
            theirs = producer is None or self.graph.sides[producer] is Side.BACKWARD or t.value in outputs
            if theirs:
                own[t.born] += t.nbytes
                own[t.end + 1] -= t.nbytes
        return self._most(timeline, np.cumsum(own)[:-1])

    @cached_property
    def nbytes(self) -> NDArray[np.float64]:
        """Bytes of each value; 0 for what stands outside the step."""
        return np.where(self.graph.marked(self.graph.handed_in), 0.0, self.graph.nbytes)
