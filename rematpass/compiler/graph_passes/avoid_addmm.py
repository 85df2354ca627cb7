"""Keep Inductor from merging a matrix product into an addition that comes much later.

Inductor rewrites ``add(mm(a, b), c)`` to ``addmm(c, a, b)`` at the addition's position, so ``a`` and ``b`` stay alive
until then. With tied embeddings, the gradient of the logits would live through all of backward. If the operands hold
more bytes than the product, the addition is written on a view that the pattern does not match::

    mm(a, b) ──▶ [add c]          mm(a, b) ──▶ [unsqueeze 0] ──▶ [add c] ──▶ [squeeze 0]

The result is the same, bit for bit, as that of ``mm`` and ``add``.
"""

from __future__ import annotations

import torch
from torch import fx

from rematpass.compiler.graph_passes.step_facts import StepFacts
from rematpass.compiler.ops.kinds import kind_of
from rematpass.compiler.ops.size_hints import hint
from rematpass.core.op import LIBRARY_KINDS


def avoid_addmm(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts) -> None:
    """Rewrite the additions of both graphs that would keep a product's operands alive for too long."""
    for module in (fwd, bwd):
        separate_products(module)


def separate_products(module: fx.GraphModule) -> int:
    """Rewrite these additions in one graph; returns how many there are."""
    position = {node: i for i, node in enumerate(module.graph.nodes)}
    count = 0
    for add in module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        for product in [a for a in add.args[:2] if isinstance(a, fx.Node) and a.target is torch.ops.aten.mm.default]:
            if len(add.args) == 2 and not add.kwargs and _keeps_operands_alive(product, add, position):
                _add_on_a_view(module.graph, product, add)
                count += 1
                break
    if count:
        module.recompile()
    return count


def _keeps_operands_alive(product: fx.Node, add: fx.Node, position: dict[fx.Node, int]) -> bool:
    """Whether ``addmm`` would keep operands alive past other library calls, and more bytes than the product has."""
    start, end = position[product], position[add]
    between = (n for n, i in position.items() if start < i < end and n.op == "call_function")
    if len(product.users) > 1 or all(kind_of(n) not in LIBRARY_KINDS for n in between):
        return False
    operands = {_base(n) for n in product.all_input_nodes}
    middle = (start + end) // 2
    idle = [n for n in operands if _last_other_read(n, product, position) < middle and not _is_input_of_forward(n)]
    return sum(_nbytes(n) for n in idle) > _nbytes(product)


def _base(node: fx.Node) -> fx.Node:
    """The node behind a chain of views."""
    while getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node


def _last_other_read(node: fx.Node, reader: fx.Node, position: dict[fx.Node, int]) -> int:
    """The position of the last read by other nodes than ``reader``, through views; -1 if there is none."""
    reads = [-1]
    for user in node.users:
        if getattr(user.target, "is_view", False):
            reads.append(_last_other_read(user, reader, position))
        elif user is not reader:
            reads.append(position[user])
    return max(reads)


def _is_input_of_forward(node: fx.Node) -> bool:
    """Whether the node is a parameter or another argument of forward, which is alive in any case."""
    return node.op == "placeholder" and str(node.target).startswith("primals")


def _nbytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    return hint(value.numel()) * value.element_size()


def _add_on_a_view(graph: fx.Graph, product: fx.Node, add: fx.Node) -> None:
    """Replace ``add`` by an addition to an unsqueezed view of ``product``."""
    aten, value = torch.ops.aten, product.meta["val"]
    meta = {k: v for k, v in add.meta.items() if k != "val"}
    with graph.inserting_before(add):
        view = graph.call_function(aten.unsqueeze.default, (product, 0))
        view.meta = {**meta, "val": aten.unsqueeze.default(value, 0)}
        args = tuple(view if a is product else a for a in add.args)
        wide = graph.call_function(aten.add.Tensor, args)
        wide.meta = {**meta, "val": aten.unsqueeze.default(add.meta["val"], 0)}
        result = graph.call_function(aten.squeeze.dim, (wide, 0))
        result.meta = dict(add.meta)
    name = add.name
    add.replace_all_uses_with(result)
    graph.erase_node(add)
    result.name = name
