"""Clone inputs that forward overwrites, so that their old versions are ordinary values.

The clone stands in front of all readers of the old version::

    buffer ──┬──▶ [sin]                   buffer ──┬──▶ [clone] ──▶ [sin]
             └──▶ [copy_]                          └──▶ [copy_]

The planner then saves the old version as that clone, or backward never reads it. (torch's own partitioner lets backward
read the input itself, after the update.) ``emit`` leaves out a clone that is not saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import pytree
from rematpass.compiler.ops.node_info import is_tangent, mutated_arguments, pinned
from rematpass.core.op import Kind, Side

_IS_OLD_VERSION = "rematpass_is_old_version"  # in node.meta of the clones


def clone_mutated_inputs(module: fx.GraphModule) -> None:
    """Add a clone for each input that forward overwrites."""
    output = module.graph.find_nodes(op="output")[0]
    primals = [n for n in module.graph.find_nodes(op="placeholder") if not is_tangent(n)]
    descriptions = pytree.arg_tree_leaves(output.meta.get("desc", []))
    for node in sorted(_overwritten_by_forward(module.graph, primals, descriptions)):
        _clone_old_version(module.graph, node)


def old_versions(module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """The clones that ``clone_mutated_inputs`` has added, each with its input."""
    return {node: node.args[0] for node in module.graph.nodes if node.meta.get(_IS_OLD_VERSION)}


def _overwritten_by_forward(
    graph: fx.Graph, primals: Sequence[fx.Node], descriptions: Sequence[Any]
) -> frozenset[fx.Node]:
    """The inputs that forward overwrites, in the graph (``copy_``) or right after it (the output's description)."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and pinned(node, Kind.MUTATION) is Side.FORWARD:
            found.update(n for n in mutated_arguments(node) if n.op == "placeholder")
    after = {d.mutated_input for d in descriptions if hasattr(d, "mutated_input")}
    found.update(n for n in primals if n.meta.get("desc") in after and n.meta.get("desc") is not None)
    return frozenset(found)


def _clone_old_version(graph: fx.Graph, node: fx.Node) -> None:
    """Clone ``node`` for all readers except those that overwrite it and the graph's outputs."""
    with graph.inserting_after(node):
        clone = graph.call_function(torch.ops.aten.clone.default, (node,))
    value = node.meta.get("val")
    with _torch.fake_mode_of(value):
        clone.meta = {k: v for k, v in node.meta.items() if k != "desc"}
        clone.meta |= {"val": value.clone(), _IS_OLD_VERSION: True}

    def reads_only(user: fx.Node) -> bool:
        return user is not clone and user.op != "output" and node not in mutated_arguments(user)

    node.replace_all_uses_with(clone, delete_user_cb=reads_only)
