"""More of ``programs.PROGRAMS``: one program for each feature of torch beyond plain ATen ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.programs import Model, _randn, cube, program, selective
from torch import nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch._higher_order_ops.effects import _EffectType, _register_effectful_op
from torch._higher_order_ops.map import map as map_
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

# ---- higher-order ops


@program()
def flexible_attention_without_gradient():
    """flex_attention has no backward on the CPU; a test with its backward needs a GPU."""

    def score(score, batch, head, query, key):
        return score * 0.5 + (query - key) * 0.1

    def forward(m, x):
        h = torch.tanh(m.project(x))
        q, k, v = (t.unflatten(-1, (2, 16)).transpose(1, 2) for t in h.detach().chunk(3, -1))
        mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 16, 16, device="cpu", BLOCK_SIZE=16)
        with torch.no_grad():
            seen = flex_attention(q, k, v, score_mod=score, block_mask=mask).transpose(1, 2).flatten(2)
        return m.out(seen.sin()) * h.exp().mean()

    return Model(forward, project=nn.Linear(8, 96), out=nn.Linear(32, 8)), [_randn(1, 16, 8)]


@program()
def branches_with_dropout_and_weights():
    def forward(m, x):
        h = torch.tanh(m.layer(x))

        def one(t):
            return F.dropout(t @ m.weight, 0.5).exp()

        return torch.cond(h.sum() > 0, one, lambda t: t.cos() @ m.weight, (h,)).sin(), h.exp()

    return Model(forward, layer=nn.Linear(3, 5), weight=nn.Parameter(_randn(5, 5))), [_randn(7, 3)]


@torch.compiler.nested_compile_region
def block_with_dropout(x, w):
    return F.dropout(torch.tanh(x @ w), 0.4).exp()


@program()
def a_region_compiled_once_with_dropout():
    def forward(m, x):
        return block_with_dropout(block_with_dropout(x, m.weight).sin(), m.weight)

    return Model(forward, weight=nn.Parameter(_randn(5, 5))), [_randn(3, 5)]


@program()
def a_checkpoint_region_of_regions_compiled_once():
    def inner(x, w):
        return torch.tanh(block_with_dropout(block_with_dropout(x, w).sin(), w) @ w)

    def forward(m, x):
        return checkpoint(inner, torch.sin(x), m.weight, use_reentrant=False).exp()

    return Model(forward, weight=nn.Parameter(_randn(5, 5))), [_randn(3, 5, grad=True)]


@program()
def a_scan_that_is_associative():
    def forward(m, x):
        h = torch.sigmoid(m.layer(x))
        return associative_scan(lambda a, b: a * b, h, 0, combine_mode="generic").sin() * h

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(4, 3)]


@program()
def a_map_over_rows():
    def forward(m, x):
        return map_(lambda row, w: torch.tanh(row @ w).exp(), m.layer(x), m.weight).sin()

    return Model(forward, layer=nn.Linear(3, 5), weight=nn.Parameter(_randn(5, 5))), [_randn(4, 2, 3)]


# ---- custom ops


@torch.library.custom_op("rematpass_tests::noted", mutates_args=())
def noted(x: torch.Tensor) -> torch.Tensor:
    NOTED.append(float(x.sum()))
    return x * 2


NOTED: list[float] = []


@noted.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


noted.register_autograd(lambda ctx, grad: noted(grad))
_register_effectful_op(torch.ops.rematpass_tests.noted.default, _EffectType.ORDERED)


@program()
def ops_with_effects():
    def forward(m, x):
        h = noted(torch.tanh(m.layer(x)))
        return noted(h.exp()).sin() + noted(h).cos()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program()
def ops_with_effects_beside_buffers_that_change():
    """Their tokens are inputs of backward that stand after calls."""

    def forward(m, x):
        h = noted(m.norm(m.layer(x)) + m.scale.sin())
        with torch.no_grad():
            m.scale.mul_(0.9)
        return torch.sin(noted(h.exp())) * m.scale

    return Model(forward, layer=nn.Linear(3, 5), norm=nn.BatchNorm1d(5), scale=torch.ones(5)), [_randn(7, 3)]


@program()
def a_checkpoint_region_with_a_custom_op():
    def forward(m, x):
        def inner(t):
            return cube(torch.tanh(m.layer(cube(t.sin())))).exp()

        return checkpoint(inner, x * 2, use_reentrant=False)

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


def _unsaid(name, **more):
    """A custom op that draws random numbers although neither its schema nor its tags declare it."""

    @torch.library.custom_op(f"rematpass_tests::{name}", mutates_args=(), **more)
    def unsaid(x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)

    unsaid.register_fake(torch.empty_like)
    unsaid.register_autograd(lambda ctx, grad: grad)
    return unsaid


drawn = _unsaid("drawn")
attention_of_their_own = _unsaid("attention_of_their_own")  # the name alone must not make it recomputable
drawn_pointwise = _unsaid("drawn_pointwise", tags=(torch.Tag.pointwise,))


@program()
def custom_ops_that_draw_random_numbers_unsaid():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        return drawn(h).exp() * drawn(h).sin() + attention_of_their_own(h).exp() + drawn_pointwise(h).exp()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program()
def a_checkpoint_region_with_custom_ops_that_draw():
    def forward(m, x):
        def inner(t):
            return drawn(torch.tanh(m.layer(drawn(t.sin())))).exp() * drawn_pointwise(t.sum(1, keepdim=True)).exp()

        return drawn(checkpoint(inner, x * 2, use_reentrant=False)).exp()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program()
def equal_calls_that_draw():
    """Merged into one call, they would draw the same numbers."""

    def forward(m, x):
        h = torch.tanh(m.layer(x))
        return h.clone().uniform_(0, 1) * h.exp() + h.clone().uniform_(0, 1) * h.sin()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


# ---- precision, and data-dependent decisions


@program()
def autocast_to_float16():
    def forward(m, x):
        with torch.autocast("cpu", torch.float16):
            h = m.block(x)
            with torch.autocast("cpu", enabled=False):
                h = torch.tanh(h.float())
            return m.head(h).float()

    block = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 5))
    return Model(forward, block=block, head=nn.Linear(5, 3)), [_randn(3, 5)]


@program()
def parameters_in_bfloat16():
    model = nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.LayerNorm(7), nn.Linear(7, 5), nn.Softmax(-1))
    return model.bfloat16(), [_randn(3, 5).bfloat16()]


class Experts(nn.Module):
    """Each token goes to two of four experts, in groups of data-dependent sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(5, 4, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 5)) for _ in range(4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.softmax(self.router(torch.tanh(x)), -1)
        weights, chosen = scores.topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            share = (weights * (chosen == number)).sum(-1)
            token = torch.nonzero(share)[:, 0]
            out = out.index_add(0, token, expert(x[token]) * share[token, None])
        return out, chosen


@program(dynamo={"capture_dynamic_output_shape_ops": True})
def a_mixture_of_experts():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), Experts()), [_randn(13, 3)]


