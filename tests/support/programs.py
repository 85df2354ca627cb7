"""Small training programs, each with something that a partitioner can get wrong, and a function that runs them.

A program makes a new model and its arguments. ``run`` trains it for some steps and returns all that a user can observe:
outputs and which tensors share storage with them, gradients, buffers, arguments, and the random state.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._inductor.config
import torch.nn.functional as F
from torch import fx, nn
from torch._higher_order_ops.scan import scan
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import rematpass
from rematpass.compiler import _torch
from rematpass.compiler._torch import pytree
from rematpass.compiler.capture.joint_graph import Captured, capture
from rematpass.compiler.emit import emit, step_facts
from rematpass.compiler.graph_passes.pipeline import rewrite_joint, rewrite_step
from rematpass.core.schedule import Plan

Forward = Callable[..., Any]
Seen = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Program:
    """``make`` returns a new forward and its arguments. ``compile``: keywords of ``torch.compile``.

    ``dynamo``: settings of ``torch._dynamo.config``. ``reference``: the backend whose results are right, by default
    eager mode.
    """

    make: Callable[[], tuple[Forward, Sequence[Any]]]
    compile: Mapping[str, Any]
    dynamo: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""


PROGRAMS: dict[str, Program] = {}


def program(**fields: Any) -> Any:
    """Add the decorated function to ``PROGRAMS`` under its name."""

    def add(make: Callable[[], tuple[Forward, Sequence[Any]]]) -> Any:
        PROGRAMS[make.__name__] = Program(make, **{"compile": {"fullgraph": True}, **fields})
        return make

    return add


class Model(nn.Module):
    """A module whose forward calls a function with itself; ``parts``: its submodules, parameters and buffers."""

    def __init__(self, function: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.function = function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self, *arguments)


def run(program: Program, backend: str = "", options: Mapping[str, Any] | None = None, steps: int = 2) -> Seen:
    """Train for ``steps`` steps, in eager mode without a ``backend``; gradients accumulate over the steps."""
    forget()
    torch.manual_seed(2)
    forward, arguments = program.make()
    step = torch.compile(forward, backend=backend, options=options, **program.compile) if backend else forward
    seen: Seen = {}
    with torch._dynamo.config.patch(**program.dynamo):
        for i in range(steps):
            torch.manual_seed(3 + i)
            seen |= {f"step {i}: {name}": tensor for name, tensor in _train(step, arguments)}
    if isinstance(forward, nn.Module):
        seen |= {f"gradient of {name}": _gradient(p) for name, p in forward.named_parameters()}
        seen |= {f"{name} afterwards": t.detach().clone() for name, t in forward.state_dict().items()}
    return seen


def forget() -> None:
    """Discard all compilations, plans and warnings."""
    torch._dynamo.reset()
    rematpass.plans(clear=True)


def afresh() -> Iterator[None]:
    """A fixture for test modules that compile: no state of other tests, and no cache that hides the planner."""
    forget()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield
    forget()


def _train(step: Forward, arguments: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """One step on copies of the arguments."""
    given = copy.deepcopy(arguments)
    outputs = [o for o in pytree.tree_leaves(step(*given)) if _is_tensor(o)]
    yield from ((f"output {n}", o.detach().clone()) for n, o in enumerate(outputs))
    yield "which outputs need gradients", torch.tensor([o.requires_grad for o in outputs])
    yield "who shares bytes", _sharing([*outputs, *given])
    torch.autograd.backward([_loss(o) for o in outputs if o.requires_grad])
    for n, a in enumerate(given):
        if _is_tensor(a):
            yield f"argument {n} afterwards", a.detach().clone()
            yield f"gradient of argument {n}", _gradient(a)
    yield "random state", torch.get_rng_state()


def _is_tensor(argument: Any) -> bool:
    return isinstance(argument, torch.Tensor)


def _loss(output: torch.Tensor) -> torch.Tensor:
    """A sum with a different weight for each element."""
    real = torch.view_as_real(output) if output.is_complex() else output
    return (real * torch.linspace(-1, 1, real.numel(), dtype=real.dtype).view(real.shape)).sum()


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    return torch.tensor(float("nan")) if tensor.grad is None else tensor.grad.detach().clone()


def _sharing(tensors: Sequence[Any]) -> torch.Tensor:
    """For each pair of tensors, whether they share storage."""
    keys = [_torch.storage_key(t) if _is_tensor(t) and t.numel() else None for t in tensors]
    return torch.tensor([[a == b is not None for b in keys] for a in keys])


@functools.cache
def reference(name: str) -> Seen:
    """The right results of a program."""
    return run(PROGRAMS[name], PROGRAMS[name].reference)


def captured(forward: Forward, *arguments: Any, **compile: Any) -> Captured:
    """The joint graph from which training ``forward`` is planned; the first if there are several."""
    return all_captured(forward, *arguments, **compile)[0]


def all_captured(forward: Forward, *arguments: Any, **compile: Any) -> list[Captured]:
    """All joint graphs; those of regions that are compiled once come before the graph that calls them."""
    found: list[Captured] = []

    def partition(joint: Any, inputs: Any, *, num_fwd_outputs: int, **more: Any) -> Any:
        ours = copy.deepcopy(joint)  # the passes change it
        rewrite_joint(ours)
        static = more["static_lifetime_input_indices"]
        found.append(capture(ours, num_fwd_outputs=num_fwd_outputs, static_input_indices=static))
        return _torch.default_partition(joint, inputs, num_fwd_outputs=num_fwd_outputs, **more)

    backend = _torch.aot_autograd(
        fw_compiler=_torch.boxed_nop, partition_fn=partition, keep_inference_input_mutations=True
    )
    torch.compile(forward, backend=backend, **compile)(*arguments)
    return found


def emitted(found: Captured, plan: Plan) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and the backward module of ``plan``, as the backend without a fusing compiler runs them."""
    modules = emit(found, plan)
    rewrite_step(*modules, step_facts(found), fuse=False)
    return modules


