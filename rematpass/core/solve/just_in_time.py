"""From a set of saved values to a schedule: recompute each value just before backward first reads it.

Backward's own ops keep their order. Before each of them runs, what it reads and what is not there is made again from
what is, in forward's order; every copy is dropped after its last use.

A value can be let go in between and made once more (``forgotten``): it is then dropped at its last use up to the
``i``-th own op, and whoever reads it later gets a new copy.

Source: torch's ``reordering_to_mimic_autograd_engine`` (``torch/_functorch/partitioners.py``) orders recomputation in
the same way, but knows one copy of each value only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rematpass.core.graph import JointGraph, Kind, Op, Origin, Side
from rematpass.core.liveness import plan_of
from rematpass.core.schedule import Plan, Run
from rematpass.errors import PlanError


def just_in_time(
    graph: JointGraph, saved: Iterable[int], solver: str, forgotten: Mapping[int, Iterable[int]] | None = None
) -> Plan:
    """The schedule that saves ``saved`` (value ids) and makes everything else again when backward asks for it.

    Inputs that backward turns out to need are kept without being asked for: nothing can recompute them.
    ``forgotten[i]``: values that are let go when the ``i``-th of ``own_ops`` has run.

    Raises:
        PlanError: backward needs a value that is not saved and must not be computed again.
    """
    saved = set(saved)
    forward = forward_runs(graph, saved)
    in_forward = {run.op for run in forward}
    inputs = graph.kept_inputs
    there = saved | inputs | {v.id for v in graph.values if v.origin is Origin.TANGENT}
    times: dict[int, int] = {}
    backward: list[Run] = []

    def run(op: int) -> None:
        copy = times.get(op, 1 if op in in_forward else 0)
        times[op] = copy + 1
        backward.append(Run(op, copy))
        there.update(graph.ops[op].writes)

    def again(op: int) -> None:
        name = f"{solver}: backward needs op {op} ({graph.ops[op].name}) again"
        if op in graph.runs_once and (op in times or op in in_forward):
            why = graph.ops[op].never_recompute or "the user wants its value saved"
            raise PlanError(f"{name}, which must not run twice: {why}")
        if lost := [v for v in graph.ops[op].reads if v not in there]:
            raise PlanError(f"{name}, and value {lost[0]}, which it reads, can neither be saved nor made again")
        run(op)

    def provide(values: Iterable[int]) -> None:
        missing = [v for v in values if v not in there]
        for op in graph.ancestors(missing, there) if missing else ():
            again(op)

    forgotten = forgotten or {}
    own = own_ops(graph)
    mutations = [op for op in own if op.kind is Kind.MUTATION]
    for moment, op in enumerate(own[: len(own) - len(mutations)]):
        provide(op.reads)
        run(op.id)
        there.difference_update(forgotten.get(moment, ()))
    provide(graph.bwd_outputs)
    provide(v for op in mutations for v in op.reads)
    for op in mutations:
        run(op.id)
    overwritten_here = {v for op in mutations for v in op.mutates}
    return plan_of(graph, solver, saved | inputs | overwritten_here, forward, backward)


def own_ops(graph: JointGraph) -> list[Op]:
    """Backward's own ops in their order; mutations come last, when all has read the bytes that they overwrite."""
    own = [op for op in graph.ops if graph.sides[op.id] is Side.BACKWARD]
    return sorted(own, key=lambda op: op.kind is Kind.MUTATION)


def forward_runs(graph: JointGraph, saved: Iterable[int]) -> list[Run]:
    """Forward's own ops, and those of neither side that ``saved`` values come from, in their order."""
    ops = {op.id for op in graph.ops if graph.sides[op.id] is Side.FORWARD}
    made = {v for op in ops for v in graph.ops[op].writes}
    ops.update(graph.ancestors([v for v in saved if v not in made], made))
    return [Run(op) for op in sorted(ops)]
