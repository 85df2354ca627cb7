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

from dataclasses import dataclass

from rematpass.core.cost import FREE, FUSIBLE, Costs
from rematpass.core.graph import JointGraph, Kind, Origin
from rematpass.core.liveness import Trace, trace
from rematpass.core.schedule import Plan, Run

# A copy whose computation reads more buffers than this is written to memory, where one reader or several would repeat
# it, by whether the device is a CPU (torch._inductor.config: realize_acc_reads_threshold, realize_reads_threshold). Sums
# that grow term by term end here.
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
    virtual = _virtual(graph, plan, lives) if fuse else [False] * len(lives.copies)
    ends = _ends(lives, virtual)
    last = len(lives.runs) - 1
    tenants = [
        Tenant(c.value, c.copy, graph.values[c.value].nbytes, max(c.born, 0), last if c.outlives else max(ends[i], 0))
        for i, c in enumerate(lives.copies)
        if not virtual[i] and graph.values[c.value].origin in (Origin.OP, Origin.TANGENT)
    ]
    change = [0] * (len(lives.runs) + 1)
    for t in tenants:
        change[t.born] += t.nbytes
        change[t.end + 1] -= t.nbytes
    live: list[int] = []
    now = 0
    for delta in change[:-1]:
        now += delta
        live.append(now)
    if fuse:
        for position in range(len(live)):
            live[position] -= _overwritten(graph, lives, virtual, ends, position)
    recompute = sum(costs.run[run.op] for run in plan.recomputed())
    step = sum(costs.run[run.op] for run in lives.runs) + sum(costs.keep[v] for v in plan.saved)
    return Timeline(lives.runs, lives.first_backward, tuple(live), tuple(tenants), recompute, step)


def _virtual(graph: JointGraph, plan: Plan, lives: Trace) -> list[bool]:
    """For each copy, whether a fusing compiler never gives it memory."""
    saved = set(plan.saved)
    fuses = [op.kind in FUSIBLE | FREE for op in graph.ops]
    inlines = [fuses[op.id] and op.kind is not Kind.REDUCTION for op in graph.ops]
    virtual: list[bool] = []
    sources: list[frozenset[int]] = []  # for each copy, the copies in memory that computing it reads
    for index, c in enumerate(lives.copies):
        made_here = c.born >= 0 and graph.producer[c.value] is not None
        may = (
            made_here
            and inlines[lives.runs[c.born].op]
            and not c.outlives
            and not (c.born < lives.first_backward and c.value in saved)
            and all(fuses[lives.runs[r].op] for r in c.reads)
        )
        reads = frozenset().union(*(sources[r] for r in lives.reads[c.born])) if may else frozenset()
        most = _MOST_READS_FOR_SEVERAL if len(c.reads) > 1 else _MOST_READS_FOR_ONE[graph.device == "cpu"]
        virtual.append(may and len(reads) <= most)
        sources.append(reads if virtual[-1] else frozenset((index,)))
    return virtual


def _ends(lives: Trace, virtual: list[bool]) -> list[int]:
    """For each copy, the last position that needs its bytes, through virtual readers too."""
    ends = [c.reads[-1] if c.reads else c.born for c in lives.copies]
    for index in range(len(lives.copies) - 1, -1, -1):
        c = lives.copies[index]
        if virtual[index] and c.born >= 0:
            for source in lives.reads[c.born]:
                ends[source] = max(ends[source], ends[index])
    return ends


def _overwritten(graph: JointGraph, lives: Trace, virtual: list[bool], ends: list[int], position: int) -> int:
    """Bytes that the run at ``position`` writes into arguments that die with it."""
    if graph.ops[lives.runs[position].op].kind not in FUSIBLE:
        return 0
    dying = [
        graph.values[lives.copies[c].value].nbytes
        for c in lives.reads[position]
        if not virtual[c]
        and ends[c] == position
        and not lives.copies[c].outlives
        and graph.values[lives.copies[c].value].origin is Origin.OP
    ]
    total = 0
    for c in lives.writes[position]:
        nbytes = graph.values[lives.copies[c].value].nbytes
        if not virtual[c] and nbytes in dying:
            dying.remove(nbytes)
            total += nbytes
    return total
