"""Bytes over time: what a plan keeps in memory at each of its steps.

Counted is what the step itself allocates: saved values, temporaries, outputs, gradients, and the tangents it is
handed. Not counted is what stood before it: parameters, buffers, inputs.

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

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rematpass.core.cost import FREE, FUSIBLE, WRITTEN, Costs
from rematpass.core.graph import JointGraph, Kind, Origin
from rematpass.core.liveness import Copy, Trace, trace
from rematpass.core.schedule import Plan, Run

# A copy whose computation reads more buffers than this is written to memory, instead of being computed in its one
# reader (by whether the device is a CPU) or in each of several. Sums that grow term by term end here.
# Source: torch._inductor.config, realize_acc_reads_threshold and realize_reads_threshold.
_MOST_READS_FOR_ONE = {True: 12, False: 8}
_MOST_READS_FOR_SEVERAL = 4


class Tenant(NamedTuple):
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

    ``returned[i]``: those of them that are alive only because the caller holds forward's outputs.
    ``recompute_seconds`` is what backward spends on running ops again, ``step_seconds`` the whole step.
    """

    runs: tuple[Run, ...]
    first_backward: int
    live: tuple[int, ...]
    tenants: tuple[Tenant, ...]
    recompute_seconds: float
    step_seconds: float
    returned: tuple[int, ...] = ()

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return max(self.live, default=0)

    @property
    def peak_without_outputs(self) -> int:
        """The same if the caller lets go of forward's outputs before backward starts."""
        return max((all_ - theirs for all_, theirs in zip(self.live, self.returned, strict=False)), default=0)

    def at_peak(self) -> list[Tenant]:
        """Who takes the bytes at the (first) peak, the largest first."""
        if not self.live:
            return []
        moment = self.live.index(self.peak)
        there = [t for t in self.tenants if t.born <= moment <= t.end and t.nbytes]
        return sorted(there, key=lambda t: (-t.nbytes, t.value, t.copy))


@dataclass(frozen=True)
class Residence:
    """Which copies of ``lives`` take bytes, and which of those each run reads.

    ``sources[c]``: the copies in memory that whoever reads copy c reads: itself, or, when it is virtual, what it is
    made of. ``read[r]``: the copies in memory that run r reads, through what is virtual. ``written``: the copies that
    are in memory only because writing them frees more than it takes.
    """

    lives: Trace
    sources: tuple[tuple[int, ...], ...]
    read: tuple[frozenset[int], ...]
    written: frozenset[int] = frozenset()

    def in_memory(self, copy: int) -> bool:
        return copy in self.sources[copy]


def residence(graph: JointGraph, plan: Plan, *, fuse: bool = True) -> Residence:
    """Replay ``plan`` and find what a fusing compiler leaves out.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    lives = trace(graph, plan)
    if not fuse:
        each = tuple((c,) for c in range(len(lives.copies)))
        return Residence(lives, each, tuple(map(frozenset, lives.reads)))
    sources, written = _sources(graph, plan, lives)
    read = [frozenset([s for c in reads for s in sources[c]]) for reads in lives.reads]
    gone = _made_and_read_in_one_kernel(graph, lives, sources, read)
    if gone:
        sources = [tuple([s for s in of if s not in gone]) for of in sources]
        read = [copies - gone for copies in read]
    return Residence(lives, tuple(sources), tuple(read), written)


def simulate(graph: JointGraph, plan: Plan, costs: Costs, *, fuse: bool = True) -> Timeline:
    """Walk ``plan`` and count.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    return timeline_of(graph, plan, costs, residence(graph, plan, fuse=fuse), fuse=fuse)


def timeline_of(graph: JointGraph, plan: Plan, costs: Costs, there: Residence, *, fuse: bool = True) -> Timeline:
    """The timeline of ``plan``, whose ``residence`` is known."""
    lives = there.lives
    reads: list[list[int]] = [[] for _ in lives.copies]
    for position, copies in enumerate(there.read):
        for c in copies:
            reads[c].append(position)
    spans = _spans(graph, there, reads) if fuse else _as_they_are(lives, reads)
    values = graph.values
    counts = [value.origin in (Origin.OP, Origin.TANGENT) for value in values]
    tenants = tuple(
        [
            Tenant(c.value, c.copy, values[c.value].nbytes, *spans[i], c.born, tuple(reads[i]), c.outlives)
            for i, c in enumerate(lives.copies)
            if counts[c.value] and there.in_memory(i)
        ]
    )
    live = _sums([(t.born, t.end, t.nbytes) for t in tenants], len(lives.runs))
    for position, run in enumerate(lives.runs):
        live[position] += graph.ops[run.op].nbytes_workspace
    recompute = sum(costs.run[run.op] for run in plan.recomputed())
    step = sum(costs.run[run.op] for run in lives.runs) + sum(costs.keep[v] for v in plan.saved)
    return Timeline(
        lives.runs,
        lives.first_backward,
        tuple(live),
        tenants,
        recompute,
        step,
        _returned(graph, plan, tenants, lives),
    )