@program()
def a_mixture_of_experts_with_masks():
    def forward(m, x):
        scores = torch.softmax(m.router(m.norm(x).exp()), -1)
        best, chosen = scores.topk(2, -1)
        gate = torch.zeros_like(scores).scatter(-1, chosen, best)
        counts = F.one_hot(chosen, 4).sum((0, 1))
        out = torch.einsum("te,teo->to", gate, torch.tanh(torch.einsum("ti,eio->teo", x, m.experts)))
        return out, (counts / counts.sum() * scores.mean(0)).sum(), chosen

    parts = {"router": nn.Linear(5, 4), "norm": nn.LayerNorm(5), "experts": nn.Parameter(_randn(4, 5, 3))}
    return Model(forward, **parts), [_randn(11, 5, grad=True)]


@program()
def choices_of_many_kinds():
    def forward(m, x):
        h = m.layer(x).sin().exp()
        table = torch.cos(h)[(h * 2).long() % 7]
        top = torch.where(h > h.mean(), h, h * 0.1).cummax(0).values + h.amax(1, keepdim=True) * h.amin(0)
        bins = torch.bucketize(h, torch.arange(3.0)).float() * h
        ordered = h.sort(1).values * h.median(1, keepdim=True).values + F.max_pool1d(h[None], 2)[0].sum()
        return F.leaky_relu(ordered - 3, 0.2) + bins + top, table, h.argmax(1), torch.maximum(h, h.flip(0))

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


