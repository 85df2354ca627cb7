"""What the planner learns of a call: whether it may run again, and what the user wants of its values."""

import pytest
import torch
from support.nodes import called, opaque
from torch import fx
from torch._higher_order_ops.effects import with_effects
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler.ops.traits import Traits, traits_of, user_mark
from rematpass.core.op import Kind

aten, prims = torch.ops.aten, torch.ops.prims
OPAQUE = "a custom or higher-order op, not known to be pure (REMAT_PURE_OPS declares it)"
SQUARE, ROWS, INDEX = torch.eye(3), torch.randn(5, 3), torch.tensor([2, 1])


def test_seeded_random_numbers_may_be_recomputed():
    seeds = called(prims.inductor_random.default, [3, 5], INDEX[0], "rand")
    assert traits_of(seeds) == Traits(Kind.SEEDED)


@pytest.mark.parametrize(
    ("target", "arguments", "why"),
    [
        (prims.inductor_seeds.default, [7, torch.device("cpu")], "it draws random numbers"),
        (aten.add_.Tensor, [ROWS.clone(), 1], "it overwrites its argument"),
        (aten.mm.default, [ROWS, SQUARE], ""),
        (aten.tanh.default, [ROWS], ""),
    ],
)
def test_ops_that_no_mark_allows_to_be_recomputed(target, arguments, why):
    traits = traits_of(called(target, *arguments))
    assert (traits.never_recompute, traits.honours_marks) == (why, False)


@pytest.mark.parametrize(
    ("target", "arguments", "keywords"),
    [
        (aten.bernoulli.default, [SQUARE], {}),
        (aten.native_dropout.default, [ROWS, 0.5, True], {}),
        (aten.rand.default, [[3, 5]], {"device": torch.device("cpu")}),
    ],
)
def test_a_mark_allows_random_numbers_to_be_drawn_again(target, arguments, keywords):
    traits = traits_of(called(target, *arguments, **keywords))
    assert (traits.never_recompute, traits.honours_marks) == ("it draws random numbers", True)


def test_numbers_of_a_users_generator_are_never_drawn_again():
    """The state of the device's own generator says nothing about them."""
    node = called(aten.bernoulli.default, SQUARE, generator=torch.Generator())
    assert not traits_of(node).honours_marks


def test_a_mark_allows_a_custom_op_to_be_recomputed():
    traits = traits_of(called(torch.ops.rematpass_tests.opaque.default, ROWS))
    assert traits == Traits(Kind.OPAQUE, OPAQUE, honours_marks=True)


def test_a_custom_op_on_a_list_of_tensors_is_never_recomputed():
    """Its random state could not be restored: torch looks for the device in the arguments, not inside of lists."""
    traits = traits_of(called(torch.ops.rematpass_tests.of_a_list.default, [ROWS]))
    assert traits == Traits(Kind.OPAQUE, OPAQUE, honours_marks=False)


def test_a_branch_that_contains_a_custom_op_is_never_recomputed():
    branch = make_fx(
        lambda x: torch.cond(x.sum() > 0, lambda t: opaque(t).sin(), torch.cos, (x,)), tracing_mode="fake"
    )(ROWS)
    (node,) = branch.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    assert not traits_of(node).honours_marks


def test_a_higher_order_op_is_not_known_to_be_pure():
    branch = make_fx(lambda x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), tracing_mode="fake")(ROWS)
    (node,) = branch.graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
    assert traits_of(node) == Traits(Kind.OPAQUE, OPAQUE, True)


def test_an_effect_is_never_recomputed():
    node = fx.Graph().call_function(with_effects, ())
    assert traits_of(node) == Traits(Kind.EFFECT, "it has an effect besides its result")


def test_an_op_whose_size_depends_on_data_is_never_recomputed():
    node = called(aten.nonzero.default, ROWS)
    node.meta["unbacked_bindings"] = {"u0": ()}
    assert traits_of(node).never_recompute == "the size of its result depends on data"


def test_traits_include_the_flops():
    assert traits_of(called(aten.mm.default, ROWS, SQUARE)).flops == 2 * 5 * 3 * 3


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
    node = called(aten.tanh.default, ROWS)
    if policy:
        node.meta["recompute"] = policy
    assert user_mark(node) == mark
