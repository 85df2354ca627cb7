"""What torch's own partitioner does around its decision, and what differs there between torch versions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx
from torch._functorch import config as functorch_config
from torch._functorch import partitioners
from torch._functorch.partitioners import is_sym_node, thread_graphsafe_rng_from_hops
from torch.fx import traceback as fx_traceback
from torch.utils._ordered_set import OrderedSet


def extract_fwd_bwd_modules(
    module: fx.GraphModule,
    saved: Sequence[fx.Node],
    *,
    num_fwd_outputs: int,
    static_inputs: Sequence[fx.Node],
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a joint module at ``saved``; symbolic sizes and opaque objects are passed apart from tensors."""
    sizes = [n for n in saved if is_sym_node(n)]
    opaque = [n for n in saved if is_opaque_node(n)]
    tensors = [n for n in saved if not is_sym_node(n) and not is_opaque_node(n)]
    more: dict[str, Any] = {"saved_opaque_nodes": opaque} if opaque else {}
    return partitioners._extract_fwd_bwd_modules(  # type: ignore[no-any-return]
        module,
        tensors,
        saved_sym_nodes=sizes,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=OrderedSet(static_inputs),
        **more,
    )


def thread_rng_states(fwd: fx.GraphModule, bwd: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Pass the random states of higher-order ops' subgraphs through the inputs of the two graphs."""
    return (
        thread_graphsafe_rng_from_hops(fwd, is_backward=False),
        thread_graphsafe_rng_from_hops(bwd, is_backward=True),
    )


def insert_offloads(
    fwd: fx.GraphModule, bwd: fx.GraphModule, num_fwd_outputs: int, static_inputs: Sequence[fx.Node]
) -> None:
    """Move saved values marked ``should_offload`` to the CPU and back, if torch's setting asks for it."""
    if getattr(functorch_config, "enable_activation_offloading", False):
        from torch._functorch._activation_offloading.activation_offloading import enable_activation_offloading

        enable_activation_offloading(fwd, bwd, num_fwd_outputs, OrderedSet(static_inputs))


def is_opaque_node(node: fx.Node) -> bool:
    """Whether the node holds a script object rather than a tensor or a size; torch 2.11 has none of these."""
    known = getattr(partitioners, "is_opaque_node", None)
    return bool(known and known(node))


def region_budget_of(node: fx.Node) -> float | None:
    """The fraction that ``torch.autograd.graph.region_activation_memory_budget`` gives a node; not in torch 2.11."""
    key = getattr(fx_traceback, "MEMORY_BUDGET_ANNOTATION_KEY", None)
    found = (node.meta.get("custom") or {}).get(key) if key else None
    return None if found is None else float(found)
