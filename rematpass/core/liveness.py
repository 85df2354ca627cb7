"""Who reads which copy, and how long each copy lives: the one replay that the simulator and the solvers share.

(The judge, ``verify.py``, keeps a replay of its own, so that a mistake here cannot hide itself.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rematpass.core.graph import JointGraph, Origin
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.errors import PlanError


@dataclass(slots=True)
class Copy:
    """One life of a value. ``born`` and ``reads`` are positions in ``Trace.runs``; -1 is "before the first"."""

    value: int
    copy: int
    born: int
    reads: list[int]
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
        living[value].append(len(copies))
        copies.append(Copy(value, copy, born, []))
        return len(copies) - 1

    def replay(steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Drop):
                there = living[step.value]
                living[step.value] = [c for c in there if copies[c].copy != step.copy] if len(there) > 1 else []
                continue
            op, position = step.op, len(runs)
            try:
                read = tuple([living[v][-1] for v in graph.touched[op]])
            except IndexError:
                raise PlanError(
                    f"{plan.solver}: step {position} runs op {op} ({graph.ops[op].name}) without its inputs"
                ) from None
            for c in read:
                copies[c].reads.append(position)
            runs.append(step)
            reads.append(read)
            writes.append(tuple([start(v, step.copy, position) for v in graph.ops[op].writes]))

    for value in graph.values:
        if value.origin in (Origin.STATIC, Origin.INPUT):
            start(value.id, 0, -1)
    replay(plan.fwd)
    first_backward = len(runs)
    for v in graph.fwd_outputs:
        if living[v]:
            copies[living[v][-1]].outlives = True
    saved = set(plan.saved)
    living = [there if v in saved else [] for v, there in enumerate(living)]
    for value in graph.values:
        if value.origin is Origin.TANGENT:
            start(value.id, 0, first_backward)
    replay(plan.bwd)
    for v in graph.bwd_outputs:
        if living[v]:
            copies[living[v][-1]].outlives = True
    return Trace(tuple(runs), first_backward, tuple(copies), tuple(reads), tuple(writes))


def plan_of(graph: JointGraph, solver: str, saved: Iterable[int], fwd: Sequence[Run], bwd: Sequence[Run]) -> Plan:
    """The plan that runs ``fwd`` and ``bwd`` as given and drops every copy after its last use.

    ``saved`` is cut down to what backward reads or returns. What is held from outside is not dropped: inputs in
    forward, parameters, forward's outputs, gradients.
    """
    outputs, gradients = set(graph.fwd_outputs), set(graph.bwd_outputs)
    made_late, taken = _last_uses(graph, bwd)
    made_in_backward = {v for v, _ in made_late}
    asked = taken.keys() | (gradients - made_in_backward)
    used = {v for v in saved if v in asked and graph.values[v].origin is not Origin.TANGENT}

    forward = {
        life: end for life, end in _last_uses(graph, fwd)[0].items() if life[0] not in used and life[0] not in outputs
    }
    held = outputs | (gradients - made_in_backward)
    backward = {
        (v, 0): end for v, end in taken.items() if v not in held and graph.values[v].origin is not Origin.STATIC
    }
    if bwd:
        unread = [v.id for v in graph.values if v.origin is Origin.TANGENT and v.id not in taken]
        backward |= {(v, 0): 0 for v in unread if v not in held}
    newest = dict(made_late.keys())  # copies come in order, so the newest stays
    backward |= {(v, copy): end for (v, copy), end in made_late.items() if v not in gradients or newest[v] != copy}
    return Plan(solver, tuple(sorted(used)), _with_drops(fwd, forward), _with_drops(bwd, backward))


def _last_uses(graph: JointGraph, runs: Sequence[Run]) -> tuple[dict[tuple[int, int], int], dict[int, int]]:
    """The last position that reads (or makes) each copy made here, and each value that comes from before."""
    here: dict[tuple[int, int], int] = {}
    before: dict[int, int] = {}
    newest: dict[int, int] = {}
    for position, run in enumerate(runs):
        for v in graph.touched[run.op]:
            if v in newest:
                here[v, newest[v]] = position
            else:
                before[v] = position
        for v in graph.ops[run.op].writes:
            newest[v] = run.copy
            here[v, run.copy] = position
    return here, before


def _with_drops(runs: Sequence[Run], ends: dict[tuple[int, int], int]) -> tuple[Step, ...]:
    drops: dict[int, list[Drop]] = {}
    for (value, copy), position in ends.items():
        drops.setdefault(position, []).append(Drop(value, copy))
    return tuple(step for position, run in enumerate(runs) for step in (run, *drops.get(position, ())))
