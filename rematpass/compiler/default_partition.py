"""What torch's own partitioner does with a joint graph: the default, as a plan and as the modules for Inductor.

The modules are handed out untouched: no pass of this backend runs over them, and Inductor runs them in its own order
(``scheduler_pass.follow_plan``). So a model whose default is taken compiles and runs as under plain ``torch.compile``.

The default is taken only if its saved values make a plan that the judge accepts, no effect is missing, and nothing runs
again from another random state. This excludes what torch's partitioner gets wrong, such as reading an input in backward
that forward has overwritten, and what users' marks and options forbid (``save_decisions``). Torch's partitioner is then
asked again, with marks on what must be saved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch
from rematpass.compiler.capture.functional import not_functional
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.ops.kinds import needs_random_state
from rematpass.compiler.ops.size_hints import hint
from rematpass.core.frontier import Default
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Origin
from rematpass.core.schedule import Plan
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.verify import verify
from rematpass.errors import PlanError

log = logging.getLogger("rematpass")

_EFFECTS = frozenset({Kind.MUTATION, Kind.EFFECT, Kind.COLLECTIVE})
SOLVER = "torch"  # as the solver of the plan, in log lines and reports

Modules = tuple[fx.GraphModule, fx.GraphModule]  # forward and backward


@dataclass(frozen=True)
class Joint:
    """What AOTAutograd passes to a partition function. ``settings``: the keyword arguments."""

    module: fx.GraphModule
    inputs: Sequence[object]
    settings: dict[str, Any]

    def default_partition(self, module: fx.GraphModule | None = None) -> Modules:
        """The modules of torch's own partitioner, which changes the joint graph; ``module``: a copy to use instead.

        torch's minimum cut is wrong for graphs that are not functional: all that backward reads is saved there.
        """
        module = module or self.module
        partition = _torch.default_partition if not_functional(module.graph) is None else _torch.save_all_partition
        return partition(module, self.inputs, **self.settings)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class DefaultPartition:
    """The modules of torch's partitioner. ``saved``: the values that they save, which take ``saved_nbytes``.

    A saved view counts with its own elements, since Inductor need not compute the rest of its storage.
    """

    modules: Modules
    saved: frozenset[int]
    saved_nbytes: int
    stateful: frozenset[int]  # ops that start from a random state, which torch's modules do not restore

    def plan(self, graph: JointGraph) -> Plan:
        """The plan of these saved values.

        Raises:
            PlanError: the judge rejects it, or an op runs again from another random state.
        """
        plan = schedule_late(graph, self.saved, SOLVER)
        verify(graph, plan)
        again = next((run.op for run in plan.recomputed() if run.op in self.stateful), None)
        if again is not None:
            raise PlanError(f"op {again} ({graph.ops[again].name}) runs again from another random state")
        return plan

    def rung(self, problem: Problem, plan: Plan) -> Default:
        """The default as a rung of the ladder; ``plan``: its plan."""
        of_others = int(problem.graph.nbytes_of_others[list(plan.saved)].sum())
        return Default(Rung(plan, problem.timeline(plan)), self.saved_nbytes + of_others)


def default_partitions(captured: Captured, joint: Joint) -> Iterator[DefaultPartition]:
    """What torch's partitioner does with the joint graph, which stays as it is, in terms of ``captured``.

    First with the graph as it came; then with the graph of ``captured``, where inputs that forward overwrites are read
    through clones, and with all marked as saved that must not run twice. A partition that fails, or that saves a node
    that ``captured`` does not have, is left out.
    """
    for prepare in (lambda: copy_module(joint.module), lambda: _constrained(captured)):
        try:
            with _torch.functorch_config.patch(activation_memory_budget=1.0):  # torch's own budget is ignored
                yield _read(captured, joint.default_partition(prepare()))
        except Exception:
            log.debug("what torch's own partitioner would save is not known", exc_info=True)


def _constrained(captured: Captured) -> fx.GraphModule:
    """A copy of the captured module in which results of ops that must not run twice are marked as saved."""
    module, graph = copy_module(captured.module), captured.graph
    marked = graph.made_in_forward.intersection(v for op in graph.runs_once for v in graph.ops[op].writes)
    names = {node.name for v in marked if (node := captured.value_node[v]) is not None}
    for node in module.graph.nodes:
        if node.name in names:
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
    return module


def _read(captured: Captured, modules: Modules) -> DefaultPartition:
    """The values of ``captured`` that forward hands over to backward.

    Raises:
        KeyError: it hands over a node that ``captured`` does not have.
        PlanError: an op with an effect is missing. Torch's partitioner drops what backward overwrites in ops without
            its tag, such as those of an ``autograd.Function``.
    """
    kept = {node.name for module in modules for node in module.graph.nodes}
    for op, node in zip(captured.graph.ops, captured.op_node, strict=True):
        if op.kind in _EFFECTS and node.name not in kept:
            raise PlanError(f"op {op.id} ({op.name}) has an effect, and torch's partitioner drops it")
    nodes = {node.name: node for node in captured.module.graph.nodes}
    handed_over = modules[0].graph.find_nodes(op="output")[0].args[0][len(captured.fwd_outputs) :]
    values = {n: captured.node_values[nodes[n.name]] for n in handed_over if isinstance(n, fx.Node)}
    nbytes: dict[int, int] = {}
    for node, of_node in values.items():
        for v in of_node:
            if captured.graph.values[v].origin is Origin.OP:
                most = captured.graph.values[v].nbytes
                nbytes[v] = max(nbytes.get(v, 0), min(most, _own_nbytes(node, most)))
    saved = frozenset(v for of_node in values.values() for v in of_node)
    stateful = frozenset(i for i, node in enumerate(captured.op_node) if needs_random_state(node))
    return DefaultPartition(modules, saved, sum(nbytes.values()), stateful)


def _own_nbytes(node: fx.Node, otherwise: int) -> int:
    value: Any = node.meta.get("val")
    return hint(value.numel()) * value.element_size() if isinstance(value, torch.Tensor) else otherwise
