"""From a set of saved values to a schedule that recomputes each value as late as possible.

Backward's own ops keep their order (``JointGraph.backward_ops``). Before each of them, the values that it reads and
that are not available are recomputed from those that are, in forward's order. Every copy is dropped after its last
use::

        saved: a            forward:   a ─▶ [f] ─▶ b ─▶ [g] ─▶ c          backward op i reads c, op i + 1 reads b

        backward:  ... f'  g'  [op i]  [op i + 1] ...                     f' and g' recompute b and c for op i

A value can also be *evicted*: ``evicted[i]`` lists values that stop being available once backward op i has run. Their
copies are dropped at the last use up to there, and a later reader gets a new copy. In the graph above, evicting b after
op i makes f run once more before op i + 1.

Source: torch's ``reordering_to_mimic_autograd_engine`` (``torch/_functorch/partitioners.py``) orders recomputation in
the same way, but allows only one copy of each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from rematpass.core.graph import JointGraph
from rematpass.core.liveness import plan_of
from rematpass.core.op import Op
from rematpass.core.schedule import Plan, RunArrays
from rematpass.errors import PlanError


def schedule_late(
    graph: JointGraph, saved: Iterable[int], solver: str, evicted: Mapping[int, Iterable[int]] | None = None
) -> Plan:
    """The schedule that saves ``saved`` (value ids) and recomputes everything else when backward needs it.

    Inputs of forward that backward needs are saved even if not listed: nothing can recompute them. ``evicted[i]``:
    values that are not available any more once the ``i``-th of ``backward_ops`` has run.

    Raises:
        PlanError: backward needs a value that is neither saved nor allowed to be recomputed.
    """
    saved = set(saved)
    forward = forward_ops(graph, saved)
    ran = set(forward)
    ops, runs_once, inputs = graph.ops, graph.runs_once, graph.kept_inputs
    available = {*saved, *inputs, *graph.tangents}
    backward: list[int] = []

    def recompute(values: Iterable[int]) -> None:
        chain = graph.ancestors(values, available)
        for id in chain:
            op = ops[id]
            if id in runs_once:
                if id in ran:
                    why = op.never_recompute or "the user wants its value saved"
                    raise PlanError(f"{needs(op)}, which must not run twice: {why}")
                ran.add(id)
            if not available.issuperset(op.reads):
                lost = next(v for v in op.reads if v not in available)
                raise PlanError(f"{needs(op)}, and value {lost}, which it reads, can be neither saved nor recomputed")
            available.update(op.writes)
        backward.extend(chain)

    def needs(op: Op) -> str:
        return f"{solver}: backward needs op {op.id} ({op.name}) again"

    evicted = evicted or {}
    mutations = graph.backward_mutations
    for index, op in enumerate(graph.backward_ops[: len(graph.backward_ops) - len(mutations)]):
        if not available.issuperset(op.reads):
            recompute(op.reads)
        backward.append(op.id)
        available.update(op.writes)
        if index in evicted:
            available.difference_update(evicted[index])
    recompute(graph.bwd_outputs)
    recompute(v for op in mutations for v in op.reads)
    backward += [op.id for op in mutations]
    overwritten = {v for op in mutations for v in op.mutates}  # not read, but backward needs their storage
    fwd, bwd = _numbered(forward, backward)
    return plan_of(graph, solver, saved | inputs | overwritten, fwd, bwd)


def forward_ops(graph: JointGraph, saved: Iterable[int]) -> list[int]:
    """Forward's own ops, and the ops of neither side that produce ``saved`` values, in their order."""
    made = graph.made_in_forward
    either = graph.ancestors([v for v in saved if v not in made], made)
    return sorted({*graph.forward_ops, *either})


def _numbered(forward: list[int], backward: list[int]) -> tuple[RunArrays, RunArrays]:
    """Runs of these ops in sequence; each run of an op makes the next copy of what it writes."""
    ops = np.array([*forward, *backward], np.int64)
    order = np.argsort(ops, kind="stable")
    copies = np.empty_like(ops)
    copies[order] = np.arange(len(ops)) - np.searchsorted(ops[order], ops[order])
    split = len(forward)
    return RunArrays(ops[:split], copies[:split]), RunArrays(ops[split:], copies[split:])
