"""What an fx node is to the planner: its kind, its FLOPs, and whether it may run again.

The names of torch's ops end here; the core knows kinds. A kind is read off an op's tags where it has them
(``torch.Tag.pointwise``, ``reduction``, ``nondeterministic_seeded``) and off the lists below where it has not.

An op may run again when running it again gives the same bits and nothing else happens. Random ops do not, unless they
draw from a seed that is handed to them (Inductor's ``inductor_random``) or draw nothing (attention with a dropout of
0). Custom ops, higher-order ops and users' kernels are not known to be pure, whatever their names and tags say; a
user's own mark says that they may run again, from the random state that they ran from before (``replays``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy
from torch.utils.flop_counter import flop_registry

from rematpass.compiler import _torch
from rematpass.compiler._torch import HigherOrderOperator, OpOverload, pytree
from rematpass.compiler.ops.size_hints import hint
from rematpass.compiler.ops.workspace import measured_workspace
from rematpass.core.op import LIBRARY_KINDS, Kind

log = logging.getLogger("rematpass")

_KINDS: dict[Kind, frozenset[str]] = {
    Kind.MATMUL: frozenset("mm addmm bmm baddbmm matmul linear mv addmv dot vdot addbmm _scaled_mm _int_mm".split()),
    Kind.REDUCTION: frozenset(
        "_softmax _log_softmax _softmax_backward_data _log_softmax_backward_data native_layer_norm "
        "native_layer_norm_backward native_group_norm native_group_norm_backward _fused_rms_norm "
        "_fused_rms_norm_backward native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
        "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_with_update_functional "
        "native_batch_norm_backward batch_norm_backward cumsum cumprod logcumsumexp max min median mode aminmax "
        "argmax argmin all any logsumexp nll_loss_forward nll_loss2d_forward prepare_softmax_online count_nonzero "
        "linalg_vector_norm adaptive_avg_pool2d _adaptive_avg_pool2d avg_pool2d".split()
    ),
    Kind.INDEXING: frozenset(
        "index gather embedding index_select _unsafe_index _unsafe_masked_index nll_loss_backward "
        "nll_loss2d_backward max_pool2d_with_indices _low_memory_max_pool_with_offsets "
        "_low_memory_max_pool_offsets_to_indices upsample_nearest2d upsample_bilinear2d grid_sampler_2d "
        "inductor_lookup_seed".split()
    ),
    Kind.SCATTER: frozenset(
        "index_put scatter scatter_add scatter_reduce index_add index_copy embedding_dense_backward "
        "_unsafe_index_put _unsafe_masked_index_put_accumulate masked_scatter "
        "max_pool2d_with_indices_backward sort topk".split()
    ),
    Kind.COPY: frozenset(
        "clone cat constant_pad_nd stack flip roll slice_scatter select_scatter diagonal_scatter as_strided_scatter "
        "copy repeat _to_copy convert_element_type tril triu".split()
    ),
    Kind.CREATE: frozenset(
        "full zeros ones empty arange iota scalar_tensor eye full_like zeros_like ones_like empty_like "
        "new_zeros new_ones new_full new_empty new_empty_strided empty_strided empty_permuted linspace".split()
    ),
    Kind.SEEDED: frozenset("inductor_random inductor_randint".split()),
    Kind.POINTWISE: frozenset("native_dropout_backward _softmax_backward slice_backward select_backward fma".split()),
}
# The argument of a convolution that is its weight.
_WEIGHT: dict[Any, int] = {torch.ops.aten.convolution.default: 1, torch.ops.aten.convolution_backward.default: 2}
_KIND_OF = {name: kind for kind, names in _KINDS.items() for name in names}
_BUILTIN_NAMESPACES = frozenset({"aten", "prims", "prim", "inductor", "quantized_decomposed"})
_COLLECTIVE_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "_dtensor"})


@dataclass(frozen=True)
class Traits:
    """What the planner has to know of a call besides what it reads and writes."""

    kind: Kind
    never_recompute: str = ""
    honours_marks: bool = False  # a user's "recompute this" says that running it again is safe
    flops: int = 0
    workspace: int = 0  # bytes


def traits_of(node: fx.Node, *, channels_last: bool = False) -> Traits:
    """The traits of a ``call_function`` node. ``channels_last``: so are convolutions going to be laid out."""
    kind, flops = kind_of(node), _flops(node)
    if node.meta.get("unbacked_bindings"):
        return Traits(kind, "the size of its result depends on data")
    if kind is Kind.RANDOM or any(map(draws_random_numbers, _nodes_of_bodies(node))):
        return Traits(kind, "it draws random numbers", flops=flops, workspace=_workspace(node, channels_last))
    if kind is Kind.COLLECTIVE:
        return Traits(kind, "it communicates between ranks", honours_marks=True)
    if kind is Kind.EFFECT:
        return Traits(kind, "it has an effect besides its result")
    if kind is Kind.MUTATION:
        return Traits(kind, "it overwrites its argument")
    if kind is Kind.OPAQUE:
        # A random state can be handed to a call, not to the calls in its body.
        honours = not any(map(replays, _nodes_of_bodies(node)))
        honours = honours and (not replays(node) or bool(_torch.device_of_random_state(node)))
        return Traits(kind, "a custom or higher-order op, not known to be pure", honours, flops=flops)
    return Traits(kind, flops=flops, workspace=_workspace(node, channels_last))


def workspace_of_call(
    node: fx.Node, laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (), *, channels_last: bool = False
) -> int:
    """Bytes that a call of a library takes inside itself and gives back (``workspace.py``).

    ``laid_out``, ``channels_last``: how the tensors that it gets are laid out, where that is not as the node says.
    """
    # By name: attention with dropout draws random numbers, but is no less attention.
    if not isinstance(node.target, OpOverload) or _kind_by_name(node.target) not in LIBRARY_KINDS:
        return 0
    return measured_workspace(node, laid_out, channels_last=channels_last, flops=_flops(node))


def _workspace(node: fx.Node, channels_last: bool) -> int:
    """The same, and the copy of the weight with its channels last that Inductor makes on the CPU for the call."""
    return workspace_of_call(node, channels_last=channels_last) + _copied_weight(node)


def _copied_weight(node: fx.Node) -> int:
    argument = node.args[_WEIGHT[node.target]] if node.target in _WEIGHT else None
    weight = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    if not isinstance(weight, torch.Tensor) or weight.device.type != "cpu" or all(n == 1 for n in weight.shape[2:]):
        return 0
    return hint(weight.numel()) * weight.element_size()


def kind_of(node: fx.Node) -> Kind:
    """The kind of a ``call_function`` node."""
    target = node.target
    if is_size(node.meta.get("val")):
        return Kind.SYMBOLIC
    if isinstance(target, HigherOrderOperator):
        return _kind_of_higher_order(target.name())
    if not isinstance(target, OpOverload):
        return Kind.EFFECT if _torch.is_impure(node) else Kind.OPAQUE
    if target.namespace in _COLLECTIVE_NAMESPACES:
        return Kind.COLLECTIVE
    if target._schema.is_mutable:
        return Kind.MUTATION
    if _torch.is_impure(node):
        return Kind.EFFECT
    if draws_random_numbers(node):
        return Kind.RANDOM
    return _kind_by_name(target)


def _kind_by_name(target: OpOverload) -> Kind:
    if target.namespace not in _BUILTIN_NAMESPACES:
        return Kind.OPAQUE
    name = target._schema.name.split("::")[1]
    if "convolution" in name:
        return Kind.CONVOLUTION
    if "attention" in name:
        return Kind.ATTENTION
    if name in _KIND_OF:
        return _KIND_OF[name]
    if torch.Tag.pointwise in target.tags:
        return Kind.POINTWISE
    if torch.Tag.reduction in target.tags:
        return Kind.REDUCTION
    return Kind.KERNEL


def _kind_of_higher_order(name: str) -> Kind:
    if name.startswith("flex_attention"):
        return Kind.ATTENTION
    return Kind.EFFECT if name == "with_effects" else Kind.OPAQUE


def bodies_of(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The subgraphs that a higher-order op is given."""
    for argument in node.all_input_nodes:
        if argument.op == "get_attr" and argument.graph.owning_module is not None:
            body = getattr(argument.graph.owning_module, str(argument.target), None)
            if isinstance(body, fx.GraphModule):
                yield body


