"""What one fx node of a joint graph says about itself."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import OpOverload, pytree
from rematpass.compiler.ops.size_hints import hint
from rematpass.core.op import Kind, Side

# Ops without torch's tag for pointwise ops whose arguments are read element by element: all of them, or the first one.
_ELEMENT_BY_ELEMENT = frozenset("clone _to_copy convert_element_type fma native_dropout_backward tril triu".split())
_FIRST_ELEMENT_BY_ELEMENT = frozenset("slice_scatter select_scatter diagonal_scatter".split())


def is_tangent(node: fx.Node) -> bool:
    return "tangents" in str(node.target)


def is_object(node: fx.Node) -> bool:
    """Whether the node is an argument without bytes that forward passes to backward: a process group, for example."""
    return _torch.is_opaque_node(node) or isinstance(node.meta.get("val"), _torch.BackwardState)


def projections(node: fx.Node) -> list[fx.Node]:
    """The ``getitem`` nodes that take single results of a call with several."""
    return [u for u in node.users if u.target is operator.getitem]


def argument_at(node: fx.Node, position: int, name: str) -> Any:
    """The argument at a position of the op's schema, passed by position or by name; None if it is not passed."""
    return node.args[position] if position < len(node.args) else node.kwargs.get(name)


def mutated_arguments(node: fx.Node) -> list[fx.Node]:
    """The arguments that the call overwrites, by its schema."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return []
    mutated = []
    for position, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            leaves = pytree.tree_leaves(argument_at(node, position, argument.name))
            mutated += [n for n in leaves if isinstance(n, fx.Node)]
    return mutated


def read_element_by_element(node: fx.Node) -> frozenset[fx.Node]:
    """The arguments of which each element of the result depends on the element at its own place alone."""
    target = node.target
    if not isinstance(target, OpOverload):
        return frozenset()
    name = target._schema.name.split("::")[1]
    if torch.Tag.pointwise in target.tags or name in _ELEMENT_BY_ELEMENT:
        return frozenset(node.all_input_nodes)
    first = argument_at(node, 0, "self") if name in _FIRST_ELEMENT_BY_ELEMENT else None
    others = pytree.tree_leaves((node.args[1:], node.kwargs))
    return frozenset({first}) if isinstance(first, fx.Node) and first not in others else frozenset()


def slow_to_repeat(node: fx.Node) -> bool:
    """Whether Inductor does not compute the call again in each of several readers."""
    target, value = node.target, node.meta.get("val")
    if not isinstance(target, OpOverload) or not isinstance(value, torch.Tensor):
        return False
    name = target._schema.name.split("::")[1]
    return name in _torch.SLOW_TO_REPEAT and devices.of(value.device).codegen == "cpp"


def pinned(node: fx.Node, kind: Kind) -> Side:
    """The side that the call must stay on.

    Effects and mutations stay where they are, according to torch's tag. So do random draws: they advance the generator,
    in the order of eager mode, even if nothing reads the numbers. torch does not tag the backward of an
    ``autograd.Function``; what depends on a tangent belongs there.
    """
    if kind not in (Kind.EFFECT, Kind.MUTATION, Kind.RANDOM):
        return Side.EITHER
    tag = node.meta.get("partitioner_tag", "")
    in_backward = "backward" in tag or (not tag and _depends_on_tangent(node))
    return Side.BACKWARD if in_backward else Side.FORWARD


def _depends_on_tangent(node: fx.Node) -> bool:
    seen: set[fx.Node] = set()
    todo = [node]
    while todo:
        reached = todo.pop()
        if reached.op == "placeholder" and is_tangent(reached):
            return True
        if reached not in seen:
            seen.add(reached)
            todo += reached.all_input_nodes
    return False


def spanned(value: Any) -> int:
    """Bytes of the elements of a value's tensors; a view counts with its own size, not with its storage's."""
    leaves = [t for t in pytree.tree_leaves(value) if isinstance(t, torch.Tensor)]
    return sum(hint(t.numel()) * t.element_size() for t in leaves)


def arithmetic_dtype(node: fx.Node, kind: Kind, dtype: str) -> str:
    """The dtype that sets the rate of an op's arithmetic: ``dtype``, that of its results, or "tensorfloat32"."""
    if dtype != "float32" or kind not in (Kind.CONVOLUTION, Kind.MATMUL):
        return dtype
    values = (n.meta.get("val") for n in node.all_input_nodes)
    kinds = {devices.of(v.device) for v in values if isinstance(v, torch.Tensor)}
    rounds = any(kind_of_device.rounds_to_tf32(convolution=kind is Kind.CONVOLUTION) for kind_of_device in kinds)
    return "tensorfloat32" if rounds else dtype


def device_name_of(primals: Sequence[fx.Node]) -> str:
    """The device of the step, by the name of its model: the first device of an input that is not the CPU."""
    values = (node.meta.get("val") for node in primals)
    device = devices.accelerator_among(v.device for v in values if isinstance(v, torch.Tensor))
    return devices.of(device).name(device)


def source_of(node: fx.Node) -> str:
    """file:line of the innermost frame of the user's code."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return ":".join(frames[-1]) if frames else ""


def module_of(node: fx.Node) -> str:
    """The path of the innermost module, without Dynamo's prefix: "layers.3.mlp" for ``L['self'].layers.3.mlp``."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return re.sub(r"^L\['\w+'\]\.?|^L__\w+?___?", "", path)
