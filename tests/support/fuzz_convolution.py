"""Layers of convolutional networks, for ``fuzz_models``."""

from __future__ import annotations

import torch
from support.fuzz_blocks import ACTIVATIONS, Shape, image, width_of
from torch import Tensor, nn
from torch.nn import functional as F


def drop_path(x: Tensor, rate: float) -> Tensor:
    """Drops whole samples, as timm does."""
    keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - rate)
    return x * keep.div_(1 - rate)


def make_norm(kind: str, channels: int) -> nn.Module:
    groups = next(g for g in (4, 3, 2, 1) if channels % g == 0)
    return {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(groups, c), "none": lambda c: nn.Identity()}[kind](
        channels
    )


class Convolution(nn.Module):
    """Convolution, norm, activation; ``pool``: "none", "max", "average"."""

    def __init__(
        self, shape: Shape, *, out: int, size: int, stride: int, norm: str, act: str, before: bool, pool: str,
        residual: bool, drop: float,
    ) -> None:  # fmt: skip
        super().__init__()
        width = width_of(shape)
        out = out or width
        self.before, self.act, self.pool, self.drop = before, ACTIVATIONS[act], pool, drop
        self.residual = residual and stride == 1
        self.norm = make_norm(norm, width if before else out)
        self.conv = nn.Conv2d(width, out, size, stride, size // 2, bias=norm == "none")
        self.skip = nn.Conv2d(width, out, 1) if self.residual and out != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = image(x)
        h = self.conv(self.act(self.norm(x))) if self.before else self.act(self.norm(self.conv(x)))
        if self.residual:
            h = self.skip(x) + (drop_path(h, self.drop) if self.drop else h)
        if self.pool == "none" or min(h.shape[2:]) < 2:
            return h
        return F.max_pool2d(h, 2) if self.pool == "max" else F.avg_pool2d(h, 2)


class ConvNext(nn.Module):
    """Depthwise convolution, then an MLP in channels-last order, scaled, with dropped paths."""

    def __init__(self, shape: Shape, *, size: int, hidden: int, drop: float, act: str) -> None:
        super().__init__()
        width = width_of(shape)
        self.conv = nn.Conv2d(width, width, size, padding=size // 2, groups=width)
        self.norm, self.act, self.drop = nn.LayerNorm(width), ACTIVATIONS[act], drop
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = image(x)
        h = self.norm(self.conv(x).permute(0, 2, 3, 1))
        h = (self.down(self.act(self.up(h))) * self.scale).permute(0, 3, 1, 2)
        return x + (drop_path(h, self.drop) if self.drop else h)


class Inverted(nn.Module):
    """An inverted bottleneck with squeeze and excitation, as in MobileNet and EfficientNet."""

    def __init__(self, shape: Shape, *, hidden: int, stride: int, act: str, squeeze: int) -> None:
        super().__init__()
        width = width_of(shape)
        self.act, self.stride = ACTIVATIONS[act], stride
        self.up = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden))
        self.depth = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden)
        )
        self.squeeze = nn.Sequential(nn.Conv2d(hidden, squeeze, 1), nn.ReLU(), nn.Conv2d(squeeze, hidden, 1))
        self.down = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        x = image(x)
        h = self.act(self.depth(self.act(self.up(x))))
        h = self.down(h * torch.sigmoid(self.squeeze(h.mean((2, 3), keepdim=True))))
        return x + h if self.stride == 1 else h


class UNet(nn.Module):
    """One level down and up again; ``mode``: how to scale up."""

    def __init__(self, shape: Shape, *, hidden: int, norm: str, act: str, mode: str) -> None:
        super().__init__()
        width = width_of(shape)
        self.act, self.mode = ACTIVATIONS[act], mode
        self.first, self.norm = nn.Conv2d(width, width, 3, padding=1), make_norm(norm, width)
        self.down, self.inner = nn.Conv2d(width, hidden, 3, 2, 1), nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(width + hidden, width, 3, padding=1)
        self.up = nn.ConvTranspose2d(hidden, hidden, 2, 2) if mode == "transposed" else None

    def forward(self, x: Tensor) -> Tensor:
        x = image(x)
        skip = self.act(self.norm(self.first(x)))
        h = self.act(self.inner(self.act(self.down(skip))))
        if self.up is not None:
            h = self.up(h)
        if h.shape[2:] != skip.shape[2:]:
            h = F.interpolate(h, skip.shape[2:], mode="nearest" if self.mode == "transposed" else self.mode)
        return self.out(torch.cat([skip, h], 1))


class Layout(nn.Module):
    """``channels_last`` or not, from here on."""

    def __init__(self, shape: Shape, *, channels_last: bool) -> None:
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        return image(x).to(memory_format=self.format)
