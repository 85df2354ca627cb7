"""Whether a joint graph is functional: no op reads a tensor that an earlier op of forward has overwritten.

AOTAutograd makes all graphs functional; what a program overwrites is then written to inputs by ``copy_``, and nothing
reads the result. With ``aot_autograd(disable_functionalization=True)`` graphs stay as traced. Recomputation reads
values again at other places, where such a graph may have overwritten them, so it is not planned.
"""

from __future__ import annotations

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.ops.node_info import mutated_arguments
from rematpass.compiler.ops.traits import aliased_argument
from rematpass.errors import CaptureError


def check_functional(graph: fx.Graph) -> None:
    """Raise CaptureError if the graph is not functional; the message names the node."""
    if (node := not_functional(graph)) is not None:
        raise CaptureError(
            f"the graph is not functional: {node.format_node()} overwrites a tensor that is read afterwards, or reads "
            "one that was overwritten. Let AOTAutograd make it functional (disable_functionalization=False)"
        )


def not_functional(graph: fx.Graph) -> fx.Node | None:
    """The first node that overwrites an intermediate result, or whose overwritten argument is read; or None."""
    overwritten: set[int | None] = set()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        changed = mutated_arguments(node)
        if changed and (any(n.op != "placeholder" for n in changed) or any(u.op != "output" for u in node.users)):
            return node
        in_forward = "forward" in node.meta.get("partitioner_tag", "")
        reads = [n for n in node.all_input_nodes if n not in changed]
        if in_forward and aliased_argument(node, 0) is None and any(_storage(n) in overwritten for n in reads):
            return node
        overwritten.update(_storage(n) for n in changed)
        overwritten.discard(None)
    return None


def _storage(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return _torch.storage_key(value) if isinstance(value, torch.Tensor) else None
