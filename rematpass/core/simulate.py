"""Bytes over time: what a plan keeps in memory at each of its steps.

Counted is what the step itself allocates: saved values, temporaries, outputs, gradients, and the tangents it is
handed. Not counted is what stood before it: parameters, buffers, inputs. Where a step calls the graph several times
before backward, the walk is one through the last call and its backward, when the others have saved all that they save.

With ``fuse`` the walk knows what a fusing compiler leaves out. A copy is *virtual* when its op fuses and each of its
readers does: it is then computed inside their kernels and takes no bytes, but what it reads has to live until they
have run::

        a ──▶ [mul] ──▶ b (virtual) ──▶ [add] ──▶ c          a lives until add has run

and an op that fuses overwrites an argument of the same size that dies with it, instead of taking new bytes.

Some copies a compiler would compute in each of their readers although writing them takes fewer bytes: a sum whose terms
nobody else wants, say, which keeps two gradients alive instead of one. Those are *written* on purpose (``emit`` marks
them): it takes fewer bytes, and later readers read one buffer instead of many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rematpass.core.cost import ALWAYS_REALIZED, FREE, FUSIBLE, Costs
from rematpass.core.graph import JointGraph
from rematpass.core.liveness import Trace, replay
from rematpass.core.liveness import last_position as last_of
from rematpass.core.op import Kind
from rematpass.core.ragged import Bools, Ints, LazySequence, Rows
from rematpass.core.schedule import Plan, Run, StepArrays

# A copy whose computation reads more buffers than this is written to memory, instead of being computed in its one
# reader (by whether the device is a CPU) or in each of several. Sums that grow term by term end here.
# Source: torch._inductor.config, realize_acc_reads_threshold and realize_reads_threshold.
_MOST_READS_FOR_ONE = {True: 12, False: 8}
_MOST_READS_FOR_SEVERAL = 4


class LiveInterval(NamedTuple):
    """A copy that takes bytes from position ``born`` to position ``end`` of the timeline, both included.

    ``made``: the position of the run that makes it, -1 when it was there before; ``reads``: the positions at which it
    is read, through what is fused; ``outlives``: it is handed out at the end.
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
    """``live[i]``: bytes while ``runs[i]`` runs; backward starts at ``first_backward``.

    ``returned[i]``: those of them that are alive only because the caller holds forward's outputs; ``of_others``: those
    that other calls of the same step have saved, the same at each run.
    ``recompute_seconds`` is what backward spends on running ops again, ``step_seconds`` the whole step.
    """

    runs: Sequence[Run]
    first_backward: int
    live: tuple[int, ...]
    intervals: Sequence[LiveInterval]
    recompute_seconds: float
    step_seconds: float
    returned: tuple[int, ...] = ()
    of_others: int = 0

    @cached_property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return max(self.live, default=0)

    @cached_property
    def live_array(self) -> Ints:
        """``live``, to reckon with."""
        return np.array(self.live, np.int64)

    @property
    def peak_without_outputs(self) -> int:
        """The same if the caller lets go of forward's outputs before backward starts."""
        if not self.returned:
            return self.peak
        return max((all_ - theirs for all_, theirs in zip(self.live, self.returned, strict=False)), default=0)

    def at_peak(self) -> list[LiveInterval]:
        """Who takes the bytes at the (first) peak, the largest first."""
        if not self.live:
            return []
        moment = self.live.index(self.peak)
        there = [t for t in self.intervals if t.born <= moment <= t.end and t.nbytes]
        return sorted(there, key=lambda t: (-t.nbytes, t.value, t.copy))


@dataclass(frozen=True, eq=False)
class Materialization:
    """Which copies of ``lives`` take bytes, and which of those each run reads.

    ``made_of[c]``: the copies in memory that whoever reads the virtual copy c reads. Run ``reader[i]`` reads copy
    ``read[i]``, which is in memory, through what is virtual; each pair stands there once, positions ascend.
    ``written``: the copies that are in memory only because writing them frees more than it takes.
    """

    lives: Trace
    in_memory: Bools
    made_of: dict[int, tuple[int, ...]]
    reader: Ints
    read: Ints
    realized: frozenset[int] = frozenset()


