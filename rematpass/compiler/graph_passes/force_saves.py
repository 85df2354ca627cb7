"""Settle the marks of activation checkpointing, and mark what must be saved whatever the plan.

The rules are those of torch's own partitioner: results of collectives (unless its setting allows to optimize them) and
of ops with side effects are saved, and so are the sources of mutations in backward.
"""

from __future__ import annotations

from torch import fx

from rematpass.compiler import _torch


def force_saves(module: fx.GraphModule) -> None:
    """Write the marks into ``node.meta["recompute"]``, where ``user_mark`` reads them."""
    if _torch.has_recomputable_ops(module):
        _torch.cleanup_recompute_tags(module, is_default_partition=False)
    if not _torch.functorch_config.unsafe_allow_optimization_of_collectives:
        _torch.force_save_collectives(module)
    _torch.force_save_effectful_ops(module)
    _torch.force_save_bw_mutation_src(module)