def _nodes_of_bodies(node: fx.Node) -> Iterator[fx.Node]:
    """The calls in the subgraphs that a higher-order op is given, and in theirs."""
    for body in bodies_of(node):
        for inner in body.graph.nodes:
            if inner.op == "call_function":
                yield inner
                yield from _nodes_of_bodies(inner)


def draws_random_numbers(node: fx.Node) -> bool:
    """Whether another run of the call would give other values.

    Attention ops carry the random tag for the sake of their dropout; without one they draw nothing.
    """
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    arguments = {a.name: (node.args[i] if i < len(node.args) else None) for i, a in enumerate(target._schema.arguments)}
    arguments |= node.kwargs
    for argument in target._schema.arguments:
        if argument.name in ("dropout_p", "dropout"):
            given = arguments.get(argument.name)
            return (argument.default_value if given is None else given) != 0.0
    return True


def replays(node: fx.Node) -> bool:
    """Whether the call may draw from the global random state unsaid, so that another run has to start from the same."""
    return isinstance(node.target, OpOverload) and kind_of(node) is Kind.OPAQUE


def is_one_of_its_kind(node: fx.Node) -> bool:
    """Whether another call with the same arguments may give other values, so that the two are never made one."""
    if node.op != "call_function":
        return False
    return kind_of(node) in (Kind.RANDOM, Kind.OPAQUE) or any(map(draws_random_numbers, _nodes_of_bodies(node)))


