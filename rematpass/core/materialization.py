"""Which copies take bytes when a fusing compiler runs a plan.

A copy is *virtual* if its op fuses and so do all its readers. It is then computed inside their kernels and takes no
bytes, but its *sources*, the copies in memory that it is computed from, must live until its readers have run::

        a ──▶ [mul] ──▶ b (virtual) ──▶ [add] ──▶ c          a, the source of b, lives until add has run

Outputs, saved values, and results of reductions, of seeded draws and of ops that say so (``Op.always_written``) are in
memory even if all their readers fuse. So are

- copies with many sources, or that take long to compute and have several readers: the compiler writes them to memory
  instead of repeating the reads, or the arithmetic (``_find_virtual``);
- copies *realized* on purpose: as virtual copies they would keep more bytes alive than they take, such as a sum that
  is the only reader of two gradients. ``emit`` marks them for the compiler (``_find_virtual``).

Seeded random numbers whose readers all run in the kernel that draws them are never in memory
(``_drawn_and_read_in_one_kernel``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rematpass.core.cost import ALWAYS_REALIZED, FREE, FUSIBLE
from rematpass.core.graph import JointGraph
from rematpass.core.hardware import device_facts
from rematpass.core.liveness import Trace, replay
from rematpass.core.op import Kind
from rematpass.core.ragged import Bools, Ints, Rows
from rematpass.core.schedule import Plan

# A copy with more sources than this, and with several readers, is written to memory instead of being computed in each.
# Source: torch._inductor.config.realize_reads_threshold.
_MOST_SOURCES_FOR_SEVERAL = 4


@dataclass(frozen=True, eq=False)
class Materialization:
    """Which copies of ``trace`` take bytes, and which of these each run reads.

    Run ``reader[i]`` reads copy ``read[i]`` in memory, directly or through virtual copies; positions ascend, and each
    pair occurs once. ``elsewhere[i]``: whether any of these reads is not element by element (``Op.reads_elsewhere``).
    ``sources``: for each virtual copy, the copies in memory that it is computed from. ``realized``: the copies that are
    in memory only because that frees more bytes than it takes.
    """

    trace: Trace
    in_memory: Bools
    sources: dict[int, tuple[int, ...]]
    reader: Ints
    read: Ints
    elsewhere: Bools
    realized: frozenset[int] = frozenset()

    def can_be_overwritten(self, graph: JointGraph) -> Bools:
        """Per copy: whether it is neither an input nor a tangent nor an output."""
        return _can_be_overwritten(graph, self.trace)

    @property
    def realized_pairs(self) -> tuple[tuple[int, int], ...]:
        """``realized`` as (value, number of the copy), for ``Plan.realized``."""
        copies = sorted(self.realized)
        return tuple(zip(self.trace.value[copies].tolist(), self.trace.number[copies].tolist(), strict=True))


def materialization(graph: JointGraph, plan: Plan, *, fuse: bool = True) -> Materialization:
    """Replay ``plan`` and find the copies that take bytes: all of them unless ``fuse``.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    trace = replay(graph, plan)
    in_memory = np.ones(len(trace.value), np.bool_)
    if not fuse:
        return Materialization(trace, in_memory, {}, trace.reader, trace.read, np.zeros(len(trace.read), np.bool_))
    elsewhere = graph.elsewhere_rows.take(trace.op)[1].astype(np.bool_)
    found = _find_virtual(graph, plan, trace, elsewhere)
    in_memory[found.copies] = False
    reader, read, elsewhere = _reads_in_memory(trace, in_memory, found, elsewhere)
    sources = found.sources
    drawn = _drawn_and_read_in_one_kernel(graph, trace, in_memory, reader, read)
    if drawn.any():
        in_memory &= ~drawn
        sources = {copy: tuple([s for s in of if not drawn[s]]) for copy, of in sources.items()}
        kept = ~drawn[read]
        reader, read, elsewhere = reader[kept], read[kept], elsewhere[kept]
    return Materialization(trace, in_memory, sources, reader, read, elsewhere, frozenset(found.realized))