def differences(seen: Seen, expected: Seen, tolerance: float = 0.0) -> list[str]:
    """The names of the results that differ: in any bit, or by more than ``tolerance`` times the largest element."""
    assert seen.keys() == expected.keys()
    return [name for name in expected if not _same(seen[name], expected[name], tolerance)]


def _same(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    if not tolerance or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())
    scale = max(1.0, float(other.nan_to_num().abs().max())) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=0, atol=tolerance * scale, equal_nan=True)


def _randn(*shape: int, grad: bool = False) -> torch.Tensor:
    return torch.randn(*shape).requires_grad_(grad)


# ---- plain programs


@program()
def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 7), nn.LayerNorm(7), nn.Tanh()), [_randn(11, 3)]


@program()
def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True)
    return nn.TransformerEncoder(layer, 2), [_randn(3, 5, 8, grad=True)]


@program()
def convolution_and_batch_norm():
    parts = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
    return nn.Sequential(*parts, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()), [_randn(3, 2, 8, 8)]


@program()
def embedding_tied_to_the_head():
    def forward(m, tokens):
        h = m.norm(m.embed(tokens)) + m.positions
        logits = m.head(torch.tanh(m.mix(h)))
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten().roll(-1))

    embed, head = nn.Embedding(13, 8), nn.Linear(8, 13, bias=False)
    head.weight = embed.weight
    parts = {"embed": embed, "mix": nn.Linear(8, 8), "head": head, "norm": nn.LayerNorm(8)}
    return Model(forward, positions=nn.Parameter(_randn(5, 8)), **parts), [torch.randint(13, (3, 5))]


@program()
def a_module_used_twice():
    def forward(m, x):
        return m.block(torch.sin(m.block(x)))

    return Model(forward, block=nn.Sequential(nn.Linear(5, 5), nn.GELU())), [_randn(3, 5)]


@program()
def inputs_that_need_gradients():
    return (lambda x, y, z: torch.tanh(x @ y) * z.exp()), [_randn(3, 5, grad=True), _randn(5, 7, grad=True), _randn(7)]


@program()
def several_outputs_and_losses():
    def forward(m, x):
        h = m.first(x)
        a = torch.tanh(h)
        return {"one": m.second(a), "two": [a.exp(), h.detach()], "count": (h > 0).sum(), "none": None, "int": 7}

    return Model(forward, first=nn.Linear(3, 5), second=nn.Linear(5, 2)), [_randn(7, 3)]


# ---- random numbers


@program()
def dropout():
    def forward(m, x):
        h = F.dropout(torch.tanh(m.first(x)), 0.5)
        h = F.alpha_dropout(m.second(h), 0.3, training=True)
        return F.dropout1d(h.exp().t(), 0.4).t()

    return Model(forward, first=nn.Linear(3, 5), second=nn.Linear(5, 7)), [_randn(11, 3)]


