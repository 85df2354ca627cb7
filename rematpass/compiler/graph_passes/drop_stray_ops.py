"""Drop ops from backward that the plan does not run there, although torch's extraction of backward keeps them.

These are random ops without inputs, and forward's assertions about data-dependent sizes, together with the ops that
compute these sizes from what backward has. Run again, both would draw new random numbers.
"""

from __future__ import annotations

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.graph_passes.step_facts import StepFacts


def drop_stray_ops(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts) -> None:
    """Erase calls in backward without readers, unless they are backward's own and have an effect."""
    before = len(bwd.graph.nodes)
    for node in reversed(list(bwd.graph.nodes)):
        runs_for_effect = node.meta.get("partitioner_tag") == "is_backward" and _torch.is_impure(node)
        if node.op == "call_function" and not node.users and not runs_for_effect:
            bwd.graph.erase_node(node)
    if len(bwd.graph.nodes) < before:
        bwd.recompile()
