"""The kind of an op. The names of torch's ops end here: the core knows kinds only.

``_TABLE`` says for each kind how its ops are recognized and whether they may run again. An op may run again if another
run gives the same bits and has no other effect. Random ops may not, unless they draw from an explicit seed (Inductor's
``inductor_random``) or draw nothing (attention without dropout). Custom ops, higher-order ops and users' kernels are
not known to be pure, whatever their names and tags say. The user's own mark can allow all of these to run again, from
the random state of their first run (``needs_random_state``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import HigherOrderOperator, OpOverload
from rematpass.compiler.ops.node_info import argument_at
from rematpass.compiler.ops.size_hints import is_size
from rematpass.core.op import Kind


@dataclass(frozen=True)
class Rule:
    """How ops of one kind are recognized: ``within`` as a part of their name, or among ``names``, or by ``tag``.

    ``never_recompute``: why they never run again. ``marks_override``: whether a user's mark may still allow it.
    """

    within: str = ""
    names: str = ""
    tag: torch.Tag | None = None
    never_recompute: str = ""
    marks_override: bool = False


_TABLE: dict[Kind, Rule] = {
    # Ops of ATen, prims and Inductor, by name or tag: ``within`` wins over ``names``, and ``names`` over ``tag``.
    Kind.CONVOLUTION: Rule(within="convolution"),
    Kind.ATTENTION: Rule(within="attention"),
    Kind.MATMUL: Rule(names="mm addmm bmm baddbmm matmul linear mv addmv dot vdot addbmm _scaled_mm _int_mm"),
    Kind.REDUCTION: Rule(
        tag=torch.Tag.reduction,
        names="""
            _softmax _log_softmax _softmax_backward_data _log_softmax_backward_data logsumexp prepare_softmax_online
            native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward _fused_rms_norm
            _fused_rms_norm_backward native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional
            _native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_with_update_functional
            native_batch_norm_backward batch_norm_backward
            max min median mode aminmax argmax argmin all any count_nonzero linalg_vector_norm
            cumsum cumprod logcumsumexp nll_loss_forward nll_loss2d_forward
            adaptive_avg_pool2d _adaptive_avg_pool2d avg_pool2d
        """,
    ),
    Kind.INDEXING: Rule(
        names="""
            index gather embedding index_select _unsafe_index _unsafe_masked_index inductor_lookup_seed
            nll_loss_backward nll_loss2d_backward max_pool2d_with_indices _low_memory_max_pool_with_offsets
            _low_memory_max_pool_offsets_to_indices upsample_nearest2d upsample_bilinear2d grid_sampler_2d
        """
    ),
    Kind.SCATTER: Rule(
        names="""
            index_put _unsafe_index_put _unsafe_masked_index_put_accumulate index_add index_copy masked_scatter
            scatter scatter_add scatter_reduce embedding_dense_backward max_pool2d_with_indices_backward sort topk
        """
    ),
    Kind.COPY: Rule(
        names="""
            clone copy _to_copy convert_element_type cat stack repeat constant_pad_nd flip roll tril triu
            slice_scatter select_scatter diagonal_scatter as_strided_scatter
        """
    ),
    Kind.CREATE: Rule(
        names="""
            full zeros ones empty arange iota scalar_tensor eye linspace full_like zeros_like ones_like empty_like
            new_zeros new_ones new_full new_empty new_empty_strided empty_strided empty_permuted
        """
    ),
    Kind.SEEDED: Rule(names="inductor_random inductor_randint"),
    Kind.POINTWISE: Rule(
        tag=torch.Tag.pointwise, names="native_dropout_backward _softmax_backward slice_backward select_backward fma"
    ),
    Kind.KERNEL: Rule(),  # every other op of these namespaces
    # Ops of any namespace, by the schema, the namespace or the result (``kind_of``).
    Kind.SYMBOLIC: Rule(),
    Kind.RANDOM: Rule(never_recompute="it draws random numbers", marks_override=True),
    Kind.COLLECTIVE: Rule(never_recompute="it communicates between ranks", marks_override=True),
    Kind.EFFECT: Rule(never_recompute="it has an effect besides its result"),
    Kind.MUTATION: Rule(never_recompute="it overwrites its argument"),
    Kind.OPAQUE: Rule(
        never_recompute="a custom or higher-order op, not known to be pure (REMAT_PURE_OPS declares it)",
        marks_override=True,
    ),
}
_BY_PART = {rule.within: kind for kind, rule in _TABLE.items() if rule.within}
_BY_NAME = {name: kind for kind, rule in _TABLE.items() for name in rule.names.split()}
_BY_TAG = {rule.tag: kind for kind, rule in _TABLE.items() if rule.tag is not None}
_BUILTIN_NAMESPACES = frozenset({"aten", "prims", "prim", "inductor", "quantized_decomposed"})
_COLLECTIVE_NAMESPACES = frozenset({"_c10d_functional", "_c10d_functional_autograd", "c10d_functional", "_dtensor"})


def rule_of(kind: Kind) -> Rule:
    return _TABLE[kind]


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
    return kind_by_name(target)


def kind_by_name(target: OpOverload) -> Kind:
    """The kind by the op's name and tags alone: attention with dropout is still attention."""
    if target.namespace not in _BUILTIN_NAMESPACES:
        return Kind.OPAQUE
    name = target._schema.name.split("::")[1]
    by_part = (kind for part, kind in _BY_PART.items() if part in name)
    by_tag = (_BY_TAG[tag] for tag in (torch.Tag.pointwise, torch.Tag.reduction) if tag in target.tags)
    return next(by_part, None) or _BY_NAME.get(name) or next(by_tag, Kind.KERNEL)


def _kind_of_higher_order(name: str) -> Kind:
    if name.startswith("flex_attention"):
        return Kind.ATTENTION
    return Kind.EFFECT if name == "with_effects" else Kind.OPAQUE


def subgraphs_of(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The subgraphs among the arguments of a higher-order op."""
    for argument in node.all_input_nodes:
        if argument.op == "get_attr" and argument.graph.owning_module is not None:
            subgraph = getattr(argument.graph.owning_module, str(argument.target), None)
            if isinstance(subgraph, fx.GraphModule):
                yield subgraph


def nested_calls(node: fx.Node) -> Iterator[fx.Node]:
    """The calls in the subgraphs of a higher-order op, at any depth."""
    for subgraph in subgraphs_of(node):
        for inner in subgraph.graph.nodes:
            if inner.op == "call_function":
                yield inner
                yield from nested_calls(inner)


def draws_random_numbers(node: fx.Node) -> bool:
    """Whether another run of the call would give other values.

    Attention ops have the random tag because of their dropout; without dropout they draw nothing.
    """
    target = node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    for position, argument in enumerate(target._schema.arguments):
        if argument.name in ("dropout_p", "dropout"):
            given = argument_at(node, position, argument.name)
            return bool((argument.default_value if given is None else given) != 0.0)
    return True


def needs_random_state(node: fx.Node) -> bool:
    """Whether the call draws random numbers, or may draw some, so that another run must start from the same state."""
    return isinstance(node.target, OpOverload) and kind_of(node) in (Kind.RANDOM, Kind.OPAQUE)


def must_stay_separate(node: fx.Node) -> bool:
    """Whether two calls with equal arguments may give different values, and so must not be merged into one."""
    if node.op != "call_function":
        return False
    return kind_of(node) in (Kind.RANDOM, Kind.OPAQUE) or any(map(draws_random_numbers, nested_calls(node)))
