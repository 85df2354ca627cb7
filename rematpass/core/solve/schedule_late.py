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
    values that stop being available once the ``i``-th of ``backward_ops`` has run.

    Raises:
        PlanError: backward needs a value that is neither saved nor allowed to be recomputed.
    """
    saved = set(saved)
    forward = forward_ops(graph, saved)
    backward = _Backward(graph, solver, saved, forward)
    evicted = evicted or {}
    mutations = graph.backward_mutations
    for index, op in enumerate(graph.backward_ops[: len(graph.backward_ops) - len(mutations)]):
        backward.run(op)
        if index in evicted:
            backward.available.difference_update(evicted[index])
    backward.recompute(graph.bwd_outputs)
    backward.recompute(v for op in mutations for v in op.reads)
    backward.runs += [op.id for op in mutations]
    overwritten = {v for op in mutations for v in op.mutates}  # not read, but backward needs their storage
    fwd, bwd = _numbered(forward, backward.runs)
    return plan_of(graph, solver, saved | graph.kept_inputs | overwritten, fwd, bwd)


class _Backward:
    """Backward's runs so far, and the values that are available after them."""

    def __init__(self, graph: JointGraph, solver: str, saved: set[int], forward: list[int]) -> None:
        self.graph, self.solver = graph, solver
        self.available = {*saved, *graph.kept_inputs, *graph.tangents}
        self.runs: list[int] = []
        self._ran = set(forward)

    def run(self, op: Op) -> None:
        """Run an own op of backward, and before it the ops that recompute its missing arguments."""
        if not self.available.issuperset(op.reads):
            self.recompute(op.reads)
        self.runs.append(op.id)
        self.available.update(op.writes)

    def recompute(self, values: Iterable[int]) -> None:
        """Run the ops that compute ``values`` from what is available."""
        runs_once, available = self.graph.runs_once, self.available
        chain = self.graph.ancestors(values, available)
        for id in chain:
            op = self.graph.ops[id]
            if id in runs_once:
                if id in self._ran:
                    reason = op.never_recompute or "the user wants its value saved"
                    raise PlanError(f"{self._needs(op)}, which must not run twice: {reason}")
                self._ran.add(id)
            if not available.issuperset(op.reads):
                lost = next(v for v in op.reads if v not in available)
                raise PlanError(
                    f"{self._needs(op)}, and value {lost}, which it reads, can be neither saved nor recomputed"
                )
            available.update(op.writes)
        self.runs.extend(chain)

    def _needs(self, op: Op) -> str:
        return f"{self.solver}: backward needs op {op.id} ({op.name}) again"


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
