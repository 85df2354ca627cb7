"""Bytes over time: how much memory a plan holds while each of its runs runs.

What counts is what the step itself allocates: saved values, temporaries, outputs, gradients, the tangents that it is
given, and the workspace of library calls. Memory that exists before the step does not count: parameters, buffers,
inputs. If a step calls the graph several times before backward, the timeline is that of the last call and its backward,
in addition to everything that the other calls have saved.

With ``fuse``, virtual copies take no bytes (``materialization``), and an op that fuses reuses the memory of an argument
of the same layout whose life ends with it, instead of allocating (``_overwritten``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rematpass.core.cost import FUSIBLE, Costs
from rematpass.core.graph import JointGraph
from rematpass.core.liveness import last_position
from rematpass.core.materialization import Materialization, materialization
from rematpass.core.ragged import Ints, LazySequence
from rematpass.core.schedule import Plan, Run, StepArrays


class LiveInterval(NamedTuple):
    """A copy that takes bytes from position ``born`` to position ``end`` of the timeline, both included.

    ``made``: the position of the run that creates it, -1 for inputs; ``reads``: the positions that read it, directly or
    through virtual copies; ``outlives``: it is an output that lives to the end of backward.
    """

    value: int
    copy: int
    nbytes: int
    born: int
    end: int
    made: int = -1
    reads: tuple[int, ...] = ()
    outlives: bool = False


@dataclass(frozen=True)
class Timeline:
    """Bytes per run of a plan, and its seconds. A position is an index of ``runs``."""

    runs: Sequence[Run]
    first_backward: int  # position of backward's first run
    live: tuple[int, ...]  # bytes while each run runs
    intervals: Sequence[LiveInterval]
    recompute_seconds: float  # what backward spends on running ops again
    step_seconds: float  # the whole step
    returned: tuple[int, ...] = ()  # the part of ``live`` that exists only because the caller holds forward's outputs
    nbytes_of_others: int = 0  # the part of ``live`` that other calls of the step have saved, the same at each position
    realized: tuple[tuple[int, int], ...] = ()  # see ``Plan.realized``

    @cached_property
    def peak(self) -> int:
        """The most bytes at any position."""
        return max(self.live, default=0)

    @cached_property
    def live_array(self) -> Ints:
        """``live`` as an array."""
        return np.array(self.live, np.int64)

    @property
    def peak_without_outputs(self) -> int:
        """The peak if the caller drops forward's outputs before backward starts, in bytes."""
        if not self.returned:
            return self.peak
        return max((live - returned for live, returned in zip(self.live, self.returned, strict=False)), default=0)

    def at_peak(self) -> list[LiveInterval]:
        """The intervals that take bytes at the first position of the peak, the largest first."""
        if not self.live:
            return []
        position = self.live.index(self.peak)
        found = [t for t in self.intervals if t.born <= position <= t.end and t.nbytes]
        return sorted(found, key=lambda t: (-t.nbytes, t.value, t.copy))


