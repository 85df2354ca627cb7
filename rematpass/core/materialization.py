"""Which copies take bytes when a fusing compiler runs a plan.

A copy is *virtual* if its op fuses and so do all its readers. It is then computed inside their kernels and takes no
bytes, but its *sources*, the copies in memory that it is computed from, must live until its readers have run::

        a ──▶ [mul] ──▶ b (virtual) ──▶ [add] ──▶ c          a, the source of b, lives until add has run

Outputs, saved values, and results of reductions and seeded draws are in memory even if all their readers fuse. So are

- copies with many sources: the compiler writes them to memory instead of repeating the reads (``_find_virtual``);
- copies *realized* on purpose: as virtual copies they would keep more bytes alive than they take, such as a sum that
  is the only reader of two gradients. ``emit`` marks them for the compiler (``_find_virtual``).

Seeded random numbers whose readers all run in the kernel that draws them are never in memory
(``_drawn_and_read_in_one_kernel``).
"""

from __future__ import annotations

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
    pair occurs once. ``sources``: for each virtual copy, the copies in memory that it is computed from. ``realized``:
    the copies that are in memory only because that frees more bytes than it takes.
    """

    trace: Trace
    in_memory: Bools
    sources: dict[int, tuple[int, ...]]
    reader: Ints
    read: Ints
    realized: frozenset[int] = frozenset()

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
        return Materialization(trace, in_memory, {}, trace.reader, trace.read)
    sources, realized = _find_virtual(graph, plan, trace)
    virtual = np.fromiter(sources, np.int64, len(sources))
    in_memory[virtual] = False
    reader, read = _reads_in_memory(trace, in_memory, virtual, Rows.of(list(sources.values())))
    drawn = _drawn_and_read_in_one_kernel(graph, trace, in_memory, reader, read)
    if drawn.any():
        in_memory &= ~drawn
        sources = {copy: tuple([s for s in of if not drawn[s]]) for copy, of in sources.items()}
        reader, read = reader[~drawn[read]], read[~drawn[read]]
    return Materialization(trace, in_memory, sources, reader, read, realized)


def _find_virtual(graph: JointGraph, plan: Plan, trace: Trace) -> tuple[dict[int, tuple[int, ...]], frozenset[int]]:
    """The virtual copies with their sources, and the copies that are realized on purpose.

    One pass in the order of creation, so that the sources of every argument are known.
    """
    most_for_one = device_facts(graph.device).most_sources_for_one
    nbytes = np.where(graph.marked(graph.forward_inputs), 0, graph.nbytes)[trace.value].tolist()
    freed_after = _freed_after(trace)
    reads, start = trace.read.tolist(), np.searchsorted(trace.reader, np.arange(len(trace.runs) + 1)).tolist()
    sources_of: list[tuple[int, ...]] = list(zip(range(len(nbytes)), strict=True))  # in memory: itself
    virtual: list[int] = []
    realized: set[int] = set()
    candidates = _could_be_virtual(graph, plan, trace)
    readers = np.bincount(trace.read, minlength=len(trace.value))
    columns = (np.flatnonzero(candidates), trace.born[candidates], readers[candidates])
    for copy, born, readers_of in zip(*(column.tolist() for column in columns), strict=True):
        sources: tuple[int, ...] = ()
        for argument in reads[start[born] : start[born + 1]]:
            of_it = sources_of[argument]
            sources = tuple(dict.fromkeys(sources + of_it)) if sources else of_it
        if len(sources) > 1:
            if len(sources) > (_MOST_SOURCES_FOR_SEVERAL if readers_of > 1 else most_for_one):
                continue
            # Sources that nothing else reads later are freed if the copy is written now.
            if readers_of and sum([nbytes[s] for s in sources if freed_after[s] <= born]) > nbytes[copy]:
                realized.add(copy)
                continue
        sources_of[copy] = sources
        virtual.append(copy)
        last = freed_after[copy]
        for s in sources:
            if freed_after[s] < last:
                freed_after[s] = last
    return {copy: sources_of[copy] for copy in virtual}, frozenset(realized)


def _could_be_virtual(graph: JointGraph, plan: Plan, trace: Trace) -> Bools:
    """Copies that are made and read by ops that fuse, and that are neither outputs nor saved."""
    fuses = graph.is_of(FUSIBLE | FREE)
    saved = graph.marked(plan.saved)[trace.value] & (trace.born < trace.first_backward)
    could = graph.made_by((FUSIBLE | FREE) - ALWAYS_REALIZED)[trace.value] & ~trace.is_output & ~saved
    could[trace.read[~fuses[trace.op[trace.reader]]]] = False
    return could


def _freed_after(trace: Trace) -> list[int]:
    """Per copy, the position of its last direct use, after which its bytes are free.

    A copy that outlives backward, or that nothing reads, never frees bytes: it gets the number of runs.
    """
    never = trace.outlives | (trace.last_read < 0)
    last_use = np.maximum(trace.last_read, trace.returned_at)
    freed_after: list[int] = np.where(never, len(trace.runs), last_use).tolist()
    return freed_after


def _reads_in_memory(trace: Trace, in_memory: Bools, virtual: Ints, sources: Rows) -> tuple[Ints, Ints]:
    """All (position, copy in memory) pairs that runs read, where a read of a virtual copy is one of its sources."""
    row_of = np.full(len(in_memory), -1, np.int64)
    row_of[virtual] = np.arange(len(virtual))
    direct = in_memory[trace.read]
    which, source = sources.take(row_of[trace.read[~direct]])
    pairs = np.append(
        trace.reader[direct] * len(in_memory) + trace.read[direct],
        trace.reader[~direct][which] * len(in_memory) + source,
    )
    pairs.sort()
    once = np.append(True, pairs[1:] != pairs[:-1])[: len(pairs)]
    reader, read = np.divmod(pairs[once], max(1, len(in_memory)))
    return reader, read


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
