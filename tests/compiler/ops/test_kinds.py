"""The kind of an op, whether it draws random numbers, and whether a value is a size."""

import pytest
import torch
from support.nodes import called
from torch import fx

from rematpass.compiler.ops.kinds import draws_random_numbers, kind_of
from rematpass.compiler.ops.size_hints import is_size
from rematpass.core.op import Kind

aten, prims = torch.ops.aten, torch.ops.prims
SQUARE, ROWS, MASK, INDEX = torch.eye(3), torch.randn(5, 3), torch.ones(3) > 0, torch.tensor([2, 1])
HEADS = torch.randn(2, 3, 5, 8)
CONVOLVED = [torch.randn(2, 3, 7, 7), torch.randn(5, 3, 3, 3), None, [1], [0], [1], False, [0], 1]


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
        (Kind.OPAQUE, torch.ops.rematpass_tests.users_attention.default, [ROWS]),
    ],
)
def test_the_kind_of_an_op(kind, target, arguments):
    assert kind_of(called(target, *arguments)) is kind


@pytest.mark.parametrize(
    ("arguments", "keywords", "draws"),
    [([], {}, False), ([0.0], {}, False), ([0.3], {}, True), ([], {"dropout_p": 0.3}, True), ([0.0, True], {}, False)],
)
def test_attention_draws_random_numbers_only_for_its_dropout(arguments, keywords, draws):
    """The node's other arguments do not matter; its op is CUDA's flash attention."""
    node = fx.Graph().call_function(aten._scaled_dot_product_flash_attention.default, (1, 2, 3, *arguments), keywords)
    assert draws_random_numbers(node) == draws


@pytest.mark.parametrize(
    ("value", "answer"), [(7, True), (0.5, True), (True, True), (ROWS, False), (None, False), ((7, 5), False)]
)
def test_numbers_are_sizes(value, answer):
    assert is_size(value) == answer