def simulate(graph: JointGraph, plan: Plan, costs: Costs, *, fuse: bool = True) -> Timeline:
    """The timeline of ``plan``. ``fuse``: a fusing compiler runs it.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    return timeline_of(graph, plan, costs, materialization(graph, plan, fuse=fuse), fuse=fuse)


def timeline_of(graph: JointGraph, plan: Plan, costs: Costs, memory: Materialization, *, fuse: bool = True) -> Timeline:
    """The timeline of ``plan``, whose ``materialization`` is ``memory``."""
    trace, count = memory.trace, len(memory.trace.runs)
    last_read = last_position(memory.reader, memory.read, len(trace.value))
    born = np.maximum(trace.born, 0)
    end = np.where(trace.outlives, count - 1, np.maximum(np.maximum(last_read, born), trace.returned_at))
    if fuse:
        end[_overwritten(graph, memory, end)] -= 1  # the copy that takes over its memory is counted from here on
    counted = memory.in_memory & ~graph.marked(graph.forward_inputs)[trace.value]
    nbytes = graph.nbytes[trace.value]
    of_others = int(graph.nbytes_of_others[list(plan.saved)].sum())
    live = _sum_intervals(born[counted], end[counted], nbytes[counted], count)
    live += graph.nbytes_workspace[trace.op] + of_others

    # After backward's last read, outputs of forward that are not gradients exist only for the caller.
    only_output = graph.marked(graph.fwd_outputs) & ~graph.marked(graph.bwd_outputs)
    held = np.flatnonzero(counted & trace.outlives & (born < trace.first_backward) & only_output[trace.value])
    used = np.where(graph.marked(plan.saved)[trace.value[held]], last_read[held], -1)
    since = np.maximum(used + 1, trace.first_backward)

    return Timeline(
        trace.runs,
        trace.first_backward,
        tuple(live.tolist()),
        _LiveIntervals(memory, born, end, nbytes, np.flatnonzero(counted)),
        recompute_seconds(graph, plan, costs),
        step_seconds(graph, plan, costs),
        tuple(_sum_intervals(since, end[held], nbytes[held], count).tolist()),
        of_others,
        memory.realized_pairs,
    )


def recompute_seconds(graph: JointGraph, plan: Plan, costs: Costs) -> float:
    """``Timeline.recompute_seconds`` of ``plan``, without simulating it."""
    forward, backward = _run_counts(graph, plan)
    again = np.where(forward > 0, backward, np.maximum(backward - 1, 0))
    repeated = np.flatnonzero(again)
    return math.fsum((again[repeated] * costs.run_array[repeated]).tolist())


def step_seconds(graph: JointGraph, plan: Plan, costs: Costs) -> float:
    """``Timeline.step_seconds`` of ``plan``, without simulating it."""
    forward, backward = _run_counts(graph, plan)
    kept = [costs.keep[v] for v in plan.saved]
    return math.fsum([*((forward + backward) * costs.run_array).tolist(), *kept])


def _run_counts(graph: JointGraph, plan: Plan) -> tuple[Ints, Ints]:
    """How often forward and backward run each op."""
    sides = (StepArrays.of(side).runs.op for side in (plan.fwd, plan.bwd))
    forward, backward = (np.bincount(ops, minlength=len(graph.ops)) for ops in sides)
    return forward, backward


class _LiveIntervals(LazySequence[LiveInterval]):
    """The intervals of one timeline: most of the plans that solvers try are never asked for them."""

    def __init__(self, memory: Materialization, born: Ints, end: Ints, nbytes: Ints, copies: Ints) -> None:
        self.memory, self.copies = memory, copies
        self.columns = (memory.trace.value, memory.trace.number, nbytes, born, end, memory.trace.born)

    def _create_items(self) -> tuple[LiveInterval, ...]:
        memory, copies = self.memory, self.copies
        order = np.argsort(memory.read, kind="stable")
        first, stop = (np.searchsorted(memory.read[order], copies, side=side).tolist() for side in ("left", "right"))
        readers = memory.reader[order].tolist()
        reads = [tuple(readers[i:j]) for i, j in zip(first, stop, strict=True)]
        columns = (column[copies].tolist() for column in self.columns)
        return tuple(map(LiveInterval, *columns, reads, memory.trace.outlives[copies].tolist()))

    def __len__(self) -> int:
        return len(self.copies)


def _sum_intervals(first: Ints, last: Ints, nbytes: Ints, count: int) -> Ints:
    """For each of ``count`` positions, the bytes of the intervals that contain it: ``first[i]`` to ``last[i]``."""
    change = np.zeros(count + 2, np.int64)  # one more, for tangents of a backward without runs
    np.add.at(change, first, nbytes)
    np.subtract.at(change, last + 1, nbytes)
    return np.cumsum(change)[:count]


def _overwritten(graph: JointGraph, memory: Materialization, end: Ints) -> Ints:
    """The copies whose memory is reused: the run that ends their life fuses and writes a copy of the same layout.

    A run reuses each argument once, at most as many as it writes copies of that layout, and only arguments that it
    reads element by element. Inputs, tangents and outputs are never overwritten.

    Source: ``decide_inplace_update`` and ``can_inplace`` in torch/_inductor/scheduler.py.
    """
    trace = memory.trace
    fuses = graph.is_of(FUSIBLE)[trace.op]
    new = np.flatnonzero(memory.in_memory & graph.made_by(FUSIBLE)[trace.value])
    ends_here = fuses[memory.reader] & (end[memory.read] == memory.reader) & ~memory.elsewhere
    ends_here &= memory.can_be_overwritten(graph)[memory.read]
    old, position = memory.read[ends_here], memory.reader[ends_here]
    # One integer per (position, layout), to match what is offered with what is wanted.
    layout, stride = graph.layout[trace.value], len(graph.values)
    wanted = np.sort(trace.born[new] * stride + layout[new])
    offered = position * stride + layout[old]
    order = np.argsort(offered, kind="stable")
    offered = offered[order]
    rank = np.arange(len(offered)) - np.searchsorted(offered, offered)  # among the offers of the same key
    places = np.searchsorted(wanted, offered, side="right") - np.searchsorted(wanted, offered)
    overwritten: Ints = old[order[rank < places]]
    return overwritten