# ---- hooks


def _halve_the_gradient(parameter: nn.Parameter) -> None:
    assert parameter.grad is not None
    parameter.grad.mul_(0.5)


@program()
def hooks_on_tensors_and_modules():
    def forward(m, x):
        h = torch.tanh(m.first(x))
        h.register_hook(lambda grad: grad * 2 + h.detach().exp())
        return m.second(h.exp()).sin()

    first, second = nn.Linear(3, 5), nn.Linear(5, 3)
    second.register_forward_hook(lambda module, inputs, output: output * inputs[0].sum())
    second.register_forward_pre_hook(lambda module, inputs: (inputs[0].cos(),))
    first.weight.register_hook(lambda grad: grad * 3)
    first.bias.register_post_accumulate_grad_hook(_halve_the_gradient)
    return Model(forward, first=first, second=second), [_randn(7, 3)]


# ---- activation checkpointing


@program()
def selective_checkpoint_that_prefers_to_save():
    context = selective(CheckpointPolicy.PREFER_SAVE, [torch.ops.aten.addmm.default])

    def forward(m, x):
        return checkpoint(m.block, x, use_reentrant=False, context_fn=context)

    block = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(0.3), nn.Linear(7, 5), nn.Tanh())
    return Model(forward, block=block), [_randn(3, 5)]


@program()
def a_checkpoint_region_with_noise_of_many_kinds():
    def forward(m, x):
        def inner(t):
            h = F.dropout(torch.tanh(m.layer(t)), 0.5) * torch.rand_like(t[:, :1]) + torch.randn(5)
            h = torch.bernoulli(torch.sigmoid(h)) * h.exp() + F.rrelu(h, training=True)
            return F.scaled_dot_product_attention(h[None], h[None] * 2, h[None].sin(), dropout_p=0.3)[0]

        return checkpoint(inner, x * 2, use_reentrant=False).sin()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program()
def checkpoint_regions_within_regions():
    def forward(m, x):
        def outer(t):
            h = checkpoint(lambda s: F.dropout(m.first(s).tanh(), 0.3), t.sin(), use_reentrant=False)
            return checkpoint(m.second, h.exp(), use_reentrant=False).cos() * h

        return checkpoint(outer, x * 2, use_reentrant=False).sin()

    return Model(forward, first=nn.Linear(5, 5), second=nn.Sequential(nn.Linear(5, 5), nn.GELU())), [_randn(3, 5)]


@program(dynamo={"capture_scalar_outputs": True})
def a_loop_while_a_condition_holds():
    def forward(m, x):
        h = torch.tanh(m.layer(x))

        def smaller(i, t):
            return i < 3

        with torch.no_grad():
            count, settled = while_loop(smaller, lambda i, t: (i + 1, (t * 1.5).sin()), (torch.tensor(0), h.detach()))
        return h.exp() * settled, count

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program()
def rows_overwritten_in_place_by_their_numbers():
    """An op of backward reads the results of two scatters, one of which adds."""

    def forward(m, x):
        h = m.first(x)
        turned = h.clone()
        turned[torch.arange(len(x) - 1, -1, -1)] += h.cos()
        return m.second(turned)

    def layers():
        return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8), nn.GELU())

    return Model(forward, first=layers(), second=layers()), [_randn(12, 8)]