def materialization(graph: JointGraph, plan: Plan, *, fuse: bool = True) -> Materialization:
    """Replay ``plan`` and find what a fusing compiler leaves out.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    lives = replay(graph, plan)
    in_memory = np.ones(len(lives.value), np.bool_)
    if not fuse:
        return Materialization(lives, in_memory, {}, lives.reader, lives.read)
    made_of, realized = _made_of(graph, plan, lives)
    virtual = np.fromiter(made_of, np.int64, len(made_of))
    in_memory[virtual] = False
    reader, read = _through(lives, in_memory, virtual, Rows.of(list(made_of.values())))
    gone = _made_and_read_in_one_kernel(graph, lives, in_memory, reader, read)
    if gone.any():
        in_memory &= ~gone
        made_of = {c: tuple([s for s in of if not gone[s]]) for c, of in made_of.items()}
        reader, read = reader[~gone[read]], read[~gone[read]]
    return Materialization(lives, in_memory, made_of, reader, read, realized)


def _through(lives: Trace, in_memory: Bools, virtual: Ints, made_of: Rows) -> tuple[Ints, Ints]:
    """What each run reads in memory: where it reads a ``virtual`` copy, what that is ``made_of``."""
    row_of = np.full(len(in_memory), -1, np.int64)
    row_of[virtual] = np.arange(len(virtual))
    direct = in_memory[lives.read]
    which, sources = made_of.take(row_of[lives.read[~direct]])
    pairs = np.append(
        lives.reader[direct] * len(in_memory) + lives.read[direct],
        lives.reader[~direct][which] * len(in_memory) + sources,
    )
    pairs.sort()
    once = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
    reader, read = np.divmod(pairs[once], max(1, len(in_memory)))
    return reader, read


def simulate(graph: JointGraph, plan: Plan, costs: Costs, *, fuse: bool = True) -> Timeline:
    """Walk ``plan`` and count.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    return timeline_of(graph, plan, costs, materialization(graph, plan, fuse=fuse), fuse=fuse)


def timeline_of(graph: JointGraph, plan: Plan, costs: Costs, there: Materialization, *, fuse: bool = True) -> Timeline:
    """The timeline of ``plan``, whose ``materialization`` is known."""
    lives, count = there.lives, len(there.lives.runs)
    last = last_of(there.reader, there.read, len(lives.value))
    born = np.maximum(lives.born, 0)
    end = np.where(lives.outlives, count - 1, np.maximum(np.maximum(last, born), lives.returned_at))
    if fuse:
        end[_overwritten(graph, there, end)] -= 1
    counted = there.in_memory & ~graph.marked(graph.forward_inputs)[lives.value]
    nbytes = graph.nbytes[lives.value]
    of_others = int(graph.nbytes_of_others[list(plan.saved)].sum())
    live = _sums(born[counted], end[counted], nbytes[counted], count) + graph.nbytes_workspace[lives.op] + of_others

    # What the caller holds: outputs of forward that are no gradients, from when backward has used them to the end.
    theirs = graph.marked(graph.fwd_outputs) & ~graph.marked(graph.bwd_outputs)
    held = np.flatnonzero(counted & lives.outlives & (born < lives.first_backward) & theirs[lives.value])
    used = np.where(graph.marked(plan.saved)[lives.value[held]], last[held], -1)
    since = np.maximum(used + 1, lives.first_backward)

    return Timeline(
        lives.runs,
        lives.first_backward,
        tuple(live.tolist()),
        _LiveIntervals(there, born, end, nbytes, np.flatnonzero(counted)),
        recompute_seconds(graph, plan, costs),
        step_seconds(graph, plan, costs),
        tuple(_sums(since, end[held], nbytes[held], count).tolist()),
        of_others,
    )


def recompute_seconds(graph: JointGraph, plan: Plan, costs: Costs) -> float:
    """What backward spends on running ops again: its timeline's, without making that."""
    forward, backward = _counts(graph, plan)
    again = np.where(forward > 0, backward, np.maximum(backward - 1, 0))
    some = np.flatnonzero(again)
    return math.fsum((again[some] * costs.run_array[some]).tolist())


def step_seconds(graph: JointGraph, plan: Plan, costs: Costs) -> float:
    """What the whole step takes, in the same way."""
    forward, backward = _counts(graph, plan)
    kept = [costs.keep[v] for v in plan.saved]
    return math.fsum([*((forward + backward) * costs.run_array).tolist(), *kept])


def _counts(graph: JointGraph, plan: Plan) -> tuple[Ints, Ints]:
    """How often forward and backward run each op."""
    sides = (StepArrays.of(side).runs.op for side in (plan.fwd, plan.bwd))
    forward, backward = (np.bincount(ops, minlength=len(graph.ops)) for ops in sides)
    return forward, backward


class _LiveIntervals(LazySequence[LiveInterval]):
    """The intervals of one timeline: few of the many plans that are tried are looked at."""

    def __init__(self, there: Materialization, born: Ints, end: Ints, nbytes: Ints, copies: Ints) -> None:
        self.there, self.copies = there, copies
        self.columns = (there.lives.value, there.lives.number, nbytes, born, end, there.lives.born)

    def _create_items(self) -> tuple[LiveInterval, ...]:
        there, copies = self.there, self.copies
        order = np.argsort(there.read, kind="stable")
        first, stop = (np.searchsorted(there.read[order], copies, side=side).tolist() for side in ("left", "right"))
        readers = there.reader[order].tolist()
        reads = [tuple(readers[i:j]) for i, j in zip(first, stop, strict=True)]
        columns = (of[copies].tolist() for of in self.columns)
        return tuple(map(LiveInterval, *columns, reads, there.lives.outlives[copies].tolist()))

    def __len__(self) -> int:
        return len(self.copies)


