"""Replace results of a region's call that alias its arguments, or another of its results, by what they alias.

``torch.compiler.nested_compile_region`` compiles a subgraph once. Each call returns what backward needs, which is often
an argument of the call, a view of one, or the same result twice::

    subgraph(x, w): h = x @ w; return h, h, x.t(), w.t()        after this pass, the caller reads h once from the call,
                                                                and x.t() and w.t() from views of its own x and w

Without this pass, the graph model would count each of these results as new bytes. Inductor would do so too, and
overwrite ``x`` in place while its alias waits for backward (torch 2.13, even without rematpass: wrong gradients, and
changed weights).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from rematpass.compiler.ops.traits import aliased_argument


def dealias_subgraph_outputs(module: fx.GraphModule) -> None:
    """Rewrite the readers of all regions' calls in ``module``."""
    for call in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph):
        subgraph = getattr(module, str(call.args[0].target), None)
        if isinstance(subgraph, fx.GraphModule):
            _replace_results(call, subgraph)


def _replace_results(call: fx.Node, subgraph: fx.GraphModule) -> None:
    results = subgraph.graph.find_nodes(op="output")[0].args[0]
    if not isinstance(results, (tuple, list)):
        return
    in_caller: dict[fx.Node, fx.Node] = {}  # nodes of the subgraph -> nodes of the caller for the same value
    for placeholder, operand in zip(subgraph.graph.find_nodes(op="placeholder"), call.args[2:], strict=False):
        if isinstance(operand, fx.Node):
            in_caller[placeholder] = operand
    taken = {u.args[1]: u for u in list(call.users) if u.target is operator.getitem}
    for node in taken.values():
        call.append(node)  # move all of them right after the call, in front of the views of them
    for index in sorted(taken, key=lambda i: _is_view(results[i])):  # views last, after what they view
        result, node = results[index], taken[index]
        if not isinstance(result, fx.Node):
            continue
        with call.graph.inserting_before(_first_after(call)):
            replacement = _replay(result, in_caller, call)
        if replacement is None:
            in_caller[result] = node
        else:
            replacement.meta.setdefault("val", node.meta.get("val"))
            node.replace_all_uses_with(replacement)
            call.graph.erase_node(node)


def _first_after(call: fx.Node) -> fx.Node:
    """The first node after the call and the ``getitem`` nodes of its results."""
    node = call.next
    while node.target is operator.getitem and node.args[0] is call:
        node = node.next
    return node


def _is_view(node: Any) -> bool:
    return isinstance(node, fx.Node) and _viewed(node) is not None


def _viewed(node: fx.Node) -> fx.Node | None:
    """The node that ``node`` is a view of; None if it is not a view, or also reads sizes."""
    if node.op != "call_function" or isinstance(node.meta.get("val"), (tuple, list)):
        return None
    base = aliased_argument(node, 0)
    return base if base is not None and node.all_input_nodes == [base] else None


def _replay(node: fx.Node, in_caller: dict[fx.Node, fx.Node], call: fx.Node) -> fx.Node | None:
    """A node of the caller for ``node`` of the subgraph, with copies of the views in between; None if there is none."""
    if node in in_caller:
        return in_caller[node]
    viewed = _viewed(node)
    base = _replay(viewed, in_caller, call) if viewed is not None else None
    if base is None or viewed is None:
        return None
    new = call.graph.node_copy(node, {viewed: base}.__getitem__)
    if "partitioner_tag" in call.meta:
        new.meta["partitioner_tag"] = call.meta["partitioner_tag"]
    return new
