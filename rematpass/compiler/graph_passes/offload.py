"""Hand values that the user wants on the CPU to torch's own offloading.

The policy MUST_CPU_OFFLOAD saves a value. If ``torch._functorch.config.enable_activation_offloading`` is set, torch's
pass moves these values to the CPU in forward and back in backward.
"""

from __future__ import annotations

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch
from rematpass.compiler.graph_passes.step_facts import StepFacts

_OFFLOAD = getattr(CheckpointPolicy, "MUST_CPU_OFFLOAD", None)  # not in torch 2.11


def offload(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts) -> None:
    """Mark the values for torch's pass, and run it."""
    for node in fwd.graph.nodes:
        if _OFFLOAD is not None and node.meta.get("recompute") is _OFFLOAD:
            node.meta["should_offload"] = True
    static = [n for n in fwd.graph.find_nodes(op="placeholder") if n.name in facts.static_inputs]
    _torch.insert_offloads(fwd, bwd, facts.num_fwd_outputs, static)
