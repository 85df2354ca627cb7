"""Bytes that a call allocates inside its subgraphs: regions that are compiled once, branches of ``torch.cond``.

A subgraph is simulated like a forward. Its peak, less the bytes of its results, is the workspace of the call; of two
branches the larger one counts. (The dry run later gives the peak of the whole step, subgraphs included.)

    subgraph  x ──▶ [mm] ──▶ a ──▶ [gelu] ──▶ b ──▶ [mm] ──▶ y        workspace: a and b, or b and y, less y
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rematpass.compiler._torch import HigherOrderOperator
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.ops.kinds import subgraphs_of
from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.simulate import simulate
from rematpass.core.solve.schedule_late import schedule_late

# Calls that run their subgraphs as they are; the subgraphs of others describe what happens to one element.
_RUNS_SUBGRAPHS = frozenset({"invoke_subgraph", "cond"})


def subgraphs_run_by(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The subgraphs that a call runs."""
    if isinstance(node.target, HigherOrderOperator) and node.target.name() in _RUNS_SUBGRAPHS:
        yield from subgraphs_of(node)


def as_forward(subgraph: fx.GraphModule) -> fx.GraphModule:
    """A copy without tangents: some inputs of a subgraph of backward are named like tangents."""
    module = copy_module(subgraph)
    for index, node in enumerate(module.graph.find_nodes(op="placeholder")):
        node.target = f"input_{index}"
    return module


def workspace_of(graph: JointGraph, *, fuse: bool) -> int:
    """The peak of a graph that is all forward, in bytes, less the bytes of its results."""
    costs = Costs(run=(0.0,) * len(graph.ops), keep=(0.0,) * len(graph.values))
    peak = simulate(graph, schedule_late(graph, (), "subgraph"), costs, fuse=fuse).peak
    return max(0, peak - sum(graph.values[v].nbytes for v in {*graph.fwd_outputs} - {*graph.forward_inputs}))
