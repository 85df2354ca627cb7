"""Backward uses the decisions that forward made, though recomputed values differ in their last bits."""

import functools

import pytest
import torch
import torch.nn.functional as F
from support.programs import afresh, captured
from support.programs_features import Experts
from torch import fx, nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from rematpass import Config, plans
from rematpass.compiler import _torch
from rematpass.compiler.capture.discrete_ops import REASON, keep_decisions
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planned import records
from rematpass.core.op import Kind, Side

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


def randn(*shape, grad=False, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def kept(forward, *arguments, fuse=True, **compile):
    """The names of the ops that run once because they are discrete."""
    found = keep_decisions(captured(forward, *arguments, **compile), fuse=fuse)
    return [op.name for op in found.graph.ops if op.never_recompute == REASON]


DECISIONS = {
    "topk": lambda h: h.topk(2)[0].exp(),
    "sort": lambda h: h.sort(0)[0].exp(),
    "argmax": lambda h: h.sin() * h.argmax(0),
    "gt": lambda h: torch.where(h > h.mean(), h.sin(), h.cos()),
    "cummax": lambda h: h.cummax(0).values.exp(),
    "max_pool2d_with_indices": lambda h: F.max_pool2d(h[None], 2).exp(),
    "bucketize": lambda h: torch.bucketize(h, torch.arange(3.0)) * h.exp(),
    "_to_copy": lambda h: torch.cos(h)[h.sum(1).long() % 3],
    "isnan": lambda h: h.exp() * h.isnan(),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_an_op_that_turns_floats_into_decisions_runs_once(name):
    assert name in kept(lambda x: DECISIONS[name](torch.tanh(x)), randn(4, 4, grad=True))


@pytest.mark.parametrize("name", DECISIONS)
def test_without_fusion_the_bits_are_the_same_so_it_may_run_again(name):
    assert not kept(lambda x: DECISIONS[name](torch.tanh(x)), randn(4, 4, grad=True), fuse=False)


def test_decisions_on_values_that_are_never_recomputed_may_run_again():
    """Inputs and parameters, and values that only move or count them."""

    def forward(x, w):
        chosen = w.flip(0).repeat(2, 1)[torch.arange(6) % 4]
        return torch.where(chosen > 0, x.sin(), x.cos()) * (x.t().contiguous() > 0).t() * chosen.argmax(0)

    assert not kept(forward, randn(6, 5, grad=True), randn(4, 5, grad=True))


def test_in_16_bits_a_decision_on_a_saved_value_runs_once():
    """The fused kernel decides on 32 bits, while the saved value has 16."""

    def forward(x):
        return torch.where(torch.tanh(x) > 0.5, x.sin(), x.cos())

    assert kept(forward, randn(4, 4, grad=True, dtype=torch.bfloat16)) == ["gt"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_of_a_dropout_may_be_drawn_again_from_its_seed(dtype):
    """Inductor's random numbers have the same bits wherever they are drawn, so the mask need not be saved."""

    def forward(x, w):
        return F.dropout(torch.tanh(x @ w), 0.1).exp().sum()

    step = torch.compile(forward, backend="remat", options={"memory_budget": 0, "strict": 1})
    step(randn(8, 8, dtype=dtype), randn(8, 8, grad=True, dtype=dtype))
    (record,) = records()
    by_name = {op.name: op for op in record.graph.ops}
    assert "inductor_random_default" in by_name
    assert by_name["gt"].never_recompute == ""


@pytest.mark.parametrize(("hardware", "drawn"), [("cpu", 1), ("h200", 0)])
def test_the_fastest_plan_saves_masks_on_a_gpu_and_draws_them_again_on_a_cpu(hardware, drawn):
    """Each does what is faster: a GPU reads a mask in a tenth of the time that drawing it takes."""

    def forward(x, w):
        return F.dropout(torch.tanh(x @ w), 0.1) @ w

    step = torch.compile(forward, backend="remat", options={"hardware": hardware, "strict": 1})
    step(randn(64, 64), randn(64, 64, grad=True))
    (record,) = records()
    again = [record.graph.ops[run.op].kind for run in record.ladder.rungs[0].plan.recomputed()]
    assert again.count(Kind.SEEDED) == drawn


def test_an_equality_that_only_gradients_read_runs_once_in_forward():
    """``x == x.amax()``: with another ``x`` no element is the largest, and the gradient is not a number."""
    found = captured(lambda x: torch.tanh(x).amax(1).exp(), randn(4, 4, grad=True))
    settled = keep_decisions(found, fuse=True)
    (equal,) = [op for op in settled.graph.ops if op.never_recompute == REASON]
    assert equal.name == "eq"
    assert found.graph.sides[equal.id] is Side.EITHER
    assert settled.graph.sides[equal.id] is Side.FORWARD


def test_the_sign_of_a_relu_is_left_to_the_planner():
    """It changes only where both sides are equal up to rounding."""
    assert not kept(lambda x: torch.relu(torch.tanh(x)).exp(), randn(4, 4, grad=True))


GPU_ATTENTION = {
    "cudnn": lambda q: aten._scaled_dot_product_cudnn_attention(q, q, q, None, True)[0],
    "efficient": lambda q: aten._scaled_dot_product_efficient_attention(q, q, q, None, True)[0],
    "flash": lambda q: aten._scaled_dot_product_flash_attention(q, q, q)[0],
}


@pytest.mark.parametrize("name", GPU_ATTENTION)
def test_the_random_state_that_attention_returns_is_not_a_decision(name):
    """On a GPU, attention returns the seed of its dropout beside its result."""
    with FakeTensorMode():
        x = torch.empty(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
        found = captured(lambda x: GPU_ATTENTION[name](torch.tanh(x)).exp(), x)
    (op,) = [op for op in found.graph.ops if op.name.endswith("attention")]
    assert any("int" in found.graph.values[v].dtype for v in op.writes)
    (kept,) = [op for op in keep_decisions(found, fuse=True).graph.ops if op.name.endswith("attention")]
    assert not kept.never_recompute


def attention(q, k, v, bias, with_sums, dropout=0.0, causal=False, *, scale=None):
    """A CPU implementation of the GPU's memory-efficient attention, with another seed in every call."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1), torch.randint(99, ()), torch.randint(99, ())


def attention_backward(grad, q, k, v, bias, out, sums, seed, offset, dropout, mask, causal=False, *, scale=None):
    scale = q.shape[-1] ** -0.5
    weights = (q @ k.transpose(-2, -1) * scale - sums[..., None]).exp()
    of_scores = weights * (grad @ v.transpose(-2, -1) - (grad * out).sum(-1, keepdim=True)) * scale
    return of_scores @ k, of_scores.transpose(-2, -1) @ q, weights.transpose(-2, -1) @ grad, torch.empty(0)


def test_attention_runs_again_though_its_seed_differs():
    library = torch.library.Library("aten", "IMPL")
    library.impl("_scaled_dot_product_efficient_attention", attention, "CPU")
    library.impl("_scaled_dot_product_efficient_attention_backward", attention_backward, "CPU")
    x = randn(1, 2, 16, 8, grad=True)

    def forward(x):
        return GPU_ATTENTION["efficient"](torch.tanh(x)).exp().sum()

    (seen,) = torch.autograd.grad(torch.compile(forward, backend=jittery())(x), x)
    (expected,) = torch.autograd.grad(F.scaled_dot_product_attention(*[torch.tanh(x)] * 3).exp().sum(), x)
    assert torch.allclose(seen, expected, atol=1e-4)
    (record,) = records()
    again = [record.graph.ops[run.op].name for run in record.plan.recomputed()]
    assert any(name.endswith("attention") for name in again)


def region(policy):
    def choose(_, op, *__, **___):
        return policy if op is aten.topk.default else CheckpointPolicy.PREFER_RECOMPUTE

    context = functools.partial(create_selective_checkpoint_contexts, choose)
    return lambda x: checkpoint(
        lambda t: torch.tanh(t).topk(2)[0].exp(), x * 2, use_reentrant=False, context_fn=context
    )


@pytest.mark.parametrize(
    ("policy", "expected"), [(CheckpointPolicy.PREFER_RECOMPUTE, ["topk"]), (CheckpointPolicy.MUST_RECOMPUTE, [])]
)
def test_in_a_region_only_must_recompute_takes_precedence(policy, expected):
    assert kept(region(policy), randn(4, 4, grad=True)) == expected


# ---- a compiler whose recomputed values have other bits


class Jitter(fx.Interpreter):
    """Runs backward with an error of one or two roundings in every recomputed float."""

    def run_node(self, n):
        result = super().run_node(n)
        if "_again" in n.name and isinstance(result, torch.Tensor) and result.is_floating_point():
            signs = 1 - 2 * (torch.arange(result.numel()) % 2).view(result.shape)
            return result * (1 + 1e-6 * signs)
        return result


def jittery(**options):
    """A backend that plans as for a fusing compiler and is as inexact as such a compiler may be."""
    config = Config.read({"solver": "recompute_all", "strict": 1, **options}, {})
    return _torch.aot_autograd(
        fw_compiler=_torch.boxed_nop,
        bw_compiler=lambda bwd, _: make_boxed_func(lambda *arguments: Jitter(bwd).run(*arguments)),
        partition_fn=RematPartitioner(config, fuse=True),
        keep_inference_input_mutations=True,
    )


def undecided():
    """Experts whose router scores all of them equally, up to rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), Experts())
    with torch.no_grad():
        model[2].router.weight.copy_(model[2].router.weight[:1].expand(4, 5))
    return model


def gradients(model, step):
    torch.manual_seed(1)
    out, _ = step(torch.randn(13, 3))
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(("save", "right"), [(1, True), (0, False)])
def test_backward_sends_each_token_where_forward_sent_it(save, right):
    """The gradients of experts are equal to 1e-4 with the routing saved, and another expert's without."""
    eager, model = undecided(), undecided()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        seen = gradients(model, torch.compile(model, backend=jittery(save_decisions=save), fullgraph=True))
    assert plans()[0].recomputed_ops
    expected = gradients(eager, eager)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(seen, expected, strict=True)) is right


@pytest.mark.parametrize(("save", "right"), [(1, True), (0, False)])
def test_backward_finds_the_largest_element_that_forward_found(save, right):
    x = torch.linspace(-2, 2, 15).view(3, 5).sin().requires_grad_()
    step = torch.compile(lambda x: torch.tanh(x).amax(1).exp(), backend=jittery(save_decisions=save))
    (seen,) = torch.autograd.grad(step(x).sum(), x)
    (expected,) = torch.autograd.grad(torch.tanh(x).amax(1).exp().sum(), x)
    assert torch.allclose(seen, expected, atol=1e-4) is right