@program()
def attention_dropout():
    def forward(m, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.project(x).chunk(3, -1))
        weights = F.dropout(torch.softmax(q @ k.transpose(-1, -2), -1), 0.3)
        return m.out(F.scaled_dot_product_attention(weights @ v, k, v, dropout_p=0.3).transpose(1, 2).flatten(2))

    return Model(forward, project=nn.Linear(8, 24), out=nn.Linear(8, 8)), [_randn(2, 5, 8)]


@program()
def attention_without_dropout():
    def forward(m, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.project(x).chunk(3, -1))
        return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

    return Model(forward, project=nn.Linear(8, 24), out=nn.Linear(8, 8)), [_randn(2, 5, 8)]


@program()
def noise_of_every_sort():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        h = h * torch.rand_like(h) + torch.randn(h.shape) + torch.randint(3, h.shape) + torch.empty_like(h).normal_()
        h = torch.bernoulli(torch.sigmoid(h)) * h.exp()
        return F.rrelu(h * torch.randperm(5), training=True)

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


# ---- mutations


@program()
def a_buffer_read_and_then_updated():
    def forward(m, x):
        k = torch.sin(m.buffer.expand(3, 5))
        y = torch.sin(x * k)
        with torch.no_grad():
            m.buffer.add_(1)
        return y

    return Model(forward, buffer=torch.full((5,), 0.3)), [_randn(3, 5, grad=True)]


@program()
def a_buffer_read_before_between_and_after_updates():
    def forward(m, x):
        a = torch.tanh(m.layer(x)) * torch.sin(m.buffer)
        with torch.no_grad():
            m.buffer.mul_(0.9).add_(a.detach().mean(0))
        b = torch.cos(a * torch.sin(m.buffer))
        with torch.no_grad():
            m.buffer.copy_(b.detach().sum(0))
        return torch.sin(b * m.buffer) + m.buffer

    return Model(forward, layer=nn.Linear(3, 5), buffer=torch.full((5,), 0.3)), [_randn(7, 3)]


@program()
def an_argument_changed_before_and_after_use():
    def forward(m, x, y):
        x.mul_(2)
        h = torch.tanh(m.layer(torch.sin(x))) * torch.sin(y)
        x.add_(h.detach().sum())
        y.copy_(h.detach())
        return h.exp() * y

    return Model(forward, layer=nn.Linear(5, 5)), [_randn(3, 5), _randn(3, 5)]


@program()
def an_argument_changed_through_a_view():
    def forward(m, x):
        h = torch.sin(x) * m.weight
        x[1:].t()[0].mul_(3)
        return torch.cos(h) * x

    return Model(forward, weight=nn.Parameter(_randn(5))), [_randn(3, 5)]


@program()
def intermediates_changed_in_place():
    def forward(m, x):
        a = torch.tanh(m.first(x))
        h = m.second(a).mul_(2).add_(1)
        h[:, 1:3].sub_(torch.sigmoid(a)[:, 1:3])
        h.t()[0].add_(1)
        h[0] = a[1]
        h += a.sin().masked_fill_(a > 0, 0.5)
        return torch.sin(h).relu_()

    return Model(forward, first=nn.Linear(3, 5), second=nn.Linear(5, 5)), [_randn(7, 3)]


@program()
def parameters_changed_before_use():
    def forward(m, tokens):
        with torch.no_grad():
            m.scale.clamp_(0.2, 0.8)
        return torch.tanh(m.layer(m.embed(tokens)) * m.scale).exp()

    embed = nn.Embedding(7, 3, max_norm=0.5)
    return Model(forward, embed=embed, layer=nn.Linear(3, 5), scale=nn.Parameter(_randn(5))), [torch.randint(7, (4, 2))]


@program()
def a_changed_argument_handed_back():
    def forward(m, x, y):
        h = torch.tanh(m.layer(torch.sin(x)))
        x.mul_(3)
        y[1:] = h.detach()[1:]
        return h * torch.cos(x), x, x[0], y, y.t()

    return Model(forward, layer=nn.Linear(5, 5)), [_randn(3, 5), _randn(3, 5)]


