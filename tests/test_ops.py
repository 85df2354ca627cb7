import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler.ops import draws_random_numbers, is_size, kind_of, traits_of, user_mark
from rematpass.core.graph import Kind

aten, prims = torch.ops.aten, torch.ops.prims


def randn(*shape):
    return torch.randn(*shape)


@torch.library.custom_op("rematpass_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@opaque.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("rematpass_tests::writes", mutates_args={"x"})
def writes(x: torch.Tensor) -> None:
    x.add_(1)


def node_of(function, *arguments, target=None):
    """The last call in the traced function, or the one of ``target``."""
    graph = make_fx(function, tracing_mode="fake")(*arguments).graph
    calls = [n for n in graph.nodes if n.op == "call_function" and target in (None, n.target)]
    return calls[-1]


KINDS = [
    (Kind.POINTWISE, torch.tanh, [randn(3, 5)]),
    (Kind.POINTWISE, torch.where, [randn(3) > 0, randn(3), randn(3)]),
    (Kind.REDUCTION, lambda x: x.sum(0), [randn(3, 5)]),
    (Kind.REDUCTION, lambda x: aten._softmax(x, 1, False), [randn(3, 5)]),
    (Kind.MATMUL, torch.mm, [randn(3, 5), randn(5, 7)]),
    (Kind.MATMUL, torch.addmm, [randn(7), randn(3, 5), randn(5, 7)]),
    (Kind.CONVOLUTION, F.conv1d, [randn(2, 3, 5), randn(7, 3, 3)]),
    (Kind.ATTENTION, lambda q: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[0].sum(), [randn(2, 3, 5, 7)]),
    (Kind.INDEXING, lambda x, i: x[i], [randn(7, 3), torch.tensor([2, 5])]),
    (Kind.INDEXING, F.embedding, [torch.tensor([2, 5]), randn(7, 3)]),
    (Kind.SCATTER, lambda x, i: x.index_put((i,), x[i]), [randn(7, 3), torch.tensor([2, 5])]),
    (Kind.SCATTER, lambda x: aten.topk(x, 2)[0] + 0, [randn(7)]),
    (Kind.COPY, torch.clone, [randn(3)]),
    (Kind.COPY, lambda x, y: torch.cat([x, y]), [randn(3), randn(5)]),
    (Kind.CREATE, lambda x: torch.ones(3, 5), [randn(3)]),
    (Kind.CREATE, lambda x: torch.arange(7), [randn(3)]),
    (Kind.KERNEL, lambda x: torch.linalg.inv(x), [randn(3, 3)]),
    (Kind.RANDOM, torch.bernoulli, [torch.rand(3)]),
    (Kind.RANDOM, lambda x: aten.native_dropout(x, 0.5, True)[0] * 1, [randn(3)]),
    (Kind.RANDOM, lambda x: torch.randperm(7), [randn(3)]),
    (Kind.MUTATION, lambda x: x.add_(1), [randn(3)]),
    (Kind.OPAQUE, opaque, [randn(3)]),
    (Kind.MUTATION, writes, [randn(3)]),
]
TARGETS = {
    Kind.ATTENTION: aten._scaled_dot_product_flash_attention_for_cpu.default,
    Kind.SCATTER: None,
}


@pytest.mark.parametrize(("kind", "function", "arguments"), KINDS, ids=range(len(KINDS)))
def test_the_kind_of_an_op(kind, function, arguments):
    graph = make_fx(function, tracing_mode="fake")(*arguments).graph
    assert kind in [kind_of(n) for n in graph.nodes if n.op == "call_function" and "getitem" not in n.name]
