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

from rematpass.core.graph import JointGraph, Kind, Op
from rematpass.core.liveness import plan_of
from rematpass.core.schedule import Plan, Run, run
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
    times = [0] * len(graph.ops)  # how often each op has run
    for step in forward:
        times[step.op] = 1
    inputs = graph.kept_inputs
    there = {*saved, *inputs, *graph.tangents}
    backward: list[Run] = []

    def make_again(values: Iterable[int]) -> None:
        for id in graph.ancestors(values, there):
            op = graph.ops[id]
            if times[id] and id in graph.runs_once:
                why = op.never_recompute or "the user wants its value saved"
                raise PlanError(f"{asked_for(op)}, which must not run twice: {why}")
            if not there.issuperset(op.reads):
                lost = next(v for v in op.reads if v not in there)
                raise PlanError(
                    f"{asked_for(op)}, and value {lost}, which it reads, can be neither saved nor made again"
                )
            backward.append(run(id, times[id]))
            times[id] += 1
            there.update(op.writes)

    def asked_for(op: Op) -> str:
        return f"{solver}: backward needs op {op.id} ({op.name}) again"

    forgotten = forgotten or {}
    mutations = [op for op in graph.own_ops if op.kind is Kind.MUTATION]
    for moment, op in enumerate(graph.own_ops[: len(graph.own_ops) - len(mutations)]):
        if not there.issuperset(op.reads):
            make_again(op.reads)
        backward.append(run(op.id))
        there.update(op.writes)
        if moment in forgotten:
            there.difference_update(forgotten[moment])
    make_again(graph.bwd_outputs)
    make_again(v for op in mutations for v in op.reads)
    backward += [run(op.id) for op in mutations]
    overwritten_here = {v for op in mutations for v in op.mutates}
    return plan_of(graph, solver, saved | inputs | overwritten_here, forward, backward)


def forward_runs(graph: JointGraph, saved: Iterable[int]) -> list[Run]:
    """Forward's own ops, and those of neither side that ``saved`` values come from, in their order."""
    ops, made = graph.forward_ops, graph.made_in_forward
    aside = graph.ancestors([v for v in saved if v not in made], made)
    return [run(op) for op in (sorted({*ops, *aside}) if aside else ops)]