def _as_they_are(lives: Trace, reads: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """For each copy the first and the last position at which it takes bytes, when every op runs by itself."""
    last = len(lives.runs) - 1
    return [
        (max(c.born, 0), last if c.outlives else reads[i][-1] if reads[i] else max(c.born, 0))
        for i, c in enumerate(lives.copies)
    ]


def _makes(graph: JointGraph, value: int, kind: Kind) -> bool:
    """Whether the value is made by an op of this kind."""
    producer = graph.producer[value]
    return producer is not None and graph.ops[producer].kind is kind


def _spans(graph: JointGraph, there: Residence, reads: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The same under a compiler that fuses and overwrites."""
    lives = there.lives
    copies, sources = lives.copies, there.sources
    spans = _as_they_are(lives, reads)
    fuses = [op.kind in FUSIBLE for op in graph.ops]
    taken_over: set[int] = set()  # copies whose place another one takes
    for position, read in enumerate(there.read):
        if fuses[lives.runs[position].op]:
            written = [c for c in lives.writes[position] if c in sources[c]]
            dying = [c for c in read if spans[c][1] == position and not copies[c].outlives] if written else ()
            if dying:
                taken_over.update(_overwritten(graph, lives, written, dying))
    for c in taken_over:
        born, end = spans[c]
        spans[c] = (born, end - 1)
    return spans


def _sums(spans: Iterable[tuple[int, int, int]], count: int) -> list[int]:
    """For each of ``count`` positions, the bytes of the spans (first, last, bytes) that it lies in."""
    change = [0] * (count + 2)
    for first, end, nbytes in spans:
        change[first] += nbytes
        change[end + 1] -= nbytes
    return list(itertools.accumulate(change[:count]))


def _returned(graph: JointGraph, plan: Plan, tenants: Sequence[Tenant], lives: Trace) -> tuple[int, ...]:
    """At each position, the bytes of forward's outputs that nothing but the caller holds: gradients are not meant."""
    outputs, saved, gradients = set(graph.fwd_outputs), set(plan.saved), set(graph.bwd_outputs)
    spans = []
    for t in tenants:
        if t.outlives and t.born < lives.first_backward and t.value in outputs and t.value not in gradients:
            used = t.reads[-1] if t.value in saved and t.reads else -1
            spans.append((max(used + 1, lives.first_backward), t.end, t.nbytes))
    return tuple(_sums(spans, len(lives.runs)))


def _sources(graph: JointGraph, plan: Plan, lives: Trace) -> tuple[list[tuple[int, ...]], frozenset[int]]:
    """For each copy, the copies in memory that its readers read: itself, or, when it is virtual, what it is made of.

    And the copies that are written because that frees more bytes than it takes.
    """
    saved = set(plan.saved)
    kinds = FUSIBLE | FREE
    fuses = [op.kind in kinds for op in graph.ops]
    inlines = [p is not None and fuses[p] and graph.ops[p].kind not in WRITTEN for p in graph.producer]
    run_fuses = [fuses[run.op] for run in lives.runs]
    most_for_one = _MOST_READS_FOR_ONE[graph.device == "cpu"]
    sources: list[tuple[int, ...]] = []
    virtual_of: dict[int, list[int]] = {}  # copy in memory -> virtual copies made of it so far
    written: set[int] = set()
    for index, c in enumerate(lives.copies):
        sources.append((index,))
        if not inlines[c.value] or c.outlives or (c.born < lives.first_backward and c.value in saved):
            continue
        if not all(run_fuses[r] for r in c.reads):
            continue
        made_of = tuple(dict.fromkeys([s for r in lives.reads[c.born] for s in sources[r]]))
        if len(made_of) > (_MOST_READS_FOR_SEVERAL if len(c.reads) > 1 else most_for_one):
            continue
        if len(made_of) > 1 and c.reads and _freed(graph, lives, index, made_of, virtual_of):
            written.add(index)
            continue
        sources[index] = made_of
        for s in made_of:
            virtual_of.setdefault(s, []).append(index)
    return sources, frozenset(written)


def _freed(
    graph: JointGraph, lives: Trace, index: int, made_of: tuple[int, ...], virtual_of: dict[int, list[int]]
) -> bool:
    """Whether writing a copy frees more bytes than it takes: those of what nobody else reads afterwards."""
    copies, born = lives.copies, lives.copies[index].born
    freed = 0
    for s in made_of:
        value = graph.values[copies[s].value]
        there = (copies[c] for c in (s, *virtual_of.get(s, ())))
        if value.origin in (Origin.OP, Origin.TANGENT) and all(_is_over(c, born) for c in there):
            freed += value.nbytes
    return freed > graph.values[copies[index].value].nbytes


def _is_over(copy: Copy, position: int) -> bool:
    return not copy.outlives and bool(copy.reads) and copy.reads[-1] <= position


def _made_and_read_in_one_kernel(
    graph: JointGraph, lives: Trace, sources: Sequence[tuple[int, ...]], read: Sequence[frozenset[int]]
) -> frozenset[int]:
    """Copies of random numbers that all their readers take in the kernel that draws them: they are never written."""
    if all(op.kind is not Kind.SEEDED for op in graph.ops):
        return frozenset()
    drawn = {
        i
        for i, c in enumerate(lives.copies)
        if _makes(graph, c.value, Kind.SEEDED) and not c.outlives and i in sources[i]
    }
    if not drawn:
        return frozenset()
    fuses = [op.kind in FUSIBLE | FREE for op in graph.ops]
    kernel = list(itertools.accumulate(not fuses[run.op] for run in lives.runs))  # between two that do not fuse
    for position, copies in enumerate(read):
        writes = lives.writes[position]
        if drawn & copies and (not fuses[lives.runs[position].op] or any(w in sources[w] for w in writes)):
            drawn -= {c for c in copies & drawn if kernel[position] != kernel[lives.copies[c].born]}
    return frozenset(drawn)


def _overwritten(graph: JointGraph, lives: Trace, written: Sequence[int], dying: Sequence[int]) -> Iterator[int]:
    """Copies that die with a run which writes another copy of the same size, in their place."""
    left = [c for c in dying if graph.values[lives.copies[c].value].origin is Origin.OP]
    for new in written:
        nbytes = graph.values[lives.copies[new].value].nbytes
        for old in left:
            if graph.values[lives.copies[old].value].nbytes == nbytes:
                left.remove(old)
                yield old
                break
