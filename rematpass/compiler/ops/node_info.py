"""What one fx node of a joint graph says of itself."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import OpOverload, pytree
from rematpass.compiler.ops import device
from rematpass.compiler.ops.size_hints import hint
from rematpass.core.op import Kind, Side


def is_tangent(node: fx.Node) -> bool:
    return "tangents" in str(node.target)


def is_object(node: fx.Node) -> bool:
    """An argument without bytes that torch hands on to backward: a process group, hooks of compiled autograd."""
    return _torch.is_opaque_node(node) or isinstance(node.meta.get("val"), _torch.BackwardState)


def projections(node: fx.Node) -> list[fx.Node]:
    return [u for u in node.users if u.target is operator.getitem]


def mutated_arguments(node: fx.Node) -> list[fx.Node]:
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return []
    written = []
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            written += [n for n in pytree.tree_leaves(given) if isinstance(n, fx.Node)]
    return written


def pinned(node: fx.Node, kind: Kind) -> Side:
    """Effects and mutations stay on their side; backward's are told by torch's tag (or by reading a tangent).

    So do random draws: they take the generator on, in eager mode's order, even where nobody reads what was drawn.
    """
    if kind not in (Kind.EFFECT, Kind.MUTATION, Kind.RANDOM):
        return Side.EITHER
    return Side.BACKWARD if "backward" in node.meta.get("partitioner_tag", "") else Side.FORWARD


def spanned(value: Any) -> int:
    """Bytes of the elements that a tensor spans, a view counted at its own size."""
    leaves = [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
    return sum(hint(t.numel()) * t.element_size() for t in leaves)


def computed_in(node: fx.Node, kind: Kind, dtype: str) -> str:
    """The dtype that sets the rate of an op's arithmetic: that of its results, but for float32 that runs as TF32."""
    if dtype != "float32" or kind not in (Kind.CONVOLUTION, Kind.MATMUL):
        return dtype
    values = (n.meta.get("val") for n in node.all_input_nodes)
    on_gpu = any(isinstance(v, torch.Tensor) and v.device.type == "cuda" for v in values)
    return "tensorfloat32" if on_gpu and device.rounds_to_tf32(convolution=kind is Kind.CONVOLUTION) else dtype


def device_name_of(primals: Sequence[fx.Node]) -> str:
    """The device of the step: the first one that is not the CPU, by the name of its model."""
    for node in primals:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and value.device.type != "cpu":
            return device.device_name(value.device)
    return "cpu"


def source_of(node: fx.Node) -> str:
    """file:line of the innermost frame of the user's code."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else ""


def module_of(node: fx.Node) -> str:
    """Path of the innermost module, as Dynamo writes it: ``L['self'].layers.3.mlp`` becomes ``layers.3.mlp``."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return re.sub(r"^L\['\w+'\]\.?|^L__\w+?___?", "", path)
