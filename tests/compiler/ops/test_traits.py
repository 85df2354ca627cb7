import pytest
import torch
from torch import fx
from torch._higher_order_ops.effects import with_effects
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch
from rematpass.compiler.ops import flops as flops_of_ops
from rematpass.compiler.ops.kinds import draws_random_numbers, kind_of
from rematpass.compiler.ops.size_hints import is_size
from rematpass.compiler.ops.traits import Traits, traits_of, user_mark
from rematpass.core.op import Kind

aten, prims = torch.ops.aten, torch.ops.prims
SQUARE, ROWS, MASK, INDEX = torch.eye(3), torch.randn(5, 3), torch.ones(3) > 0, torch.tensor([2, 1])
HEADS = torch.randn(2, 3, 5, 8)
CONVOLVED = [torch.randn(2, 3, 7, 7), torch.randn(5, 3, 3, 3), None, [1], [0], [1], False, [0], 1]


@torch.library.custom_op("rematpass_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x + 1


opaque.register_fake(torch.empty_like)


@torch.library.custom_op("rematpass_tests::their_attention", mutates_args=(), tags=(torch.Tag.pointwise,))
def their_attention(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@torch.library.custom_op("rematpass_tests::of_a_list", mutates_args=())
def of_a_list(x: list[torch.Tensor]) -> torch.Tensor:
    return x[0] + 1


@torch.library.custom_op("rematpass_tests::overwrites", mutates_args={"x"})
def overwrites(x: torch.Tensor) -> None:
    x.add_(1)


def call(target, *arguments, **keywords):
    """A node that calls ``target``."""
    graph = fx.Graph()

    def placeholder(tensor):
        node = graph.placeholder("x")
        node.meta["val"] = tensor
        return node

    args, kwargs = _torch.pytree.tree_map_only(torch.Tensor, placeholder, (arguments, keywords))
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*arguments, **keywords)
    return node


@pytest.mark.parametrize(
    ("kind", "target", "arguments"),
    [
        (Kind.POINTWISE, aten.tanh.default, [ROWS]),
        (Kind.POINTWISE, aten.where.self, [MASK, ROWS, ROWS]),
        (Kind.REDUCTION, aten.sum.dim_IntList, [ROWS, [0]]),
        (Kind.REDUCTION, aten._softmax.default, [ROWS, 1, False]),
        (Kind.REDUCTION, aten.native_layer_norm.default, [ROWS, [3], None, None, 1e-5]),
        (Kind.MATMUL, aten.mm.default, [ROWS, SQUARE]),
        (Kind.MATMUL, aten.addmm.default, [SQUARE[0], ROWS, SQUARE]),
        (Kind.CONVOLUTION, aten.convolution.default, CONVOLVED),
        (Kind.ATTENTION, aten._scaled_dot_product_flash_attention_for_cpu.default, [HEADS] * 3),
        (Kind.INDEXING, aten.index.Tensor, [ROWS, [INDEX]]),
        (Kind.INDEXING, aten.embedding.default, [ROWS, INDEX]),
        (Kind.SCATTER, aten.index_put.default, [ROWS, [INDEX], ROWS[:2]]),
        (Kind.SCATTER, aten.topk.default, [ROWS, 2]),
        (Kind.COPY, aten.clone.default, [ROWS]),
        (Kind.COPY, aten.cat.default, [[ROWS, SQUARE]]),
        (Kind.COPY, aten._to_copy.default, [ROWS]),
        (Kind.CREATE, aten.full.default, [[3, 5], 7]),
        (Kind.CREATE, aten.arange.default, [7]),
        (Kind.KERNEL, aten.linalg_inv_ex.default, [SQUARE]),
        (Kind.SYMBOLIC, aten.sym_size.int, [ROWS, 0]),
        (Kind.RANDOM, aten.bernoulli.default, [SQUARE]),
        (Kind.RANDOM, aten.native_dropout.default, [ROWS, 0.5, True]),
        (Kind.RANDOM, aten.randperm.default, [7]),
        (Kind.RANDOM, prims.inductor_seeds.default, [7, torch.device("cpu")]),
        (Kind.INDEXING, prims.inductor_lookup_seed.default, [INDEX, 1]),
        (Kind.MUTATION, aten.add_.Tensor, [ROWS.clone(), 1]),
        (Kind.MUTATION, torch.ops.rematpass_tests.overwrites.default, [ROWS.clone()]),
        (Kind.OPAQUE, torch.ops.rematpass_tests.opaque.default, [ROWS]),
        (Kind.OPAQUE, torch.ops.rematpass_tests.their_attention.default, [ROWS]),
    ],
)
def test_the_kind_of_an_op(kind, target, arguments):
    assert kind_of(call(target, *arguments)) is kind


def test_inductors_random_numbers_replay_from_their_seed():
    seeds = call(prims.inductor_random.default, [3, 5], INDEX[0], "rand")
    assert traits_of(seeds) == Traits(Kind.SEEDED)


@pytest.mark.parametrize(
    ("target", "arguments", "why"),
    [
        (aten.bernoulli.default, [SQUARE], "it draws random numbers"),
        (prims.inductor_seeds.default, [7, torch.device("cpu")], "it draws random numbers"),
        (aten.add_.Tensor, [ROWS.clone(), 1], "it overwrites its argument"),
        (aten.mm.default, [ROWS, SQUARE], ""),
        (aten.tanh.default, [ROWS], ""),
    ],
)
def test_what_never_runs_again_whatever_the_user_says(target, arguments, why):
    traits = traits_of(call(target, *arguments))
    assert (traits.never_recompute, traits.honours_marks) == (why, False)


def test_a_custom_op_runs_again_when_the_user_says_so():
    traits = traits_of(call(torch.ops.rematpass_tests.opaque.default, ROWS))
    assert traits == Traits(Kind.OPAQUE, "a custom or higher-order op, not known to be pure", honours_marks=True)


def test_a_custom_op_whose_random_state_would_not_be_found_never_runs_again():
    """torch looks for the device in the arguments themselves, not in their lists."""
    traits = traits_of(call(torch.ops.rematpass_tests.of_a_list.default, [ROWS]))
    assert traits == Traits(Kind.OPAQUE, "a custom or higher-order op, not known to be pure", honours_marks=False)


def test_a_branch_with_a_custom_op_in_it_never_runs_again():
    branch = make_fx(
        lambda x: torch.cond(x.sum() > 0, lambda t: opaque(t).sin(), torch.cos, (x,)), tracing_mode="fake"
    )(ROWS)
    (node,) = branch.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    assert not traits_of(node).honours_marks


def test_a_higher_order_op_is_not_known_to_be_pure():
    branch = make_fx(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), tracing_mode="fake")(ROWS)
    (node,) = branch.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    assert traits_of(node) == Traits(Kind.OPAQUE, "a custom or higher-order op, not known to be pure", True)


