"""The layers of ``fuzz_models``: what users train, small, and of any size.

Each class is built from the shape of its input and keywords. ``rows`` turns any input into ``(batch, length, width)``,
``image`` into ``(batch, channels, height, width)``, so any layer may follow any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Shape = Sequence[int]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
    "tanh": torch.tanh,
    "sin": torch.sin,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "squared_relu": lambda x: F.relu(x).square(),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "capped": lambda x: torch.tanh(x / 5) * 5,
}


def rows(x: Tensor) -> Tensor:
    if x.dim() == 4:
        return x.flatten(2).transpose(1, 2)
    return x if x.dim() == 3 else x[:, None]


def image(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else rows(x).transpose(1, 2)[..., None]


def width_of(shape: Shape) -> int:
    return shape[1] if len(shape) == 4 else shape[-1]


class Norm(nn.Module):
    """A norm over the width; ``kind``: "layer", "rms", "llama" (written out, in float32), "none"."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "layer":
            self.norm: nn.Module = nn.LayerNorm(width)
        elif kind == "rms":
            self.norm = nn.RMSNorm(width)
        elif kind == "llama":
            self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "none":
            return x
        if self.kind != "llama":
            return self.norm(x)
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Mlp(nn.Module):
    def __init__(
        self, shape: Shape, *, hidden: int, out: int, act: str, gated: bool, norm: str, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        width = width_of(shape)
        self.norm, self.act, self.gated, self.dropout = Norm(width, norm), ACTIVATIONS[act], gated, dropout
        self.up = nn.Linear(width, hidden * (1 + gated), bias=bias)
        self.down = nn.Linear(hidden, out or width, bias=bias)
        self.residual = not out

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        h = self.up(self.norm(x))
        if self.gated:
            gate, h = h.chunk(2, -1)
            h = self.act(gate) * h
        else:
            h = self.act(h)
        h = self.down(F.dropout(h, self.dropout) if self.dropout else h)
        return x + h if self.residual else h


class Pointwise(nn.Module):
    """Activations one after the other, without a product between."""

    def __init__(self, shape: Shape, *, acts: Sequence[str], residual: bool, dropout: float) -> None:
        super().__init__()
        self.acts, self.residual, self.dropout = [ACTIVATIONS[a] for a in acts], residual, dropout

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for act in self.acts:
            h = act(h)
        h = F.dropout(h, self.dropout) if self.dropout else h
        return x + h if self.residual else h


class Mixture(nn.Module):
    """A mixture of experts: all of them run, weighted by a router; ``top``: only the best ones count, 0 for all."""

    def __init__(self, shape: Shape, *, experts: int, hidden: int, top: int, act: str) -> None:
        super().__init__()
        width = width_of(shape)
        self.router, self.top, self.act = nn.Linear(width, experts, bias=False), top, ACTIVATIONS[act]
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        flat = x.flatten(0, 1)
        weights = torch.softmax(self.router(flat), -1)
        if self.top:
            best, index = weights.topk(self.top, -1)
            weights = torch.zeros_like(weights).scatter(-1, index, best / best.sum(-1, keepdim=True))
        h = self.act(torch.einsum("nd,edh->enh", flat, self.up))
        out = torch.einsum("enh,ehd->end", h, self.down) * weights.t()[..., None]
        return x + out.sum(0).view_as(x)


class TokenMix(nn.Module):
    """A linear map across positions, as in MLP-Mixer."""

    def __init__(self, shape: Shape, *, hidden: int, act: str) -> None:
        super().__init__()
        length = shape[2] * shape[3] if len(shape) == 4 else shape[1] if len(shape) == 3 else 1
        self.up, self.down, self.act = nn.Linear(length, hidden), nn.Linear(hidden, length), ACTIVATIONS[act]

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        return x + self.down(self.act(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Fourier(nn.Module):
    """Mixes by Fourier transforms: of positions and width as in FNet, or with learned complex weights as in an FNO."""

    def __init__(self, shape: Shape, *, learned: bool, act: str) -> None:
        super().__init__()
        width = width_of(shape)
        self.act, self.learned = ACTIVATIONS[act], learned
        if learned:
            self.weight = nn.Parameter(torch.randn(width, width, 2) / width)
            self.skip = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        wide = x.float()
        if not self.learned:
            return x + self.act(torch.fft.fft(torch.fft.fft(wide, dim=-1), dim=1).real.to(x.dtype))
        modes = torch.fft.rfft(wide, dim=1)
        modes = torch.einsum("btd,de->bte", modes, torch.view_as_complex(self.weight.float()))
        return self.act(torch.fft.irfft(modes, n=x.shape[1], dim=1).to(x.dtype) + self.skip(x))


class Sorted(nn.Module):
    """Sorts, selects and scatters positions; ``kind``: "sort", "top", "scatter", "gather"."""

    def __init__(self, shape: Shape, *, kind: str) -> None:
        super().__init__()
        self.kind, self.score = kind, nn.Linear(width_of(shape), 1)

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        if self.kind == "sort":
            return x + torch.sort(x, dim=1)[0]
        score = self.score(x).squeeze(-1)
        count = max(1, x.shape[1] // 2)
        if self.kind == "scatter":
            index = score.argsort(-1)
            return torch.zeros_like(x).scatter_add(
                1, index[..., None].expand_as(x), torch.sigmoid(score)[..., None] * x
            )
        best, index = score.topk(count, -1)
        chosen = x.gather(1, index[..., None].expand(-1, -1, x.shape[-1])) * torch.sigmoid(best)[..., None]
        if self.kind == "top":
            return chosen
        return x.scatter_add(1, index[..., None].expand_as(chosen), torch.tanh(chosen))


class Recurrent(nn.Module):
    """A cell, unrolled over the positions (at most ``steps``); ``cell``: "gru", "lstm", "rnn"."""

    def __init__(self, shape: Shape, *, cell: str, hidden: int, steps: int) -> None:
        super().__init__()
        self.steps, self.is_lstm, self.hidden = steps, cell == "lstm", hidden
        make = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "rnn": nn.RNNCell}[cell]
        self.cell = make(width_of(shape), hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        h = state = x.new_zeros(x.shape[0], self.hidden)
        found = []
        for position in range(min(self.steps, x.shape[1])):
            if self.is_lstm:
                h, state = self.cell(x[:, position], (h, state))
            else:
                h = self.cell(x[:, position], h)
            found.append(h)
        return torch.stack(found, 1)


class Permute(nn.Module):
    """The same values in another layout; ``kind``: "heads", "contiguous", "roll", "halve", "concatenate"."""

    def __init__(self, shape: Shape, *, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "heads":
            x = rows(x)
            return x.transpose(1, 2).reshape(x.shape)
        if self.kind == "contiguous":
            return rows(x).transpose(1, 2).contiguous().transpose(1, 2)
        if self.kind == "roll":
            return x + torch.roll(x, 1, 1)
        if self.kind == "halve":
            return rows(x)[:, ::2]
        x = rows(x)
        return torch.cat([x, x.flip(1)], -1)
