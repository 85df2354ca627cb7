"""The order in which the ops that belong to backward run.

The order is the graph's, with two exceptions: of two matrix products of one gradient, the one whose result is returned
runs first (``returned_first``), and mutations run last, after every op that reads the bytes they overwrite.
"""

from __future__ import annotations

from collections.abc import Sequence

from rematpass.core.op import Kind, Op, Origin, Value

# A product that is read only to be cast, scaled or summed into what is returned is as good as returned itself.
_PASS_ON = frozenset({Kind.POINTWISE, Kind.COPY, Kind.REDUCTION})


def backward_order(ops: Sequence[Op], values: Sequence[Value], returned: frozenset[int]) -> tuple[Op, ...]:
    """``ops`` of backward in the order in which they run. ``returned``: the ids of backward's outputs."""
    return tuple(sorted(returned_first(ops, values, returned), key=lambda op: op.kind is Kind.MUTATION))


def returned_first(ops: Sequence[Op], values: Sequence[Value], returned: frozenset[int]) -> list[Op]:
    """``ops``, but of two products of one gradient, the one whose result backward does not read again runs first.

    That result lives to the end of backward in either order, and an argument that only this product reads is freed one
    product earlier::

        grad_x = grad_y @ w.T                              grad_w = x.T @ grad_y
        grad_w = x.T @ grad_y    x lives through both      grad_x = grad_y @ w.T    x is free: grad_x takes its place

    Autograd computes the gradient of the argument first for ``addmm``, and last for a ``linear`` without a bias.
    """
    passes_on = {op.id for op in ops if op.writes and op.kind in _PASS_ON and returned.issuperset(op.writes)}
    read_again = {v for op in ops if op.id not in passes_on for v in op.reads}
    order: list[Op] = []
    latest = -1  # position of the latest product whose result backward reads again
    for op in ops:
        order.append(op)
        if op.kind is not Kind.MATMUL:
            continue
        if not read_again.isdisjoint(op.writes):
            latest = len(order) - 1
        elif latest >= 0 and _frees_more(op, order[latest], values):
            needed, rest = _split_by_need(op, order[latest:])
            if order[latest] in rest and not any(other.never_recompute for other in needed):
                order[latest:] = [*needed, *rest]
                latest += len(needed)
    return order


def _frees_more(op: Op, other: Op, values: Sequence[Value]) -> bool:
    """Whether the two share an argument, and the arguments that only ``op`` reads have more bytes than ``other``'s."""

    def freed(one: Op, another: Op) -> int:
        alone = {*one.reads} - {*another.reads}
        return sum(values[v].nbytes for v in alone if values[v].origin is not Origin.STATIC)

    return freed(op, other) > freed(other, op) and not set(op.reads).isdisjoint(other.reads)


def _split_by_need(op: Op, ops: Sequence[Op]) -> tuple[list[Op], list[Op]]:
    """``ops`` split into those that ``op`` depends on, including itself, and the others; both keep their order."""
    wanted, needed = set(op.reads), {op.id}
    for before in reversed(ops):
        if not wanted.isdisjoint(before.writes):
            needed.add(before.id)
            wanted.update(before.reads)
    return [o for o in ops if o.id in needed], [o for o in ops if o.id not in needed]