def user_mark(node: fx.Node) -> str:
    """What the user wants of the node's values: "save", "recompute", or "" when they do not say.

    ``torch.utils.checkpoint`` marks its region's ops as preferably recomputed, and torch's own partitioner obeys
    that as an order; so does this one.
    """
    policy = node.meta.get("recompute")
    if policy in (
        CheckpointPolicy.MUST_SAVE,
        getattr(CheckpointPolicy, "MUST_CPU_OFFLOAD", CheckpointPolicy.MUST_SAVE),
    ):
        return "save"
    if policy in (CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE):
        return "recompute"
    return ""


def aliased_argument(node: fx.Node, index: int) -> fx.Node | None:
    """The argument that result ``index`` is a view of, by the op's schema."""
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.returns:
        return None
    returns = target._schema.returns
    alias = returns[min(index, len(returns) - 1)].alias_info  # a list of views is one return
    if alias is None:
        return None
    for position, argument in enumerate(target._schema.arguments):
        theirs = argument.alias_info
        # Of a list the schema says "views", not of what; the argument says that it comes to be viewed by a list.
        viewed_by_a_list = not alias.before_set and theirs is not None and "*" in theirs.after_set
        if theirs is not None and (alias.before_set & theirs.before_set or viewed_by_a_list):
            given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            return given if isinstance(given, fx.Node) else None
    return None


def is_size(value: Any) -> bool:
    """Whether a node's result is a number (a symbolic size or a truth value over sizes) and not a tensor."""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))


def _flops(node: fx.Node) -> int:
    """FLOPs by torch's own formulas, attention's by ours; 0 for what they do not know, or not in these shapes."""
    packet = getattr(node.target, "overloadpacket", node.target)
    count = ATTENTION_FLOPS.get(packet) or flop_registry.get(packet)
    if count is None:
        return 0
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), (node.args, node.kwargs))
    try:
        return hint(count(*args, **kwargs, out_val=node.meta.get("val")))
    except (AssertionError, IndexError, TypeError, ValueError) as error:  # its bytes are known
        log.debug("the FLOPs of %s are not known: %s", node.target, error)
        return 0


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two products over (batch, heads, queries, keys, width). Several heads of queries may read one of keys."""
    batch, heads, queries, width = (hint(n) for n in query.shape)
    keys, width_of_values = (hint(n) for n in value.shape[-2:])
    return 2 * batch * heads * queries * keys * (width + width_of_values)


def _attention_backward(_: Any, query: Any, key: Any, value: Any, *__: Any, **___: Any) -> int:
    """Five products, one of them a replay: of scores, then for the gradients of values, scores, queries and keys."""
    batch, heads, queries, width = (hint(n) for n in query.shape)
    keys, width_of_values = (hint(n) for n in value.shape[-2:])
    return 2 * batch * heads * queries * keys * (3 * width + 2 * width_of_values)


_attention._get_raw = _attention_backward._get_raw = True  # type: ignore[attr-defined]  # tensors, not their shapes
# torch's registry leaves the CPU's attention out, and its formulas refuse fewer heads of keys than of queries.
ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, f"_scaled_dot_product_{kind}{suffix}"): count
    for kind in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, count in (("", _attention), ("_backward", _attention_backward))
}