@program()
def batch_norm_used_twice():
    def forward(m, x):
        return m.norm(torch.tanh(m.norm(m.layer(x))) * 3)

    return Model(forward, layer=nn.Linear(3, 5), norm=nn.BatchNorm1d(5)), [_randn(11, 3)]


@program()
def spectral_norm():
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
    return nn.Sequential(layer, nn.GELU(), nn.utils.parametrizations.weight_norm(nn.Linear(5, 3))), [_randn(7, 5)]


@program()
def a_codebook_with_moving_averages():
    def forward(m, x):
        h = m.layer(x)
        code = torch.cdist(h, m.codes).argmin(-1)
        chosen = m.codes[code]
        with torch.no_grad():
            hot = F.one_hot(code, 4).float()
            m.count.lerp_(hot.sum(0), 0.1)
            m.codes.lerp_(hot.t() @ h / (m.count[:, None] + 1), 0.1)
        return h + (chosen - h).detach(), F.mse_loss(torch.tanh(h), chosen)

    return Model(forward, layer=nn.Linear(3, 5), codes=_randn(4, 5), count=torch.ones(4)), [_randn(7, 3)]


# ---- views


@program()
def views_of_all_sorts():
    def forward(m, x):
        h = m.layer(x)
        a, b, c = torch.sin(h).chunk(3, 1)
        first, *_, last = torch.cos(h).unbind(1)
        p, q = torch.split(torch.exp(h), [2, 4], 1)
        wide = torch.tanh(first)[:, None].expand(-1, 4) * q
        windows = torch.sigmoid(h).unfold(1, 4, 2).sum(-1)
        strided = torch.atan(h).as_strided((7, 3), (6, 2), 1)
        diagonal = torch.diagonal(h.exp()).sum()
        parts = (
            a @ b.t() @ c,
            wide * last[:, None],
            p.flip(1).reshape(-1, 7),
            windows,
            strided.T,
            h.view(3, 14).narrow(1, 2, 5),
        )
        return sum(part.sin().sum() for part in parts) * diagonal, strided, p

    return Model(forward, layer=nn.Linear(3, 6)), [_randn(7, 3)]


@program()
def outputs_that_are_views():
    def forward(m, x, y):
        h = torch.tanh(m.layer(x))
        return h, h.t(), h[1:], x, x.view(-1), y.expand(3, 5), y.t(), m.layer.weight, m.layer.weight[0], h

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3), _randn(5, grad=True)]


@program(compile={})
def arguments_that_share_bytes():
    def inner(weight, x, y):
        h = torch.tanh(torch.sin(x) @ weight)
        y.mul_(2)
        return h.exp() * x.sum() * y.sum()

    @torch.compiler.disable(recursive=False)  # the views are made outside of the graph
    def forward(m, base):
        return inner(m.weight, base[:6].view(2, 3), base.view(3, 4)[1:])

    return Model(forward, weight=nn.Parameter(_randn(3, 5))), [_randn(12)]


@program()
def strided_arguments():
    def forward(x, y, z):
        return torch.tanh(x * y).sum(1) @ z.exp()

    x = _randn(5, 3).t().requires_grad_()
    return forward, [x, _randn(2, 3, 5)[:, :, ::2].repeat(1, 1, 2)[0, :, :5].requires_grad_(), _randn(3)]


@program()
def channels_last():
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 2, 1), nn.Upsample(scale_factor=2)
    )
    return model.to(memory_format=torch.channels_last), [_randn(2, 2, 5, 5).to(memory_format=torch.channels_last)]


# ---- activation checkpointing


@program()
def checkpoint_regions():
    def forward(m, x):
        for layer in m.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    layers = [nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)) for _ in range(3)]
    return Model(forward, layers=nn.ModuleList(layers)), [_randn(3, 5)]


@program()
def two_checkpoint_regions_that_begin_alike():
    """Their common subexpressions are merged; the second region reads a view of a value that the first recomputes."""

    def forward(m, x):
        def region(t, weight):
            return (t.sin().unsqueeze(0) * weight).exp()

        h = m.layer(x)
        one, other = (checkpoint(region, h * 1.0, w, use_reentrant=False) for w in (m.first, m.second))
        return one.sum() + other.cos().sum()

    return Model(forward, layer=nn.Linear(3, 5), first=_randn(2, 1, 5), second=_randn(3, 1, 5)), [_randn(7, 3)]


