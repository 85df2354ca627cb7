"""A time axis that does not depend on the plan: what bounds and prices refer to before anything is decided.

A *moment* is one position on it: the own ops of forward in their order, then the own ops of backward in theirs. A
recomputation belongs to the moment of the backward op that it is made for::

        moment      0    1    2    3 │  4    5    6    7
                    forward's ops    │  backward's own ops
                                     first_backward

A boundary between segments of forward is named by the moment right before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.cost import FREE, FUSIBLE, materialized
from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Side
from rematpass.core.ragged import Floats, Ints
from rematpass.core.schedule import RunArrays
from rematpass.core.simulate import Timeline
from rematpass.core.solve.effort import DEFAULT_EFFORT, Effort


@dataclass(frozen=True)
class TimeAxis:
    """The moments of ``graph``, and when each value is made and needed.

    ``fuse``: whether ops that fuse pass their readers on to what they read, as a fusing compiler does.
    """

    graph: JointGraph
    fuse: bool
    effort: Effort = DEFAULT_EFFORT

    @cached_property
    def moment_of(self) -> dict[int, int]:
        """The moment of each own op of forward and of backward, by op id."""
        ops = *self.graph.forward_ops, *(op.id for op in self.graph.backward_ops)
        return {id: moment for moment, id in enumerate(ops)}

    @cached_property
    def count(self) -> int:
        """The number of moments."""
        return len(self.moment_of)

    @cached_property
    def first_backward(self) -> int:
        """The moment at which backward starts."""
        return len(self.graph.forward_ops)

    @cached_property
    def in_memory(self) -> frozenset[int]:
        """Values that take bytes when they are recomputed."""
        return materialized(self.graph) if self.fuse else frozenset(range(len(self.graph.values)))

    @cached_property
    def nbytes(self) -> Floats:
        """Bytes of each value; 0 for values that exist before the step."""
        return np.where(self.graph.marked(self.graph.forward_inputs), 0.0, self.graph.nbytes)

    @cached_property
    def made(self) -> Ints:
        """For each value, the moment at which forward makes it; -1 for inputs and for what backward makes."""
        made = np.full(len(self.graph.values), -1, np.int64)
        for op in self.graph.ops:
            if self.graph.sides[op.id] is not Side.BACKWARD:
                made[list(op.writes)] = self._forward_moment(op)
        return made

    def _forward_moment(self, op: Op) -> int:
        """An own op of forward has its moment; an op of neither side shares the latest moment of its arguments."""
        if op.id in self.moment_of:
            return self.moment_of[op.id]
        producers = [self.graph.producer[v] for v in op.reads]
        return max((self._forward_moment(self.graph.ops[p]) for p in producers if p is not None), default=0)

    @cached_property
    def last_forward(self) -> Ints:
        """For each value, the last moment of forward that makes or reads it."""
        last: Ints = self.made.copy()
        for op in self.graph.ops:
            if self.graph.sides[op.id] is Side.FORWARD:
                last[list(op.reads)] = self.moment_of[op.id]
        return last

    @cached_property
    def last_backward(self) -> Ints:
        """For each value, the last moment of backward that reads it; -1 where none does.

        A value that is fused away passes its readers on to the values that it is computed from.
        """
        last = np.full(len(self.graph.values), -1, np.int64)
        last[list(self.graph.bwd_outputs)] = self.count - 1
        for op in reversed(self.graph.ops):
            if self.graph.sides[op.id] is Side.BACKWARD:
                end = self.moment_of[op.id]
            elif op.kind in FUSIBLE | FREE and not any(v in self.in_memory for v in op.writes):
                end = max((int(last[v]) for v in op.writes), default=-1)
            else:
                continue
            for v in op.reads:
                last[v] = max(last[v], end)
        return last

    @cached_property
    def entry(self) -> Ints:
        """For each moment of forward, the moment at which backward enters what forward has made up to there.

        From that moment on, backward reads nothing that forward makes later, apart from negligible values
        (``Effort.negligible_value``).
        """
        latest = np.full(self.first_backward + 1, self.first_backward, np.int64)
        least = self.nbytes.max(initial=0.0) / self.effort.negligible_value
        for v in self.in_memory:
            if self.made[v] > 0 and self.nbytes[v] >= least:
                latest[self.made[v] - 1] = max(latest[self.made[v] - 1], self.last_backward[v] + 1)
        entry: Ints = np.maximum.accumulate(latest[::-1])[::-1][: self.first_backward]
        return entry

    def live(self, timeline: Timeline) -> Floats:
        """Bytes at each moment: the most while its op, or a recomputation for it, runs."""
        return self._highest(timeline, timeline.live_array.astype(np.float64))

    def own_bytes(self, timeline: Timeline) -> Floats:
        """Bytes at each moment of what backward itself makes (gradients, temporaries), tangents and forward's outputs.

        ``timeline``: of a plan that recomputes next to nothing, so that what backward makes is its own.
        """
        own = np.zeros(len(timeline.runs) + 1)
        outputs = set(self.graph.fwd_outputs)
        for t in timeline.intervals:
            producer = self.graph.producer[t.value]
            if producer is None or self.graph.sides[producer] is Side.BACKWARD or t.value in outputs:
                own[t.born] += t.nbytes
                own[t.end + 1] -= t.nbytes
        return self._highest(timeline, np.cumsum(own)[:-1])

    def _highest(self, timeline: Timeline, nbytes: Floats) -> Floats:
        """For each moment, the highest of ``nbytes``, which has one entry per run of the timeline."""
        of_op = np.full(len(self.graph.ops), -1, np.int64)
        of_op[list(self.moment_of)] = list(self.moment_of.values())
        runs = RunArrays.of(timeline.runs)
        moment = np.where(runs.copy > 0, -1, of_op[runs.op])  # -1: a recomputation, made for the next own op
        steps = np.arange(len(moment))
        following = np.minimum.accumulate(np.where(moment >= 0, steps, len(moment))[::-1])[::-1]
        highest = np.zeros(self.count)
        np.maximum.at(highest, np.append(moment, self.count - 1)[following], nbytes)
        return highest
