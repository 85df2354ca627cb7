"""Set missing fake results of subgraph calls from the subgraph's outputs.

torch's auto-chunker (``torch._inductor.fx_passes.auto_chunker``, torch 2.11 to 2.15) writes the loss and its gradients
as calls of ``invoke_subgraph`` and leaves them without ``meta["val"]``, so their bytes would be unknown to the planner.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch


def infer_subgraph_results(module: fx.GraphModule) -> None:
    """Set ``meta["val"]`` of each such call in ``module``, and in its subgraphs first."""
    for child in module.children():
        if isinstance(child, fx.GraphModule):
            infer_subgraph_results(child)
    for call in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph):
        subgraph = getattr(module, str(call.args[0].target), None)
        if "val" in call.meta or not isinstance(subgraph, fx.GraphModule):
            continue
        results = _torch.pytree.arg_tree_leaves(*subgraph.graph.find_nodes(op="output")[0].args)
        call.meta["val"] = tuple(map(_like, results))


def _like(result: Any) -> Any:
    """The fake result of a call: a tensor of its own, since two calls of one subgraph share no storage."""
    value = result.meta.get("val") if isinstance(result, fx.Node) else result
    if not isinstance(value, torch.Tensor):
        return value
    with _torch.fake_mode_of(value):
        return torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=value.device)
