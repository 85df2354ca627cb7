"""Values that decide: what forward has chosen, backward does not choose anew.

``topk``, ``argmax``, a comparison, a float turned into an index: such ops turn numbers into choices, and a choice can
fall otherwise when the numbers come out in other bits. A fusing compiler makes other bits: a recomputed value stands in
another kernel, with other roundings and, in 16 bits, without some of them. Where it does, the choice itself is saved
(a truth value or an index, less bytes than what it is made of), so a mixture of experts sends each token where forward
has sent it::

        logits ──▶ [softmax] ──▶ scores ──▶ [topk] ──▶ experts      [topk] runs once; softmax may run again
        (inexact when made again)                      (saved)

Told by types, not by names: an op that reads floats which may come out otherwise and writes integers or truth values.
Autograd's own ``x == x.amax()`` is one too: with another ``x`` it would find no maximum at all, and divide by zero.
What only gradients ask of forward's values (``relu(x) <= 0``) is left to the planner: it flips where both sides of the
choice are equal to rounding. And the integers that a GPU's attention kernels return besides their floats are the random
state of their dropout: with a dropout they run once anyway, without one nobody goes by them.

A user's MUST_RECOMPUTE goes before, ``REMAT_SAVE_DECISIONS=0`` turns it off.

Source: the failure is pytorch/pytorch issue 186572 (a recomputed router picks other experts).
"""

from __future__ import annotations

import dataclasses

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import devices
from rematpass.compiler._torch import pytree
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.ops.node_info import projections
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Side, Value

WHY = "it decides, and could decide otherwise on values made again"

# Kinds whose result has the same bits in every kernel: they move values, or draw them from a seed.
_MOVES = frozenset({Kind.COPY, Kind.CREATE, Kind.INDEXING, Kind.SEEDED, Kind.SYMBOLIC})
_FLOATS = ("float", "bfloat", "complex")
_ROUNDED = ("float16", "bfloat16", "float8")  # kept in 32 bits inside a fused kernel
_NOT_FUSED = frozenset({Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION, Kind.KERNEL, Kind.OPAQUE, Kind.COLLECTIVE})
_VARIES = getattr(torch.Tag, "nondeterministic_bitwise", None)  # unknown to old torch
_EQUALITIES = frozenset({torch.ops.aten.eq.Tensor, torch.ops.aten.ne.Tensor})


def keep_decisions(captured: Captured, *, fuse: bool) -> Captured:
    """``captured`` with every op that decides kept from running again; ``fuse``: whether a fusing compiler runs it."""
    graph = captured.graph
    exact = _exact(captured, fuse)
    ops = tuple(_settled(captured, op) if _decides(captured, op, exact) else op for op in graph.ops)
    return dataclasses.replace(captured, graph=dataclasses.replace(graph, ops=ops))


def _exact(captured: Captured, fuse: bool) -> frozenset[int]:
    """Values that have the same bits wherever they are read."""
    graph = captured.graph
    exact = {v.id for v in graph.values if graph.producer[v.id] is None}
    drawn: set[int] = set()  # from a seed, and only moved since: kernels of both sides do it alike, rounding included
    for op, node in zip(graph.ops, captured.op_node, strict=True):
        if op.kind is Kind.SEEDED or (op.kind is Kind.COPY and drawn.issuperset(op.reads)):
            drawn.update(op.writes)
        once = bool(op.never_recompute)
        if once or (exact.issuperset(op.reads) and _same_bits(graph, op, node, fuse)):
            late = {v for v in op.writes if fuse and _is_rounded_late(op, graph.values[v])}
            exact.update(set(op.writes) - (late - drawn))
    return frozenset(exact)


def _same_bits(graph: JointGraph, op: Op, node: fx.Node, fuse: bool) -> bool:
    """Whether the op, run again on the same bits, gives the same bits."""
    target = node.target
    if _VARIES is not None and _VARIES in getattr(target, "tags", ()):
        return False
    if op.kind is Kind.SCATTER and _sums_in_any_order(node) and any(_is_float(graph.values[v]) for v in op.writes):
        return False
    if not fuse or not any(_is_float(graph.values[v]) for v in op.writes):
        return True
    return op.kind in _MOVES


def _sums_in_any_order(node: fx.Node) -> bool:
    results = (t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor))
    return any(devices.of(t.device).sums_in_any_order for t in results)


def _is_rounded_late(op: Op, value: Value) -> bool:
    """A fused kernel reads its own value before it is rounded to 16 bits, and every other kernel afterwards."""
    return value.dtype.startswith(_ROUNDED) and op.kind not in _NOT_FUSED


def _is_float(value: Value) -> bool:
    return value.dtype.startswith(_FLOATS)


def _decides(captured: Captured, op: Op, exact: frozenset[int]) -> bool:
    graph = captured.graph
    inexact = [v for v in op.reads if _is_float(graph.values[v]) and v not in exact]
    if not inexact or op.never_recompute or all(_is_float(graph.values[v]) for v in op.writes):
        return False
    if op.kind is Kind.ATTENTION:
        return False
    node = captured.op_node[op.id]
    if any(n.meta.get("recompute") is CheckpointPolicy.MUST_RECOMPUTE for n in (node, *projections(node))):
        return False
    if graph.sides[op.id] is Side.EITHER:
        return node.target in _EQUALITIES and len(op.reads) > 1
    return graph.sides[op.id] is Side.FORWARD


def _settled(captured: Captured, op: Op) -> Op:
    """``op``, to run once: in forward, where the values are that it has to decide on."""
    either = captured.graph.sides[op.id] is Side.EITHER
    return dataclasses.replace(
        op, never_recompute=WHY, must_recompute=False, pinned=Side.FORWARD if either else op.pinned
    )