@dataclass(frozen=True)
class _Virtual:
    """Copies that take no bytes.

    ``sources``: for each, the copies in memory that it is computed from. ``elsewhere``: for some of them, those of its
    sources that are not read element by element. ``realized``: copies that could be virtual, but are realized.
    """

    sources: dict[int, tuple[int, ...]]
    elsewhere: dict[int, frozenset[int]]
    realized: list[int]

    @property
    def copies(self) -> Ints:
        return np.fromiter(self.sources, np.int64, len(self.sources))

    def source_rows(self) -> tuple[Rows, Bools]:
        """``sources`` as rows, and for each item whether it is not read element by element."""
        rows = Rows.of(list(self.sources.values()))
        elsewhere = np.zeros(len(rows.items), np.bool_)
        for row, (copy, sources) in enumerate(self.sources.items()):
            if copy in self.elsewhere:
                elsewhere[rows.start[row] : rows.start[row + 1]] = [s in self.elsewhere[copy] for s in sources]
        return rows, elsewhere


def _find_virtual(graph: JointGraph, plan: Plan, trace: Trace, elsewhere: Bools) -> _Virtual:
    """The virtual copies with their sources, and the copies that are realized on purpose.

    One pass in the order of creation, so that the sources of every argument are known.
    """
    most_for_one = device_facts(graph.device).most_sources_for_one
    nbytes = np.where(graph.marked(graph.forward_inputs), 0, graph.nbytes)[trace.value].tolist()
    overwritten = _Overwritten(graph, trace)
    freed_after = _freed_after(trace)
    start = np.searchsorted(trace.reader, np.arange(len(trace.runs) + 1)).tolist()
    reads = list(zip(trace.read.tolist(), elsewhere.tolist(), strict=True))
    sources_of: list[tuple[int, ...]] = list(zip(range(len(trace.value)), strict=True))  # in memory: itself
    found = _Virtual({}, {}, [])
    slow: set[int] = set()  # virtual copies that are not computed again in each of several readers
    for copy, born, readers_of, slowly in _candidates(graph, plan, trace):
        sources: tuple[int, ...] = ()
        apart: frozenset[int] = frozenset()
        for argument, is_elsewhere in reads[start[born] : start[born + 1]]:
            of_it = sources_of[argument]
            sources = tuple(dict.fromkeys(sources + of_it)) if sources else of_it
            if is_elsewhere:
                apart = apart.union(of_it)
            elif argument in found.elsewhere:
                apart |= found.elsewhere[argument]
            slowly = slowly or argument in slow
        if slowly and readers_of > 1:
            continue
        if len(sources) > 1:
            if len(sources) > (_MOST_SOURCES_FOR_SEVERAL if readers_of > 1 else most_for_one):
                continue
            # Sources that nothing else reads later are freed if the copy is written now. A copy that frees less than
            # twice its bytes is not worth the traffic, nor the kernels that cannot be fused across it.
            frees = sum([nbytes[s] for s in sources if freed_after[s] <= born]) if readers_of else 0
            if frees >= 2 * nbytes[copy]:
                freed = [s for s in sources if freed_after[s] <= born and s not in apart]
                # A copy that overwrites none of them lives beside them while it is written.
                if frees > 2 * nbytes[copy] or overwritten.one_of(freed, copy):
                    found.realized.append(copy)
                    continue
        if slowly:
            slow.add(copy)
        if apart:
            found.elsewhere[copy] = apart
        sources_of[copy] = found.sources[copy] = sources
        last = freed_after[copy]
        for s in sources:
            if freed_after[s] < last:
                freed_after[s] = last
    return found


def _candidates(graph: JointGraph, plan: Plan, trace: Trace) -> Iterator[tuple[int, int, int, bool]]:
    """Copies that could be virtual: where they are made, how many runs read them, whether that is slow to repeat."""
    copies = np.flatnonzero(_could_be_virtual(graph, plan, trace))
    born = trace.born[copies]
    readers = np.bincount(trace.read, minlength=len(trace.value))[copies]
    columns = copies, born, readers, graph.slow_to_repeat[trace.op[born]]
    return zip(*(column.tolist() for column in columns), strict=True)