@program()
def checkpoint_region_with_dropout():
    def forward(m, x):
        for layer in m.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x

    layers = [nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(0.4), nn.Linear(7, 5)) for _ in range(2)]
    return Model(forward, layers=nn.ModuleList(layers)), [_randn(3, 5)]


@program(reference="aot_eager")  # eager mode runs the region twice and so updates the statistics twice
def checkpoint_region_that_changes_a_buffer():
    def forward(m, x):
        return checkpoint(m.block, torch.sin(x), use_reentrant=False).exp()

    block = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=0.3), nn.Tanh())
    return Model(forward, block=block), [_randn(7, 3, grad=True)]


def selective(policy: CheckpointPolicy, ops: Sequence[Any]) -> Any:
    """A ``context_fn`` with the given policy for ``ops``, and PREFER_RECOMPUTE for all others."""

    def choose(_: Any, op: Any, *__: Any, **___: Any) -> CheckpointPolicy:
        return policy if op in ops else CheckpointPolicy.PREFER_RECOMPUTE

    return functools.partial(create_selective_checkpoint_contexts, choose)


@program()
def selective_checkpoint_that_saves():
    context = selective(CheckpointPolicy.MUST_SAVE, [torch.ops.aten.mm.default, torch.ops.aten.addmm.default])

    def forward(m, x):
        return checkpoint(m.block, x, use_reentrant=False, context_fn=context)

    block = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh())
    return Model(forward, block=block), [_randn(3, 5)]


@program()
def selective_checkpoint_that_recomputes():
    context = selective(CheckpointPolicy.MUST_RECOMPUTE, [torch.ops.aten.mm.default, torch.ops.aten.addmm.default])

    def forward(m, x):
        return checkpoint(m.block, x, use_reentrant=False, context_fn=context)

    block = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh())
    return Model(forward, block=block), [_randn(3, 5)]


# ---- features of autograd and Dynamo


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        gate = torch.sigmoid(x)
        ctx.save_for_backward(x, gate)
        ctx.scale = scale
        return x * gate * scale, gate

    @staticmethod
    def backward(ctx, grad, of_gate):
        x, gate = ctx.saved_tensors
        return grad * ctx.scale * (gate + x * gate * (1 - gate)) + of_gate * gate * (1 - gate), None


@program()
def an_autograd_function():
    def forward(m, x):
        y, gate = Swish.apply(m.layer(x), 3.0)
        return torch.tanh(y) * gate

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


class CountsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, count, seen):
        ctx.save_for_backward(x)
        ctx.count, ctx.seen = count, seen
        return torch.tanh(x) * count

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        ctx.seen.copy_(grad.abs().amax(0))
        ctx.count.add_(1)
        return grad * (1 - torch.tanh(x) ** 2) * ctx.count, None, None


@program()
def buffers_updated_in_backward():
    def forward(m, x):
        return CountsBackwards.apply(m.layer(x), m.count, m.seen).exp()

    return Model(forward, layer=nn.Linear(3, 5), count=torch.tensor(2.0), seen=torch.zeros(5)), [_randn(7, 3)]


@program()
def parts_without_gradient():
    def forward(m, x):
        h = m.layer(x)
        with torch.no_grad():
            target = torch.softmax(m.teacher(h.tanh()), -1)
        with torch.enable_grad():
            return F.kl_div(F.log_softmax(h.exp(), -1), target, reduction="batchmean") + (h.detach() * h.sin()).sum()

    teacher = nn.Linear(5, 5).requires_grad_(False)
    return Model(forward, layer=nn.Linear(3, 5), teacher=teacher), [_randn(7, 3)]


@program()
def autocast_to_bfloat16():
    def forward(m, x):
        with torch.autocast("cpu", torch.bfloat16):
            return m.block(x).float()

    block = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 5), nn.Softmax(-1))
    return Model(forward, block=block), [_randn(3, 5)]


@program()
def integers_and_booleans():
    def forward(m, x, index):
        h = torch.tanh(m.layer(x))
        best, order = h.topk(3, 1)
        mask = (h > 0) & (index % 2 == 0)[:, None]
        table = torch.zeros(7, 5).index_put((index,), h, accumulate=True).cumsum(0)
        sparse = table.scatter_add(1, order, best.exp())
        return torch.where(mask, sparse[index], h.sort(1).values).gather(1, order), index * 2, mask, h.argmax(1)

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3), torch.randint(7, (7,))]