def test_effects_stay_where_they_are():
    node = fx.Graph().call_function(with_effects, ())
    assert traits_of(node) == Traits(Kind.EFFECT, "it has an effect besides its result")


def test_a_size_that_depends_on_data_is_not_computed_again():
    node = call(aten.nonzero.default, ROWS)
    node.meta["unbacked_bindings"] = {"u0": ()}
    assert traits_of(node).never_recompute == "the size of its result depends on data"


@pytest.mark.parametrize(
    ("arguments", "keywords", "draws"),
    [([], {}, False), ([0.0], {}, False), ([0.3], {}, True), ([], {"dropout_p": 0.3}, True), ([0.0, True], {}, False)],
)
def test_attention_draws_random_numbers_only_for_its_dropout(arguments, keywords, draws):
    """The op is made up, as the CPU has none; the positions of its arguments are those of CUDA's flash attention."""
    node = fx.Graph().call_function(aten._scaled_dot_product_flash_attention.default, (1, 2, 3, *arguments), keywords)
    assert draws_random_numbers(node) == draws


@pytest.mark.parametrize(
    ("policy", "mark"),
    [
        (None, ""),
        (CheckpointPolicy.MUST_SAVE, "save"),
        (CheckpointPolicy.PREFER_SAVE, ""),
        (CheckpointPolicy.MUST_RECOMPUTE, "recompute"),
        (CheckpointPolicy.PREFER_RECOMPUTE, "recompute"),
    ],
)
def test_users_marks(policy, mark):
    node = call(aten.tanh.default, ROWS)
    if policy:
        node.meta["recompute"] = policy
    assert user_mark(node) == mark


@pytest.mark.parametrize(
    ("value", "answer"), [(7, True), (0.5, True), (True, True), (ROWS, False), (None, False), ((7, 5), False)]
)
def test_is_size(value, answer):
    assert is_size(value) == answer


@pytest.mark.parametrize(
    ("flops", "target", "arguments"),
    [
        (2 * 5 * 3 * 3, aten.mm.default, [ROWS, SQUARE]),
        (
            2 * (2 * 5 * 5 * 5) * 3 * 3 * 3,
            aten.convolution.default,
            CONVOLVED,
        ),
        (2 * 2 * (2 * 3) * 5 * 5 * 8, aten._scaled_dot_product_flash_attention_for_cpu.default, [HEADS] * 3),
        (0, aten.tanh.default, [ROWS]),
    ],
)
def test_flops(flops, target, arguments):
    assert traits_of(call(target, *arguments)).flops == flops


def test_flops_of_attentions_backward():
    """Five products of the size of forward's two."""
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(HEADS, HEADS, HEADS)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    node = call(backward, out, HEADS, HEADS, HEADS, out, logsumexp, 0.0, False)
    assert traits_of(node).flops == 5 * 2 * (2 * 3) * 5 * 5 * 8


def test_flops_of_attention_with_fewer_heads_of_keys():
    """torch's formula refuses it; each head of keys and values is read by several of queries."""
    few = torch.empty(2, 1, 5, 8)
    node = call(aten._scaled_dot_product_flash_attention_for_cpu.default, HEADS, few, few)
    assert traits_of(node).flops == 2 * 2 * (2 * 3) * 5 * 5 * 8


def test_flops_that_a_formula_does_not_know_are_none(monkeypatch):
    def refuses(*_, **__):
        raise AssertionError("shapes are incompatible")

    monkeypatch.setitem(flops_of_ops.flop_registry, aten.mm, refuses)
    assert traits_of(call(aten.mm.default, ROWS, SQUARE)).flops == 0
