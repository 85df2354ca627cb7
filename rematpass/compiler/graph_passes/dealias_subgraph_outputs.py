"""Results of a region's body that are its own arguments, or another of its results, are read from there.

``torch.compiler.nested_compile_region`` compiles a body once; each call of it hands back what backward will need, and
that is often an argument of the call, a view of one, or one result twice::

        body(x, w): h = x @ w; return h, h, x.t(), w.t()        after this pass the caller reads h, h, x.t() and w.t()
                                                                where it has them, not out of the call

Left alone, the graph model would take each of them for bytes of its own, and so does Inductor: it overwrites ``x`` in
place while its "copy" waits for backward (torch 2.13: wrong gradients, and changed weights, without rematpass too).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from rematpass.compiler.ops.traits import aliased_argument


def dealias_subgraph_outputs(module: fx.GraphModule) -> None:
    """Replace, in ``module``, results of calls of bodies by what they share their bytes with."""
    for call in module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph):
        body = getattr(module, str(call.args[0].target), None)
        if isinstance(body, fx.GraphModule):
            _replace_results(call, body)


def _replace_results(call: fx.Node, body: fx.GraphModule) -> None:
    results = body.graph.find_nodes(op="output")[0].args[0]
    if not isinstance(results, (tuple, list)):
        return
    there: dict[fx.Node, Callable[[], fx.Node]] = {}
    for placeholder, operand in zip(body.graph.find_nodes(op="placeholder"), call.args[2:], strict=False):
        if isinstance(operand, fx.Node):
            there[placeholder] = _as_is(operand)
    taken = {u.args[1]: u for u in list(call.users) if u.target is operator.getitem}
    for node in taken.values():
        call.append(node)  # all of them right after the call, so that each is there for the views of it
    for index in sorted(taken, key=lambda i: _is_view(results[i])):  # what is whole before the views of it
        result, node = results[index], taken[index]
        if not isinstance(result, fx.Node):
            continue
        with call.graph.inserting_before(_behind(call)):
            replacement = _replay(result, there, call)
        if replacement is None:
            there[result] = _as_is(node)
        else:
            replacement.meta.setdefault("val", node.meta.get("val"))
            node.replace_all_uses_with(replacement)
            call.graph.erase_node(node)


def _behind(call: fx.Node) -> fx.Node:
    """The first node after the call and the results taken out of it."""
    node = call.next
    while node.target is operator.getitem and node.args[0] is call:
        node = node.next
    return node


def _as_is(node: fx.Node) -> Callable[[], fx.Node]:
    return lambda: node


def _is_view(node: Any) -> bool:
    return isinstance(node, fx.Node) and _viewed(node) is not None


def _viewed(node: fx.Node) -> fx.Node | None:
    """What ``node`` is a view of; None when it is none, or takes sizes from elsewhere."""
    if node.op != "call_function" or isinstance(node.meta.get("val"), (tuple, list)):
        return None
    base = aliased_argument(node, 0)
    return base if base is not None and node.all_input_nodes == [base] else None


def _replay(node: fx.Node, there: dict[fx.Node, Callable[[], fx.Node]], call: fx.Node) -> fx.Node | None:
    """``node`` of the body, as a node of the caller's graph; None when nothing there has its bytes."""
    if node in there:
        return there[node]()
    viewed = _viewed(node)
    base = _replay(viewed, there, call) if viewed is not None else None
    if base is None or viewed is None:
        return None
    new = call.graph.node_copy(node, {viewed: base}.__getitem__)
    if "partitioner_tag" in call.meta:
        new.meta["partitioner_tag"] = call.meta["partitioner_tag"]
    return new
