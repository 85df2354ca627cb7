"""What the planner has to know of a call: its kind, FLOPs and workspace, and whether it may run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import OpOverload
from rematpass.compiler.ops.flops import flops_of
from rematpass.compiler.ops.kinds import (
    draws_random_numbers,
    kind_by_name,
    kind_of,
    needs_random_state,
    nested_calls,
    rule_of,
)
from rematpass.compiler.ops.library_calls import is_library_call
from rematpass.compiler.ops.node_info import argument_at
from rematpass.compiler.ops.size_hints import hint
from rematpass.compiler.ops.workspace import measured_workspace
from rematpass.core.cost import FUSIBLE
from rematpass.core.op import Kind

# The position of a convolution's weight among its arguments.
_WEIGHT: dict[Any, int] = {torch.ops.aten.convolution.default: 1, torch.ops.aten.convolution_backward.default: 2}


@dataclass(frozen=True)
class Traits:
    """What the planner has to know of a call besides what it reads and writes.

    ``never_recompute``: why it never runs again, or "". ``honours_marks``: whether a user's mark may still
    allow it. ``flops``: 0 if unknown. ``workspace``: bytes that it takes inside itself.
    """

    kind: Kind
    never_recompute: str = ""
    honours_marks: bool = False
    flops: int = 0
    workspace: int = 0


def traits_of(node: fx.Node, *, channels_last: bool = False, fuse: bool = True) -> Traits:
    """The traits of a ``call_function`` node.

    ``channels_last``: whether Inductor lays convolutions out that way. ``fuse``: whether it compiles the graph.
    """
    kind, flops = kind_of(node), flops_of(node)
    rule = rule_of(kind)
    if node.meta.get("unbacked_bindings"):
        return Traits(kind, "the size of its result depends on data")
    if any(map(draws_random_numbers, nested_calls(node))):
        why = rule_of(Kind.RANDOM).never_recompute
        return Traits(kind, why, flops=flops, workspace=_workspace(node, channels_last, fuse))
    if kind is Kind.RANDOM:
        again = rule.marks_override and _can_restore_random_state(node)
        return Traits(kind, rule.never_recompute, again, flops, _workspace(node, channels_last, fuse))
    if kind is Kind.OPAQUE:
        return Traits(kind, rule.never_recompute, rule.marks_override and _can_restore_random_state(node), flops=flops)
    if rule.never_recompute:
        return Traits(kind, rule.never_recompute, rule.marks_override)
    if kind in FUSIBLE and fuse and is_library_call(node):
        kind = Kind.KERNEL
    return Traits(kind, flops=flops, workspace=_workspace(node, channels_last, fuse))


def _can_restore_random_state(node: fx.Node) -> bool:
    """Whether another run can start from the random state of the first.

    A state can be passed to a call, but not to a call inside one of its subgraphs. A generator of the user's has a
    state of its own, and the seeds that Inductor draws for a whole graph take fewer bytes than a state.
    """
    if any(map(needs_random_state, nested_calls(node))):
        return False
    if node.kwargs.get("generator") is not None or node.target is torch.ops.prims.inductor_seeds.default:
        return False
    return not needs_random_state(node) or bool(_torch.device_of_random_state(node))


def workspace_of_call(
    node: fx.Node, laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (), *, channels_last: bool = False
) -> int:
    """Bytes that a library takes inside the call and gives back (``workspace.py``).

    0 for views, and for ops that are not torch's own: nobody knows what else they do. ``laid_out``, ``channels_last``:
    as for ``sample_call_of``.
    """
    target, _ = _torch.replayed_call(node)
    if not isinstance(target, OpOverload) or kind_by_name(target) is Kind.OPAQUE or _torch.is_impure(node):
        return _torch.bytes_of_kept_state(node)
    if any(result.alias_info is not None and not result.alias_info.is_write for result in target._schema.returns):
        return 0
    inside = measured_workspace(node, laid_out, channels_last=channels_last, flops=flops_of(node))
    return inside + _torch.bytes_of_kept_state(node)


def _workspace(node: fx.Node, channels_last: bool, fuse: bool) -> int:
    if not is_library_call(node, fuse=fuse):
        return 0
    return workspace_of_call(node, channels_last=channels_last) + _packed_weight(node)


def _packed_weight(node: fx.Node) -> int:
    """Bytes of the copy of a convolution's weight that Inductor makes for the call, with channels last."""
    argument = node.args[_WEIGHT[node.target]] if node.target in _WEIGHT else None
    weight = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    if not isinstance(weight, torch.Tensor) or not devices.of(weight.device).packs_convolution_weights:
        return 0
    if all(n == 1 for n in weight.shape[2:]):  # laid out alike either way
        return 0
    return hint(weight.numel()) * weight.element_size()


def user_mark(node: fx.Node) -> str:
    """What the user wants for the node's values: "save", "recompute", or "" if there is no mark.

    ``torch.utils.checkpoint`` marks the ops of its region as preferably recomputed. torch's own partitioner takes that
    as an order, and so does this one.
    """
    policy = node.meta.get("recompute")
    offload = getattr(CheckpointPolicy, "MUST_CPU_OFFLOAD", CheckpointPolicy.MUST_SAVE)  # newer than torch 2.11
    if policy in (CheckpointPolicy.MUST_SAVE, offload):
        return "save"
    if policy in (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE):
        return "recompute"
    return ""


def aliased_argument(node: fx.Node, index: int) -> fx.Node | None:
    """The argument that result ``index`` is a view of, by the op's schema; None if it is no view."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.returns:
        return None
    returns = target._schema.returns
    alias = returns[min(index, len(returns) - 1)].alias_info  # a list of views is one return
    if alias is None:
        return None
    for position, argument in enumerate(target._schema.arguments):
        viewed = argument.alias_info
        if viewed is None:
            continue
        # A list of views does not name its base; the base's annotation says that it may be aliased by a list.
        by_list = not alias.before_set and "*" in viewed.after_set
        if alias.before_set & viewed.before_set or by_list:
            given = argument_at(node, position, argument.name)
            return given if isinstance(given, fx.Node) else None
    return None
