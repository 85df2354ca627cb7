"""Inputs that forward overwrites: a ``clone`` in front of their other readers holds the old version.

So that one is an ordinary value: saved as that clone, or never read in backward. (torch's own partitioner lets backward
read the input itself, after the update.) A clone that nothing saves disappears again in ``emit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.ops.node_info import mutated_arguments, pinned
from rematpass.core.op import Kind, Side


def overwritten_by_forward(
    graph: fx.Graph, primals: Sequence[fx.Node], descriptions: Sequence[Any]
) -> frozenset[fx.Node]:
    """The inputs whose bytes forward changes, in the graph (``copy_``) or right after it (an output says so)."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "call_function" and pinned(node, Kind.MUTATION) is Side.FORWARD:
            found.update(n for n in mutated_arguments(node) if n.op == "placeholder")
    after = {d.mutated_input for d in descriptions if hasattr(d, "mutated_input")}
    found.update(n for n in primals if n.meta.get("desc") in after and n.meta.get("desc") is not None)
    return frozenset(found)


def clone_old_version(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A clone of the input for all its readers but those that overwrite it and the graph's outputs."""
    with graph.inserting_after(node):
        clone = graph.call_function(torch.ops.aten.clone.default, (node,))
    value = node.meta.get("val")
    with _torch.fake_mode_of(value):
        clone.meta = {k: v for k, v in node.meta.items() if k != "desc"} | {"val": value.clone()}

    def reads_only(user: fx.Node) -> bool:
        return user is not clone and user.op != "output" and node not in mutated_arguments(user)

    node.replace_all_uses_with(clone, delete_user_cb=reads_only)
    return clone
