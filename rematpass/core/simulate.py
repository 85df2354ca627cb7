"""Bytes over time: what a plan keeps in memory at each of its steps.

Counted is what the step itself allocates: saved values, temporaries, outputs, gradients, and the tangents it is
handed. Not counted is what stood before it: parameters, buffers, inputs.

With ``fuse`` the walk knows what a fusing compiler leaves out. A copy is *virtual* when its op fuses and each of its
readers does: it is then computed inside their kernels and takes no bytes, but what it reads has to live until they
have run::

        a ──▶ [mul] ──▶ b (virtual) ──▶ [add] ──▶ c          a lives until add has run

and an op that fuses overwrites an argument of the same size that dies with it, instead of taking new bytes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rematpass.core.cost import FREE, FUSIBLE, Costs
from rematpass.core.graph import JointGraph, Kind, Origin
from rematpass.core.liveness import Trace, trace
from rematpass.core.schedule import Plan, Run

# A copy whose computation reads more buffers than this is written to memory, instead of being computed in its one
# reader (by whether the device is a CPU) or in each of several. Sums that grow term by term end here.
# Source: torch._inductor.config, realize_acc_reads_threshold and realize_reads_threshold.
_MOST_READS_FOR_ONE = {True: 12, False: 8}
_MOST_READS_FOR_SEVERAL = 4


@dataclass(frozen=True)
class Tenant:
    """A copy that takes bytes from position ``born`` to position ``end`` of the timeline, both included."""

    value: int
    copy: int
    nbytes: int
    born: int
    end: int


@dataclass(frozen=True)
class Timeline:
    """``live[i]``: bytes while ``runs[i]`` runs; backward starts at ``first_backward``.

    ``recompute_seconds`` is what backward spends on running ops again, ``step_seconds`` the whole step.
    """

    runs: tuple[Run, ...]
    first_backward: int
    live: tuple[int, ...]
    tenants: tuple[Tenant, ...]
    recompute_seconds: float
    step_seconds: float

    @property
    def peak(self) -> int:
        """The most bytes at one moment."""
        return max(self.live, default=0)

    def at_peak(self) -> list[Tenant]:
        """Who takes the bytes at the (first) peak, the largest first."""
        if not self.live:
            return []
        moment = self.live.index(self.peak)
        there = [t for t in self.tenants if t.born <= moment <= t.end and t.nbytes]
        return sorted(there, key=lambda t: (-t.nbytes, t.value, t.copy))


def simulate(graph: JointGraph, plan: Plan, costs: Costs, *, fuse: bool = True) -> Timeline:
    """Walk ``plan`` and count.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    lives = trace(graph, plan)
    sources = _sources(graph, plan, lives) if fuse else [(c,) for c in range(len(lives.copies))]
    read = [frozenset(s for c in reads for s in sources[c]) for reads in lives.reads]
    ends = [max(c.born, 0) for c in lives.copies]
    for position, copies in enumerate(read):
        for c in copies:
            ends[c] = position
    last = len(lives.runs) - 1
    tenants = [
        Tenant(c.value, c.copy, graph.values[c.value].nbytes, max(c.born, 0), last if c.outlives else ends[i])
        for i, c in enumerate(lives.copies)
        if i in sources[i] and graph.values[c.value].origin in (Origin.OP, Origin.TANGENT)
    ]
    change = [0] * (len(lives.runs) + 2)
    for t in tenants:
        change[t.born] += t.nbytes
        change[t.end + 1] -= t.nbytes
    live = list(itertools.accumulate(change[:-2]))
    if fuse:
        for position, copies in enumerate(read):
            written = [c for c in lives.writes[position] if c in sources[c]]
            dying = [c for c in copies if ends[c] == position and not lives.copies[c].outlives]
            if written and dying and graph.ops[lives.runs[position].op].kind in FUSIBLE:
                live[position] -= _overwritten(graph, lives, written, dying)
    recompute = sum(costs.run[run.op] for run in plan.recomputed())
    step = sum(costs.run[run.op] for run in lives.runs) + sum(costs.keep[v] for v in plan.saved)
    return Timeline(lives.runs, lives.first_backward, tuple(live), tuple(tenants), recompute, step)


def _sources(graph: JointGraph, plan: Plan, lives: Trace) -> list[tuple[int, ...]]:
    """For each copy, the copies in memory that its readers read: itself, or, when it is virtual, what it is made of."""
    saved = set(plan.saved)
    fuses = [op.kind in FUSIBLE | FREE for op in graph.ops]
    inlines = [fuses[op.id] and op.kind is not Kind.REDUCTION for op in graph.ops]
    sources: list[tuple[int, ...]] = []
    for index, c in enumerate(lives.copies):
        may_be_virtual = (
            c.born >= 0
            and graph.producer[c.value] is not None
            and inlines[lives.runs[c.born].op]
            and not c.outlives
            and not (c.born < lives.first_backward and c.value in saved)
            and all(fuses[lives.runs[r].op] for r in c.reads)
        )
        sources.append((index,))
        if may_be_virtual:
            made_of = dict.fromkeys(s for r in lives.reads[c.born] for s in sources[r])
            most = _MOST_READS_FOR_SEVERAL if len(c.reads) > 1 else _MOST_READS_FOR_ONE[graph.device == "cpu"]
            if len(made_of) <= most:
                sources[index] = tuple(made_of)
    return sources


def _overwritten(graph: JointGraph, lives: Trace, written: list[int], dying: list[int]) -> int:
    """Bytes that a run writes into copies of the same size that die with it."""
    sizes = [
        graph.values[lives.copies[c].value].nbytes
        for c in dying
        if graph.values[lives.copies[c].value].origin is Origin.OP
    ]
    total = 0
    for c in written:
        nbytes = graph.values[lives.copies[c].value].nbytes
        if nbytes in sizes:
            sizes.remove(nbytes)
            total += nbytes
    return total
