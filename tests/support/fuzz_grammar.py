"""Random training programs: the kinds of statements, and the program of a seed.

Each kind is a function that asks the writer for tensors, sizes and parts, and returns a line of source text. The line
may be invalid: the writer accepts only lines that eager mode can run (``fuzz_writer``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from support.fuzz_writer import Source, Writer


def _unary(w: Writer) -> str:
    a = w.tensor()
    f = w.one_of(
        "torch.tanh({})", "torch.sin({})", "torch.cos({})", "torch.sigmoid({})", "torch.exp({}.clamp(-2, 2))",
        "torch.relu({})", "F.gelu({})", "F.silu({})", "F.softplus({})", "{}.abs()", "{} ** 2",
        "F.leaky_relu({}, 0.2)",
        "F.elu({})", "F.hardswish({})", "torch.erf({})", "torch.log1p({}.abs())", "({}.abs() + 0.5).rsqrt()",
        "F.mish({})", "torch.atan({})", "{} * 0.7 + 1", "1 - {}", "{}.sign() * 2", "{}.round()",
    )  # fmt: skip
    return f"{w.fresh()} = {f.format(a)}"


def _binary(w: Writer) -> str:
    a, b = w.tensor(), w.tensor()
    f = w.one_of(
        "{a} + {b}", "{a} - {b}", "{a} * {b}", "{a} / ({b}.abs() + 1)", "torch.maximum({a}, {b})",
        "{a} * {a}.shape[0]",
        "torch.where({a} > {b}, {a}, {b} * 2)", "torch.lerp({a}, {b}, 0.3)", "torch.atan2({a}, {b}.abs() + 1)",
        "torch.addcmul({a}, {b}, {b})", "F.mse_loss({a}, {b})", "{a}.masked_fill({b} > 0, 0.5)",
        "torch.hypot({a}, {b} + 9)",
    )  # fmt: skip
    return f"{w.fresh()} = {f.format(a=a, b=b)}"


def _reduce(w: Writer) -> str:
    a = w.tensor()
    f = "sum mean amax amin logsumexp softmax log_softmax cumsum norm var std prod cummax max median argmax".split()
    f = w.random.choice(f)
    d = w.dim(a)
    more = w.one_of("", ", keepdim=True") if f not in ("softmax", "log_softmax", "cumsum", "cummax") else ""
    if f == "argmax":
        return f"{w.fresh()} = F.one_hot({a}.argmax({d}), 7).float()"
    if f == "norm":
        return f"{w.fresh()} = ({a} + 3).norm(dim={d}{more})"
    return f"{w.fresh()} = {a}.{f}({d}{more})" + (".values" if f in ("cummax", "max", "median") else "")


def _matmul(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() >= 1)
    inner = w.shape(a)[-1]
    others = w.tensors(lambda t: t.dim() == 2 and inner in t.shape)
    if others and w.random.random() < 0.5:
        b = w.random.choice(others)
        return f"{w.fresh()} = {a} @ {b if w.shape(b)[0] == inner else b + '.t()'} * 0.3"
    if w.random.random() < 0.2:
        return f"{w.fresh()} = torch.einsum('...i,...j->...ij', {a}, {a})"
    return f"{w.fresh()} = {a} @ {w.part(f'nn.Parameter(_randn({inner}, {w.size()}))')}"


def _layer(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() >= 1)
    n = w.shape(a)[-1]
    layer = w.one_of(
        f"nn.Linear({n}, {w.size()})", f"nn.Linear({n}, {w.size()}, bias=False)", f"nn.LayerNorm({n})",
        f"nn.RMSNorm({n})", f"nn.BatchNorm1d({n})", f"nn.BatchNorm1d({n}, momentum=0.4)", "nn.PReLU()",
        f"nn.Sequential(nn.Linear({n}, 5), nn.GELU(), nn.Dropout(0.3), nn.Linear(5, {n}))",
        f"nn.TransformerEncoderLayer({n}, 1, 5, dropout=0.2, batch_first=True)",
        f"nn.GRUCell({n}, {w.size()})",
        f"nn.Bilinear({n}, {n}, 3)", f"nn.Sequential(nn.Linear({n}, {n}), nn.Hardtanh(inplace=True))",
        "nn.InstanceNorm1d(3)",
        f"nn.utils.parametrizations.weight_norm(nn.Linear({n}, 3))", f"nn.Embedding({n}, 5, max_norm=1.0)",
    )  # fmt: skip
    if "Bilinear" in layer:
        return f"{w.fresh()} = {w.part(layer)}({a}, {a}) * 0.3"
    if "Embedding" in layer:
        return f"{w.fresh()} = {w.part(layer)}({a}.argmax(-1))"
    if "BatchNorm" in layer and w.random.random() < 0.3 and len(w.shape(a)) == 3:
        return f"{w.fresh()} = {w.part(f'nn.BatchNorm1d({w.shape(a)[1]})')}({a})"
    return f"{w.fresh()} = {w.part(layer)}({a})"


def _convolution(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() in (3, 4))
    shape = w.shape(a)
    kind = "Conv1d" if len(shape) == 3 else "Conv2d"
    layer = w.one_of(
        f"nn.{kind}({shape[1]}, 3, 2)",
        f"nn.{kind}({shape[1]}, 4, 3, padding=1)",
        f"nn.MaxPool{kind[-2:]}(2)",
        f"nn.AvgPool{kind[-2:]}(2)",
        f"nn.GroupNorm(1, {shape[1]})",
    )
    return f"{w.fresh()} = {w.part(layer)}({a})"


def _again(w: Writer) -> str:
    """Use an existing part again: shared weights, modules called twice."""
    a = w.tensor(lambda t: t.dim() >= 1)
    modules = w.parts_of("nn.")
    if w.random.random() < 0.5:
        linear = w.random.choice(w.parts_of("nn.Linear"))
        return f"{w.fresh()} = " + w.one_of(
            f"F.linear({a}, {linear}.weight)", f"{a} @ {linear}.weight", f"{linear}.weight.t() * 2"
        )
    module = w.random.choice([m for m in modules if not w.parts[m[2:]].startswith("nn.Parameter")])
    return f"{w.fresh()} = {module}({a})"


def _view(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() >= 1)
    shape, d = w.shape(a), w.dim(a)
    total = w.scope[a].numel()
    halves = [n for n in range(2, 8) if total % n == 0]
    f = w.one_of(
        ".t()", f".transpose({d}, {w.dim(a)})", f".chunk(2, {d})[{w.one_of(0, -1)}]", f".unbind({d})[-1]",
        ".flatten()",
        f".view(-1, {w.random.choice(halves or [1])})", f".reshape({w.random.choice(halves or [1])}, -1)",
        f".unsqueeze({d})",
        f".unsqueeze({d}).expand({', '.join(['-1'] * (len(shape) + 1))})", f".narrow({d}, 0, {max(1, shape[d] - 1)})",
        f".select({d}, 1)", f".unfold({d}, 2, 1)", ".diagonal()", f".flip({d})", ".squeeze()", "[1:]", "[..., :-1]",
        "[::2]",
        ".contiguous()", ".clone()", ".detach()", ".movedim(0, -1)", f".split(2, {d})[0]", "[None]", ".mT",
        f".as_strided((2, {total // 2}), ({total // 2}, 1))", f".expand(3, *{shape})", ".view_as({})",
        f".roll(1, {d})", ".unflatten(0, (-1, 1))", f".tensor_split(2, {d})[1]", ".swapaxes(0, 1)", ".ravel()",
        ".repeat(2, 1)",
    )  # fmt: skip
    return f"{w.fresh()} = {a}{f.format(a)}"


def _join(w: Writer) -> str:
    a = w.tensor()
    same = w.tensors(lambda t: t.shape == w.scope[a].shape)
    b = w.random.choice(same)
    d = w.dim(a)
    return f"{w.fresh()} = " + w.one_of(
        f"torch.cat([{a}, {b}], {d})",
        f"torch.stack([{a}, {b}, {a}])",
        f"torch.cat([{a}[1:], {b}])",
        f"torch.block_diag({a}, {b})",
    )


def _index(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() >= 1)
    n, d = w.shape(a)[0], w.dim(a)
    index = f"(index % {n})"
    f = w.one_of(
        f"{a}[{index}]", f"{a}.index_select(0, {index})", f"{a}.topk(2, {d})[0]", f"{a}.sort({d})[0]",
        f"{a}.gather({d}, {a}.argsort({d}))", f"{a}.index_add(0, {index}, {a}[{index}])", f"F.pad({a}, (1, 2))",
        f"{a}.index_put(({index},), {a}[{index}] * 2, accumulate=True)",
        f"{a}.take_along_dim({a}.argmax({d}, keepdim=True), {d})",
        f"torch.zeros_like({a}).scatter_add({d}, {a}.argsort({d}), {a})", f"torch.tril({a})",
        f"{a}.scatter({d}, {a}.argsort({d}), 0.5)",
        f"{a}.cumsum(0)[{index}]", f"torch.where(index[:{n}, None] > 2, {a}, 0.0)", f"F.embedding(index, {a})",
        f"{a}[{a}.sum() > 0]", f"torch.bucketize({a}, torch.arange(3.0)).float() * {a}",
    )  # fmt: skip
    return f"{w.fresh()} = {f}"


def _random(w: Writer) -> str:
    a = w.tensor()
    f = w.one_of(
        "F.dropout({}, 0.4)", "F.dropout({}, 0.2)", "{} * torch.rand_like({})", "{} + torch.randn({}.shape)",
        "torch.bernoulli(torch.sigmoid({})) * {}", "F.alpha_dropout({}, 0.3, training=True)", "F.dropout1d({}, 0.4)",
        "F.gumbel_softmax({}, 0.7, hard=True)", "F.rrelu({}, training=True)",
        "{} * torch.empty_like({}).uniform_(0.5, 1)",
        "{} + torch.normal({}.detach(), 1.0)", "{}[torch.randperm({}.shape[0])]",
        "F.feature_alpha_dropout({}, 0.3, training=True)",
        "{} * torch.randint(3, {}.shape)", "torch.dropout(torch.tanh({}), 0.5, True)",
        "F.dropout({}.clone(), 0.3, inplace=True)",
        "{} + torch.empty_like({}).exponential_()",
    )  # fmt: skip
    return f"{w.fresh()} = {f.format(*[a] * f.count('{}'))}"


def _attention(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() in (2, 3))
    p, causal = w.one_of(0.0, 0.3), w.one_of(True, False)
    q = f"{a}[None, None]" if len(w.shape(a)) == 2 else f"{a}[None]"
    arguments = f"{q}, {q} * 2, torch.sin({q}), dropout_p={p}, is_causal={causal}"
    return f"{w.fresh()} = F.scaled_dot_product_attention({arguments})[0]"


def _in_place(w: Writer) -> str:
    a, b = w.tensor(), w.tensor()
    f = w.one_of(
        "{a}.mul_(2)", "{a}.add_({b})", "{a}[0] = 0.5", "{a}[1:].sub_(0.3)", "{a}.t()[0].add_(1)", "{a}.relu_()",
        "{a} += {b}",
        "{a}.masked_fill_({a} > 0, 0.5)", "{a}.sigmoid_()", "{a}.copy_({b})", "{a}.zero_()",
        "{a}[..., 0] = {b}.sum()",
        "{a}.select(0, 1).mul_(3)", "{a}.view(-1)[1:].tanh_()", "{a}.addcmul_({b}, {b})",
        "{a}[index[:1] % {a}.shape[0]] = 1.5",
        "{a}.index_add_(0, index % {a}.shape[0], {a}.detach()[index % {a}.shape[0]].clone())", "{a}.clamp_(-1, 1)",
        "{a}.diagonal().fill_(0.2)", "{a}.unbind()[0].exp_()", "F.dropout({a}, 0.3, inplace=True)",
        "{a}.detach().add_(0.1)",
        "{a}.lerp_({b}, 0.3)", "{a}[{a} > 0.5] = 0.1", "{a}.transpose(0, -1)[0].neg_()", "{a}.mT[0] *= {b}.mean()",
        "{a}.fill_(0.3)",
    )  # fmt: skip
    return f.format(a=a, b=b)


def _buffer_read(w: Writer) -> str:
    a = w.tensor(lambda t: t.dim() >= 1)
    n = w.shape(a)[-1]
    buffers = [b for b in w.parts_of("torch.randn") if w.scope["m"].get_buffer(b[2:]).shape == (n,)]
    b = w.random.choice(buffers) if buffers and w.random.random() < 0.7 else w.part(f"torch.randn({n})")
    f = w.one_of(
        "torch.sin({b}) * {a}",
        "{a} + {b}",
        "torch.sin({a} * {b})",
        "{b} * 2",
        "{b}[1:].exp() * {a}[..., 1:]",
        "{b}.tanh()",
    )
    return f"{w.fresh()} = {f.format(a=a, b=b)}"


def _buffer_write(w: Writer) -> str:
    b, a = w.random.choice(w.parts_of("torch.randn")), w.tensor()
    f = w.one_of(
        "{b}.add_(1)", "{b}.mul_(0.9).add_({a}.detach().mean())", "{b}.copy_({a}.detach().flatten(0, -2).mean(0))",
        "{b}.zero_()",
        "{b}[1:].mul_(0.5)", "{b}.lerp_({a}.mean(), 0.1)", "{b} += 0.5", "{b}.clamp_(-0.5, 0.5)",
        "{b}[0] = {a}.mean()",
    )  # fmt: skip
    return f"with torch.no_grad():\n    {f.format(a=a, b=b)}"


def _argument_write(w: Writer) -> str:
    x, a = w.random.choice([n for n in w.arguments if n != "index"]), w.tensor()
    f = w.one_of(
        "{x}.mul_(2)",
        "{x}.add_({a}.detach().mean())",
        "{x}[1:].sub_(0.3)",
        "{x}.t()[0].copy_({a}.detach().mean())",
        "{x}.sin_()",
    )
    return f"with torch.no_grad():\n    {f.format(x=x, a=a)}"


def _region(w: Writer) -> str:
    """A checkpoint region, with a copy as argument: backward reads it again, when it may be overwritten."""
    a = w.tensor(lambda t: t.dim() >= 1)
    n = w.shape(a)[-1]
    layer = w.part(f"nn.Linear({n}, {w.size()})")
    body = w.one_of(
        "torch.tanh({layer}(t)).exp()", "F.dropout(F.gelu({layer}(t)), 0.4)",
        "{layer}(F.dropout(t.sin(), 0.3)).sigmoid()",
        "F.layer_norm({layer}(t), ({layer}(t).shape[-1],))", "{layer}(t).topk(2)[0] * t.sum()",
        "(t.cos().t() @ {layer}(t))",
        "torch.where({layer}(t) > 0, {layer}(t), t.sum())", "{layer}(t).mul_(2).tanh_().exp()",
        "cube({layer}(t).tanh())",
        "{layer}(checkpoint(lambda s: F.dropout(s.tanh(), 0.2), t, use_reentrant=False)).sin()",
        "torch.rand_like(t) * t.sin()",
    ).format(layer=layer)  # fmt: skip
    policy = w.one_of("", "", "MUST_SAVE", "MUST_RECOMPUTE", "PREFER_SAVE")
    ops = "[torch.ops.aten.mm.default, torch.ops.aten.addmm.default]"
    context = f", context_fn=selective(CheckpointPolicy.{policy}, {ops})"
    return f"{w.fresh()} = checkpoint(lambda t: {body}, {a} * 1.0, use_reentrant=False{context if policy else ''})"


def _feature(w: Writer) -> str:
    """Features of autograd, Dynamo and torch.library."""
    a = w.tensor()
    cpu = "torch.autocast('cpu', torch.bfloat16)"
    f = w.one_of(
        "cube(torch.tanh({a}))", "Swish.apply({a}, 3.0)[0]", "Swish.apply({a}, 2.0)[1]",
        "torch.view_as_real(torch.fft.fft({a})).flatten(-2)",
        "{a}.to(torch.bfloat16).sin().float()", "{a}.double().exp().float().clamp(-9, 9)",
        "{a} * {a}.detach().sum().item()",
        "torch.cond({a}.sum() > 0, lambda t: t.sin() * 2, lambda t: t.cos(), ({a}.clone(),))",
        "{a} * ({a} > 0) + ({a} < 0).float()",
        "{a}.half().float() * {a}", "torch.complex({a}, {a}.sin()).abs()", "{a}.new_zeros(0, 3).sum() + {a}",
        "torch.fft.irfft(torch.fft.rfft({a}))",
        "{a}.sum() * torch.ones(3, 5)", "{a}[:0].sum() + {a}.cos()", "torch.nan_to_num({a} / 0.0 * 0.0) + {a}",
        "{a}.square().cummax(0)[0]",
        "BREAK", "BREAK", "NO_GRAD", "AUTOCAST", "AUTOCAST",
    )  # fmt: skip
    if f == "BREAK":
        if not w.breaks:
            raise LookupError("this program is compiled as one graph")
        return "torch._dynamo.graph_break()"
    if f == "NO_GRAD":
        return f"with torch.no_grad():\n    {w.fresh()} = torch.softmax({a}, -1).exp()"
    if f == "AUTOCAST":
        n = w.shape(a)[-1]
        return f"with {cpu}:\n    {w.fresh()} = torch.tanh({w.part(f'nn.Linear({n}, {w.size()})')}({a})).float()"
    return f"{w.fresh()} = {f.format(a=a)}"


def _higher_order(w: Writer) -> str:
    """Regions compiled once, branches, effects, hooks, and data-dependent sizes."""
    a = w.tensor(lambda t: t.dim() >= 1)
    weights = w.tensors(lambda t: t.dim() == 2 and t.shape[0] == w.shape(a)[-1])
    f = w.one_of(
        "{new} = block_with_dropout({a}, {w})", "{new} = block_with_dropout({a}, {w})",
        "{new} = block_with_dropout(block_with_dropout({a}, {w}.T @ {w}).sin(), {w}.T @ {w}) @ {w}.T",
        "{new} = checkpoint(lambda t: block_with_dropout(t.sin(), {w}).exp(), {a} * 1.0, use_reentrant=False)",
        "{new} = torch.cond({a}.sum() > 0, lambda t: F.dropout(t.sin(), 0.3), lambda t: t.cos(), ({a}.clone(),))",
        "{new} = noted({a}) * 2", "{new} = torch.sin(noted({a})) + noted(torch.cos({a}))",
        "{new} = {a}[{a}.flatten(1).sum(-1) > 0].sin().sum(0)", "{a}.register_hook(lambda grad: grad * 2)",
        "{a}.register_hook(lambda grad: grad + {a}.detach().sin())",
    )  # fmt: skip
    if "{w}" in f:
        weight = w.random.choice(weights or [w.part(f"nn.Parameter(_randn({w.shape(a)[-1]}, {w.size()}))")])
    return f.format(new=w.fresh(), a=a, w=weight if "{w}" in f else "")


KINDS: list[tuple[Callable[[Writer], str], int]] = [
    (_unary, 12), (_binary, 10), (_reduce, 6), (_matmul, 6), (_layer, 8), (_convolution, 2), (_again, 3), (_view, 12),
    (_join, 3), (_index, 5), (_random, 6), (_attention, 2), (_in_place, 8), (_buffer_read, 4), (_buffer_write, 4),
    (_argument_write, 2), (_region, 5), (_higher_order, 4), (_feature, 6),
]  # fmt: skip


def _is_read(name: str, lines: Sequence[str]) -> bool:
    return any(re.search(rf"\b{name}\b(?! = )", line) for line in lines)


def write(seed: int) -> Source:
    """The program of a seed: valid in eager mode, with something to train."""
    w = Writer(seed)
    for n in range(w.random.randint(1, 3)):
        shape = ", ".join(str(w.size()) for _ in range(w.one_of(1, 2, 2, 2, 3)))
        w.arguments[f"x{n}"] = w.one_of(f"_randn({shape})", f"_randn({shape}, grad=True)")
    w.arguments["index"] = f"torch.randint(7, ({w.size()},))"
    w._restart()
    w.statement([(_matmul, 1), (_layer, 1)])
    for _ in range(w.random.randint(3, 16)):
        w.statement(KINDS)
    trained = w.tensors(lambda t: t.requires_grad)
    returns = [w.random.choice(trained[-3:])] if trained else ["m"]
    unread = [n for n in w.tensors() if n in w.names and not _is_read(n, w.lines)]
    returns += [" + ".join(f"{n}.sum()" for n in unread)] if unread else []  # torch does not run what is not read
    more = [*w.names, *w.arguments, *w.parts_of("torch.randn"), *(f"{n}.detach()" for n in w.names)]
    more += [f"{n}[None]" for n in w.names]
    returns += w.random.sample(more, min(len(more), w.random.randint(0, 2)))
    keywords = {} if w.breaks else {"fullgraph": True}
    if w.random.random() < 0.15:
        keywords["dynamic"] = True
    return Source(
        parts=tuple(w.parts.items()),
        arguments=tuple(w.arguments.items()),
        lines=tuple(w.lines),
        returns=tuple(returns),
        compile=tuple(keywords.items()),
    )
