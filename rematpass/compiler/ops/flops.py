"""The FLOPs of a call: torch's own formulas, and formulas for attention that also cover the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import fx, ops
from torch.utils.flop_counter import flop_registry

from rematpass.compiler._torch import pytree
from rematpass.compiler.ops.size_hints import hint

log = logging.getLogger("rematpass")


def flops_of(node: fx.Node) -> int:
    """The FLOPs of a node's call; 0 if there is no formula for the op, or none for these shapes."""
    packet = getattr(node.target, "overloadpacket", node.target)
    count = ATTENTION_FLOPS.get(packet) or flop_registry.get(packet)
    if count is None:
        return 0
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), (node.args, node.kwargs))
    try:
        return hint(count(*args, **kwargs, out_val=node.meta.get("val")))
    except (AssertionError, IndexError, TypeError, ValueError) as error:  # the cost model still has the bytes
        log.debug("the FLOPs of %s are not known: %s", node.target, error)
        return 0


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products over (batch, heads, queries, keys, width). Several query heads may share a head of keys."""
    batch, heads, queries, width = (hint(n) for n in query.shape)
    keys, value_width = (hint(n) for n in value.shape[-2:])
    return 2 * batch * heads * queries * keys * (width + value_width)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Five products: the scores once more, then the gradients of values, scores, queries and keys."""
    batch, heads, queries, width = (hint(n) for n in query.shape)
    keys, value_width = (hint(n) for n in value.shape[-2:])
    return 2 * batch * heads * queries * keys * (3 * width + 2 * value_width)


_attention._get_raw = _attention_backward._get_raw = True  # type: ignore[attr-defined]  # called with tensors, not shapes
# torch's registry has no attention of the CPU, and its formulas reject fewer heads of keys than of queries.
ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    getattr(ops.aten, f"_scaled_dot_product_{kind}{suffix}"): count
    for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, count in (("", _attention), ("_backward", _attention_backward))
}