class _Overwritten:
    """Which copies in memory another copy can be written over, if nothing reads them later."""

    def __init__(self, graph: JointGraph, trace: Trace) -> None:
        self.layout = graph.layout[trace.value]
        self.can_be = _can_be_overwritten(graph, trace)

    def one_of(self, copies: list[int], by: int) -> bool:
        return bool((self.can_be[copies] & (self.layout[copies] == self.layout[by])).any())


def _can_be_overwritten(graph: JointGraph, trace: Trace) -> Bools:
    """Per copy: whether a kernel that reads it last may write over it: it is no input, tangent or output."""
    can: Bools = (graph.producer_array >= 0)[trace.value] & ~trace.is_output
    return can


def _could_be_virtual(graph: JointGraph, plan: Plan, trace: Trace) -> Bools:
    """Copies that are made and read by ops that fuse, and that are neither outputs nor saved."""
    fuses = graph.is_of(FUSIBLE | FREE)
    saved = graph.marked(plan.saved)[trace.value] & (trace.born < trace.first_backward)
    could = graph.made_by((FUSIBLE | FREE) - ALWAYS_REALIZED)[trace.value] & ~trace.is_output & ~saved
    could[trace.read[~fuses[trace.op[trace.reader]]]] = False
    could &= ~graph.always_written[trace.value]
    return could


def _freed_after(trace: Trace) -> list[int]:
    """Per copy, the position of its last direct use, after which its bytes are free.

    A copy that outlives backward, or that nothing reads, never frees bytes: it gets the number of runs.
    """
    never = trace.outlives | (trace.last_read < 0)
    last_use = np.maximum(trace.last_read, trace.returned_at)
    freed_after: list[int] = np.where(never, len(trace.runs), last_use).tolist()
    return freed_after


def _reads_in_memory(trace: Trace, in_memory: Bools, virtual: _Virtual, elsewhere: Bools) -> tuple[Ints, Ints, Bools]:
    """All (position, copy in memory) pairs that runs read, where a read of a virtual copy is one of its sources.

    The third array says of each pair whether any of these reads is not element by element.
    """
    row_of = np.full(len(in_memory), -1, np.int64)
    row_of[virtual.copies] = np.arange(len(virtual.sources))
    sources, apart = virtual.source_rows()
    direct = in_memory[trace.read]
    rows = row_of[trace.read[~direct]]
    which, source = sources.take(rows)
    through = elsewhere[~direct][which] | Rows(sources.start, apart.astype(np.int64)).take(rows)[1].astype(np.bool_)
    positions = np.append(trace.reader[direct], trace.reader[~direct][which])
    copies, flags = np.append(trace.read[direct], source), np.append(elsewhere[direct], through)
    keys = 2 * (positions * len(in_memory) + copies) + flags
    keys.sort()
    pairs = keys >> 1
    last = np.append(pairs[1:] != pairs[:-1], True)[: len(pairs)]  # of equal pairs, the one that is elsewhere
    reader, read = np.divmod(pairs[last], max(1, len(in_memory)))
    return reader, read, (keys[last] & 1).astype(np.bool_)


def _drawn_and_read_in_one_kernel(graph: JointGraph, trace: Trace, in_memory: Bools, reader: Ints, read: Ints) -> Bools:
    """Copies of seeded random numbers whose readers all run in the kernel that draws them.

    A reader is in another kernel if an op that does not fuse runs after the draw, or is the reader itself. Runs that
    make only virtual copies do not count as readers: the runs that read those copies do.
    """
    drawn: Bools = in_memory & ~trace.is_output & graph.made_by({Kind.SEEDED})[trace.value]
    if not drawn.any():
        return drawn
    fuses = graph.is_of(FUSIBLE | FREE)[trace.op]
    writes = np.zeros(len(trace.runs), np.bool_)  # runs that write a copy to memory
    writes[trace.born[trace.made & in_memory]] = True
    kernel = np.cumsum(~fuses)  # changes at each op that does not fuse
    elsewhere = (~fuses | writes)[reader] & (kernel[reader] != kernel[np.maximum(trace.born, 0)[read]])
    drawn[read[elsewhere]] = False
    return drawn
