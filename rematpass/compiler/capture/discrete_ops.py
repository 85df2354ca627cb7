"""Discrete ops run once, in forward: backward uses the decisions that forward made.

``topk``, ``argmax``, a comparison, a float converted to an index: such ops turn numbers into decisions, and a decision
can change if the numbers differ in their last bits. With a fusing compiler they do: a recomputed value comes from
another kernel, which rounds differently and, in 16 bits, less often. So the decision itself is saved (a boolean or an
index, which takes fewer bytes than its inputs), and a mixture of experts sends each token where forward sent it::

        logits ──▶ [softmax] ──▶ scores ──▶ [topk] ──▶ experts      [topk] runs once; softmax may run again
        (inexact if recomputed)                        (saved)

Such ops are found by types, not by names: they read floats that may differ when recomputed, and write integers or
booleans. Autograd's ``x == x.amax()`` is one too: with another ``x`` it finds no maximum and divides by zero. Two
kinds are left to the planner. Comparisons that only gradients need (``relu(x) <= 0``) change only where both sides
are equal up to rounding. The integers that attention kernels of a GPU return are the random state of their
dropout: drawn again from the same state they are the same, and without dropout nothing uses them.

A random op that a mark makes run again draws the same numbers again (``emit``), so it is a decision only where its
numbers depend on the floats that it reads: ``bernoulli`` of recomputed probabilities, but not a dropout mask.

A user's MUST_RECOMPUTE takes precedence, and ``REMAT_SAVE_DECISIONS=0`` turns this off.

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
from rematpass.core.op import LIBRARY_KINDS, Kind, Op, Side, Value

REASON = "its result is a decision that recomputed inputs could change (REMAT_SAVE_DECISIONS=0 allows it)"

# Kinds whose result has the same bits in every kernel: they move values, or draw them from a seed or a state.
_MOVES = frozenset({Kind.COPY, Kind.CREATE, Kind.INDEXING, Kind.SEEDED, Kind.RANDOM, Kind.SYMBOLIC})
_FLOATS = ("float", "bfloat", "complex")
_ROUNDED = ("float16", "bfloat16", "float8")  # kept in 32 bits inside a fused kernel
_NOT_FUSED = LIBRARY_KINDS | {Kind.KERNEL, Kind.RANDOM, Kind.OPAQUE, Kind.COLLECTIVE}
_VARIES = getattr(torch.Tag, "nondeterministic_bitwise", None)  # None in old versions of torch
# Random ops that read only the shape of their tensors, and random ops whose numbers, but not whose floats, do the same.
_OF_A_SHAPE = frozenset(
    {"rand_like", "randn_like", "randint_like", "uniform", "exponential", "cauchy", "log_normal", "geometric"}
    | {"random", "normal_functional", "bernoulli.p"}
)
_OF_A_SHAPE_AND_FLOATS = frozenset({"native_dropout", "normal"})
_EQUALITIES = frozenset({torch.ops.aten.eq.Tensor, torch.ops.aten.ne.Tensor})


def keep_decisions(captured: Captured, *, fuse: bool) -> Captured:
    """``captured`` with discrete ops that run only once. ``fuse``: whether a fusing compiler compiles it."""
    graph = captured.graph
    exact = _exact(captured, fuse)
    ops = tuple(_run_once(captured, op) if _is_discrete(captured, op, exact) else op for op in graph.ops)
    return dataclasses.replace(captured, graph=dataclasses.replace(graph, ops=ops))


def _exact(captured: Captured, fuse: bool) -> frozenset[int]:
    """The values that have the same bits wherever they are read."""
    graph = captured.graph
    exact = {v.id for v in graph.values if graph.producer[v.id] is None}
    drawn: set[int] = (
        set()
    )  # drawn from a seed and then only moved: the same in kernels of both sides, rounding included
    for op, node in zip(graph.ops, captured.op_node, strict=True):
        if op.kind is Kind.SEEDED or (op.kind is Kind.COPY and drawn.issuperset(op.reads)):
            drawn.update(op.writes)
        if op.kind is Kind.RANDOM and not op.never_recompute and _draws_by_shape(node):
            keeps = _named(node, _OF_A_SHAPE) or exact.issuperset(op.reads)
            exact.update(v for v in op.writes if keeps or not _is_float(graph.values[v]))
        elif op.never_recompute or (exact.issuperset(op.reads) and _same_bits(graph, op, node, fuse)):
            late = {v for v in op.writes if fuse and _is_rounded_late(op, graph.values[v])}
            exact.update(set(op.writes) - (late - drawn))
    return frozenset(exact)


def _named(node: fx.Node, names: frozenset[str]) -> bool:
    """Whether the op is among ``names``, with or without the name of its overload."""
    name = getattr(node.target, "_opname", "")
    return name in names or f"{name}.{getattr(node.target, '_overloadname', '')}" in names


def _draws_by_shape(node: fx.Node) -> bool:
    """Whether the numbers that a random op draws depend on no float that it reads."""
    by_name = _named(node, _OF_A_SHAPE | _OF_A_SHAPE_AND_FLOATS)
    return by_name or "attention" in getattr(node.target, "_opname", "")


def _same_bits(graph: JointGraph, op: Op, node: fx.Node, fuse: bool) -> bool:
    """Whether the op gives the same bits when it runs again on the same bits."""
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
    """Whether the fused kernel that computes the value uses it before it is rounded to 16 bits."""
    return value.dtype.startswith(_ROUNDED) and op.kind not in _NOT_FUSED


def _is_float(value: Value) -> bool:
    return value.dtype.startswith(_FLOATS)


def _is_discrete(captured: Captured, op: Op, exact: frozenset[int]) -> bool:
    graph = captured.graph
    inexact = [v for v in op.reads if _is_float(graph.values[v]) and v not in exact]
    if not inexact or op.never_recompute:
        return False
    if op.kind is not Kind.RANDOM and all(_is_float(graph.values[v]) for v in op.writes):
        return False
    node = captured.op_node[op.id]
    if op.kind is Kind.ATTENTION or (op.kind is Kind.RANDOM and _draws_by_shape(node)):
        return False
    if any(n.meta.get("recompute") is CheckpointPolicy.MUST_RECOMPUTE for n in (node, *projections(node))):
        return False
    if graph.sides[op.id] is Side.EITHER:
        return node.target in _EQUALITIES and len(op.reads) > 1
    return graph.sides[op.id] is Side.FORWARD


def _run_once(captured: Captured, op: Op) -> Op:
    """``op`` as one that runs once, in forward, where the inputs of its decision are computed."""
    either = captured.graph.sides[op.id] is Side.EITHER
    return dataclasses.replace(
        op, never_recompute=REASON, must_recompute=False, pinned=Side.FORWARD if either else op.pinned
    )
