"""Who reads which copy, and how long each copy lives: the one replay that the simulator and the solvers share.

(The judge, ``verify.py``, keeps a replay of its own, so that a mistake here cannot hide itself.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rematpass.core.graph import JointGraph, Origin
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.errors import PlanError


@dataclass(slots=True)
class Copy:
    """One life of a value. ``born`` and ``reads`` are positions in ``Trace.runs``; -1 is "before the first"."""

    value: int
    copy: int
    born: int
    reads: list[int] = field(default_factory=list)
    outlives: bool = False  # handed out of the schedule: it lives to the end of backward


@dataclass(frozen=True)
class Trace:
    """The runs of forward, then those of backward, in one list, and every copy that they make or read."""

    runs: tuple[Run, ...]
    first_backward: int  # the position at which backward starts
    copies: tuple[Copy, ...]
    reads: tuple[tuple[int, ...], ...]  # for each run, indices into ``copies``
    writes: tuple[tuple[int, ...], ...]


def trace(graph: JointGraph, plan: Plan) -> Trace:
    """Replay ``plan``: which copy each run reads, and all the positions at which a copy is read.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    copies: list[Copy] = []
    living: list[list[int]] = [[] for _ in graph.values]  # for each value its living copies, the newest last
    runs: list[Run] = []
    reads: list[tuple[int, ...]] = []
    writes: list[tuple[int, ...]] = []

    def start(value: int, copy: int, born: int) -> int:
        copies.append(Copy(value, copy, born, [], False))
        living[value].append(len(copies) - 1)
        return len(copies) - 1

    def replay(steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Drop):
                there = living[step.value]
                living[step.value] = [c for c in there if copies[c].copy != step.copy] if len(there) > 1 else []
                continue
            position = len(runs)
            try:
                read = tuple([living[v][-1] for v in graph.touched[step.op]])
            except IndexError:
                name = graph.ops[step.op].name
                raise PlanError(
                    f"{plan.solver}: step {position} runs op {step.op} ({name}) without its inputs"
                ) from None
            for c in read:
                copies[c].reads.append(position)
            runs.append(step)
            reads.append(read)
            writes.append(tuple([start(v, step.copy, position) for v in graph.ops[step.op].writes]))

    for value in graph.values:
        if value.origin in (Origin.STATIC, Origin.INPUT):
            start(value.id, 0, -1)
    replay(plan.fwd)
    first_backward = len(runs)
    for v in graph.fwd_outputs:
        copies[living[v][-1]].outlives = True
    saved = set(plan.saved)
    living = [there if v in saved else [] for v, there in enumerate(living)]
    for value in graph.values:
        if value.origin is Origin.TANGENT:
            start(value.id, 0, first_backward - 1)
    replay(plan.bwd)
    for v in graph.bwd_outputs:
        if living[v]:
            copies[living[v][-1]].outlives = True
    return Trace(tuple(runs), first_backward, tuple(copies), tuple(reads), tuple(writes))


def plan_of(graph: JointGraph, solver: str, saved: Iterable[int], fwd: Sequence[Run], bwd: Sequence[Run]) -> Plan:
    """The plan that runs ``fwd`` and ``bwd`` as given and drops every copy after its last use.

    A run of which a newer copy takes over is read no more, so its life ends where its own reads end. ``saved`` is cut
    down to what backward reads.
    """
    wanted = set(saved)
    kept = Plan(solver, tuple(sorted(wanted)), tuple(fwd), tuple(bwd))
    lives = trace(graph, kept)
    used = {
        c.value
        for c in lives.copies
        if c.born < lives.first_backward and c.value in wanted and c.reads and c.reads[-1] >= lives.first_backward
    }
    made_in_bwd = {v for run in bwd for v in graph.ops[run.op].writes}
    used.update(v for v in graph.bwd_outputs if v in wanted and v not in made_in_bwd)
    drops: list[list[Drop]] = [[] for _ in lives.runs]
    for c in lives.copies:
        origin = graph.values[c.value].origin
        handed_over = c.value in used and c.born < lives.first_backward and origin is not Origin.TANGENT
        end = c.reads[-1] if c.reads else c.born
        in_forward = end < lives.first_backward and origin is not Origin.TANGENT
        keeps = c.outlives or origin is Origin.STATIC or (origin is Origin.INPUT and in_forward)
        if keeps or (in_forward and handed_over) or end < 0:
            continue
        drops[end].append(Drop(c.value, c.copy))
    steps: list[list[Step]] = [[], []]
    for position, run in enumerate(lives.runs):
        side = steps[position >= lives.first_backward]
        side.append(run)
        side.extend(drops[position])
    return Plan(solver, tuple(sorted(used)), tuple(steps[0]), tuple(steps[1]))
