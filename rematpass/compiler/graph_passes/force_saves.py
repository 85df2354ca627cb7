"""Settle the marks of activation checkpointing, and mark what must be saved whatever the plan.

The rules are those of torch's own partitioner: results of collectives (unless its setting allows to optimize them) and
of ops with side effects are saved, and so are the sources of mutations in backward. What one region passes to the next
is saved, and so is a region's output with a backward hook: the region may have to wait for the hook to run again, and
the hook for the gradient, which the output's readers compute from the output.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch
from rematpass.compiler.ops.traits import aliased_argument, user_mark


def force_saves(module: fx.GraphModule) -> None:
    """Write the marks into ``node.meta["recompute"]``, where ``user_mark`` reads them."""
    if _torch.has_recomputable_ops(module):
        _torch.cleanup_recompute_tags(module, is_default_partition=False)
        _save_hooked_outputs(module)
    if not _torch.functorch_config.unsafe_allow_optimization_of_collectives:
        _torch.force_save_collectives(module)
    _torch.force_save_effectful_ops(module)
    _torch.force_save_bw_mutation_src(module)


def _save_hooked_outputs(module: fx.GraphModule) -> None:
    """Save outputs of regions with a backward hook; torch takes one that its own region detaches for no output."""
    for node in module.graph.nodes:
        hooked = node.meta.get("has_backward_hook") and user_mark(node) == "recompute"
        if hooked and not any(user_mark(reader) == "recompute" for reader in _readers(node)):
            node.meta["recompute"] = CheckpointPolicy.MUST_SAVE


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read the value of ``node``, also through views of it."""
    for user in node.users:
        if user.op == "call_function" and aliased_argument(user, 0) is node:
            yield from _readers(user)
        else:
            yield user