def _sums(first: Ints, last: Ints, nbytes: Ints, count: int) -> Ints:
    """For each of ``count`` positions, the bytes of the spans from ``first`` to ``last`` that it lies in."""
    change = np.zeros(count + 2, np.int64)  # one more for tangents of a backward without runs
    np.add.at(change, first, nbytes)
    np.subtract.at(change, last + 1, nbytes)
    return np.cumsum(change)[:count]


def _made_of(graph: JointGraph, plan: Plan, lives: Trace) -> tuple[dict[int, tuple[int, ...]], frozenset[int]]:
    """Each virtual copy with the copies in memory that it is made of.

    And the copies that are written because that frees more bytes than it takes.
    """
    fuses = graph.is_of(FUSIBLE | FREE)
    crosses = graph.marked(plan.saved)[lives.value] & (lives.born < lives.first_backward)
    could = graph.made_by((FUSIBLE | FREE) - ALWAYS_REALIZED)[lives.value] & ~lives.is_output & ~crosses
    could[lives.read[~fuses[lives.op[lives.reader]]]] = False
    readers = np.bincount(lives.read, minlength=len(lives.value))

    most_for_one = _MOST_READS_FOR_ONE[graph.device == "cpu"]
    # Bytes that are free for others when the last of who reads a copy has run, be it through what is made of it; a copy
    # that is handed out, or that nobody reads, never frees them.
    nbytes = np.where(graph.marked(graph.forward_inputs), 0, graph.nbytes)[lives.value].tolist()
    never = lives.outlives | (lives.last_read < 0)
    over = np.where(never, len(lives.runs), np.maximum(lives.last_read, lives.returned_at)).tolist()
    reads, start = lives.read.tolist(), np.searchsorted(lives.reader, np.arange(len(lives.runs) + 1)).tolist()
    made_of: list[tuple[int, ...]] = list(zip(range(len(over)), strict=True))  # of itself, while it is in memory
    virtual: list[int] = []
    realized: set[int] = set()
    columns = (np.flatnonzero(could), lives.born[could], readers[could])
    for copy, born, readers_of in zip(*(column.tolist() for column in columns), strict=True):
        sources: tuple[int, ...] = ()
        for r in reads[start[born] : start[born + 1]]:
            sources = tuple(dict.fromkeys(sources + made_of[r])) if sources else made_of[r]
        if len(sources) > 1:
            if len(sources) > (_MOST_READS_FOR_SEVERAL if readers_of > 1 else most_for_one):
                continue
            if readers_of and sum([nbytes[s] for s in sources if over[s] <= born]) > nbytes[copy]:
                realized.add(copy)
                continue
        made_of[copy] = sources
        virtual.append(copy)
        last = over[copy]
        for s in sources:
            if over[s] < last:
                over[s] = last
    return {copy: made_of[copy] for copy in virtual}, frozenset(realized)


def _made_and_read_in_one_kernel(graph: JointGraph, lives: Trace, in_memory: Bools, reader: Ints, read: Ints) -> Bools:
    """Copies of random numbers that all their readers take in the kernel that draws them: they are never realized."""
    drawn: Bools = in_memory & ~lives.is_output & graph.made_by({Kind.SEEDED})[lives.value]
    if not drawn.any():
        return drawn
    fuses = graph.is_of(FUSIBLE | FREE)[lives.op]
    writes = np.zeros(len(lives.runs), np.bool_)
    writes[lives.born[lives.made & in_memory]] = True
    kernel = np.cumsum(~fuses)  # between two that do not fuse
    in_another = (~fuses | writes)[reader] & (kernel[reader] != kernel[np.maximum(lives.born, 0)[read]])
    drawn[read[in_another]] = False
    return drawn


def _overwritten(graph: JointGraph, there: Materialization, end: Ints) -> Ints:
    """Copies whose place another one takes: the run that reads them last fuses, and writes as many bytes."""
    lives = there.lives
    fuses = graph.is_of(FUSIBLE)[lives.op]
    new = np.flatnonzero(there.in_memory & graph.made_by(FUSIBLE)[lives.value])
    dying = fuses[there.reader] & (end[there.read] == there.reader) & ~lives.is_output[there.read]
    dying &= (graph.producers >= 0)[lives.value[there.read]]
    old, at = there.read[dying], there.reader[dying]
    size, count = graph.size_rank[lives.value], len(graph.values)  # of which there are fewer than values
    wanted = np.sort(lives.born[new] * count + size[new])
    offered = at * count + size[old]
    order = np.argsort(offered, kind="stable")
    offered = offered[order]
    rank = np.arange(len(offered)) - np.searchsorted(offered, offered)
    places = np.searchsorted(wanted, offered, side="right") - np.searchsorted(wanted, offered)
    taken: Ints = old[order[rank < places]]
    return taken
