"""From a set of saved values to a schedule: recompute each value just before backward first reads it.

Backward's own ops keep their order. Before each of them runs, what it reads and what is not there is made again from
what is, in forward's order; every copy is dropped after its last use.

A value can be let go in between and made once more (``evicted``): it is then dropped at its last use up to the
``i``-th own op, and whoever reads it later gets a new copy.

Source: torch's ``reordering_to_mimic_autograd_engine`` (``torch/_functorch/partitioners.py``) orders recomputation in
the same way, but knows one copy of each value only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from rematpass.core.graph import JointGraph, Op
from rematpass.core.liveness import plan_of
from rematpass.core.schedule import Plan, Runs
from rematpass.errors import PlanError


def schedule_late(
    graph: JointGraph, saved: Iterable[int], solver: str, evicted: Mapping[int, Iterable[int]] | None = None
) -> Plan:
    """The schedule that saves ``saved`` (value ids) and makes everything else again when backward asks for it.

    Inputs that backward turns out to need are kept without being asked for: nothing can recompute them.
    ``evicted[i]``: values that are let go when the ``i``-th of ``backward_ops`` has run.

    Raises:
        PlanError: backward needs a value that is not saved and must not be computed again.
    """
    saved = set(saved)
    forward = forward_ops(graph, saved)
    ran = set(forward)
    ops, runs_once, inputs = graph.ops, graph.runs_once, graph.kept_inputs
    there = {*saved, *inputs, *graph.tangents}
    backward: list[int] = []

    def make_again(values: Iterable[int]) -> None:
        chain = graph.ancestors(values, there)
        for id in chain:
            op = ops[id]
            if id in runs_once:
                if id in ran:
                    why = op.never_recompute or "the user wants its value saved"
                    raise PlanError(f"{asked_for(op)}, which must not run twice: {why}")
                ran.add(id)
            if not there.issuperset(op.reads):
                lost = next(v for v in op.reads if v not in there)
                raise PlanError(
                    f"{asked_for(op)}, and value {lost}, which it reads, can be neither saved nor made again"
                )
            there.update(op.writes)
        backward.extend(chain)

    def asked_for(op: Op) -> str:
        return f"{solver}: backward needs op {op.id} ({op.name}) again"

    evicted = evicted or {}
    mutations = graph.own_mutations
    for moment, op in enumerate(graph.backward_ops[: len(graph.backward_ops) - len(mutations)]):
        if not there.issuperset(op.reads):
            make_again(op.reads)
        backward.append(op.id)
        there.update(op.writes)
        if moment in evicted:
            there.difference_update(evicted[moment])
    make_again(graph.bwd_outputs)
    make_again(v for op in mutations for v in op.reads)
    backward += [op.id for op in mutations]
    overwritten_here = {v for op in mutations for v in op.mutates}
    fwd, bwd = _numbered(forward, backward)
    return plan_of(graph, solver, saved | inputs | overwritten_here, fwd, bwd)


def forward_ops(graph: JointGraph, saved: Iterable[int]) -> list[int]:
    """Forward's own ops, and those of neither side that ``saved`` values come from, in their order."""
    made = graph.made_in_forward
    aside = graph.ancestors([v for v in saved if v not in made], made)
    return sorted({*graph.forward_ops, *aside})


def _numbered(forward: list[int], backward: list[int]) -> tuple[Runs, Runs]:
    """Runs of these ops, one after another; each makes the next copy of what it writes."""
    ops = np.array([*forward, *backward], np.int64)
    order = np.argsort(ops, kind="stable")
    copies = np.empty_like(ops)
    copies[order] = np.arange(len(ops)) - np.searchsorted(ops[order], ops[order])
    split = len(forward)
    return Runs(ops[:split], copies[:split]), Runs(ops[split:], copies[split:])