@program()
def complex_numbers():
    def forward(m, x):
        z = torch.fft.rfft(m.layer(x)) * m.filter
        z = z * z.conj() + torch.view_as_complex(torch.view_as_real(z).tanh())
        return torch.fft.irfft(z, 8), z, z.abs()

    return Model(forward, layer=nn.Linear(3, 8), filter=nn.Parameter(torch.randn(5, dtype=torch.complex64))), [
        _randn(7, 3)
    ]


@program()
def empty_tensors():
    def forward(m, x, none):
        h = torch.tanh(m.layer(x))
        rest = torch.sin(h[7:]) * none
        return torch.cat([h.exp(), rest.cos()]), rest, rest.sum() + h.sum()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3), _randn(0, 5, grad=True)]


@torch.library.custom_op("rematpass_tests::cube", mutates_args=())
def cube(x: torch.Tensor) -> torch.Tensor:
    return x**3


@cube.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def _cube_backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
    return grad * 3 * ctx.saved_tensors[0] ** 2


cube.register_autograd(_cube_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


@torch.library.custom_op("rematpass_tests::count", mutates_args={"counter"})
def count(x: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    counter += 1
    return x * counter


@count.register_fake
def _(x: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@program()
def custom_ops():
    def forward(m, x):
        h = cube(torch.tanh(m.layer(x)))
        with torch.no_grad():
            scale = count(h.detach(), m.counter)
        return cube(h.exp()) * scale * m.counter

    return Model(forward, layer=nn.Linear(3, 5), counter=torch.tensor(2.0)), [_randn(7, 3)]


@program()
def a_branch_on_data():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        h = torch.cond(h.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos(), (h,))
        return torch.exp(h)

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program(compile={})
def two_graphs():
    def forward(m, x):
        h = torch.tanh(m.first(x)).exp()
        torch._dynamo.graph_break()
        return torch.tanh(m.second(h)).exp()

    return Model(forward, first=nn.Linear(3, 5), second=nn.Linear(5, 3)), [_randn(7, 3)]


@program()
def a_recurrent_cell():
    def forward(m, x):
        h = x.new_zeros(2, 5)
        for step in x:
            h = m.cell(step, h)
        return h

    return Model(forward, cell=nn.GRUCell(3, 5)), [_randn(3, 2, 3)]


@program()
def a_region_compiled_once():
    @torch.compiler.nested_compile_region
    def block(x, w):
        return torch.tanh(x @ w).exp()

    def forward(m, x):
        return block(block(x, m.weight).sin(), m.weight)

    return Model(forward, weight=nn.Parameter(_randn(5, 5))), [_randn(3, 5)]


@program()
def a_loop_over_time():
    def forward(m, x):
        def step(state, now):
            state = torch.tanh(state @ m.weight + now)
            return state, state.exp()

        state, all_of_them = scan(step, x.new_zeros(2, 5), torch.tanh(m.layer(x)).exp())
        return state, all_of_them.sin()

    return Model(forward, weight=nn.Parameter(_randn(5, 5)), layer=nn.Linear(3, 5)), [_randn(4, 2, 3)]


@program(compile={"dynamic": True})
def symbolic_sizes():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        return (h.view(h.shape[0] * 5) * x.shape[0]).sin().view(5, -1) @ torch.arange(h.shape[0]).float(), h.new_ones(
            h.shape[0]
        ) * h.sum()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program(dynamo={"capture_dynamic_output_shape_ops": True})
def a_size_that_depends_on_data():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        some = h[x.sum(1) > 0]
        return torch.sin(some.exp()).sum(0) * h.sum(0), some

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program(dynamo={"capture_dynamic_output_shape_ops": True})
def a_size_that_random_numbers_decide():
    """Backward could recompute the size from x, and forward's assertions read it; it must not be drawn again."""

    def forward(m, x):
        noisy = x * torch.empty_like(x).uniform_(-1, 1)
        some = noisy[noisy.sum(1) > 0]
        return m.layer(x).tanh().sum() + some.sin().sum()

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]


@program(dynamo={"capture_scalar_outputs": True})
def a_number_taken_from_a_tensor():
    def forward(m, x):
        h = torch.tanh(m.layer(x))
        return h.exp() * h.sum().item() + int(x.shape[0])

    return Model(forward, layer=nn.Linear(3, 5)), [_randn(7, 3)]
