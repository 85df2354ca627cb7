"""Networks in plain torch, which need nothing else installed. Their forward returns the loss.

The loss is inside the module, so that compiling the module compiles the whole step and the plan covers it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class Stack(nn.Module):
    """A sequence of layers in ``segments``; the loss is the mean square of the output."""

    def __init__(self, layers: Sequence[nn.Module], segments: int) -> None:
        super().__init__()
        size = -(-len(layers) // segments)
        self.segments = nn.Sequential(*(nn.Sequential(*layers[i : i + size]) for i in range(0, len(layers), size)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.segments(x).square().mean()  # type: ignore[no-any-return]


def mlp(layers: int = 32, width: int = 512, segments: int = 8) -> Stack:
    """``layers`` x (Linear, GELU, LayerNorm), in segments of about equal size."""
    return Stack(
        [nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width)) for _ in range(layers)], segments
    )


def chain(layers: int = 64, width: int = 256, segments: int = 8) -> Stack:
    """``layers`` x (Linear, Tanh): the chain of the literature."""
    return Stack([nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)], segments)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with group norm and SiLU; the first one changes the channels."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            layers += [nn.Conv2d(channels, channels_out, 3, padding=1), nn.GroupNorm(8, channels_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. 2015 with group norms: every level's output is used again on the way up.

    Takes images ``(batch, 3, side, side)``, with a side that is a multiple of 2**(levels - 1), and a class per pixel.
    """

    def __init__(self, channels: int = 32, levels: int = 4, classes: int = 8) -> None:
        super().__init__()
        widths = [channels * 2**level for level in range(levels)]
        self.down = nn.ModuleList(DoubleConv(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        upward = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.grow = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in upward)
        self.up = nn.ModuleList(DoubleConv(2 * o, o) for _, o in upward)
        self.head = nn.Conv2d(channels, classes, 1)

    def forward(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        x = images
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], dim=1))
        return functional.cross_entropy(self.head(x), classes)


class GPTBlock(nn.Module):
    """Causal self-attention and a perceptron four times as wide, each after a layer norm and with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        heads = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class TinyGPT(nn.Module):
    """A GPT-2 without dropout: token and position embeddings, pre-norm blocks, a linear head.

    Takes tokens ``(batch, length)``; the loss is the mean cross-entropy of each next token, in nats.
    """

    def __init__(
        self, width: int = 256, layers: int = 4, heads: int = 4, vocabulary: int = 512, length: int = 256
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(GPTBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.apply(_small_weights)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))[:, :-1]
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _small_weights(module: nn.Module) -> None:
    """GPT-2's initialization, with which the first loss is close to that of guessing: log(vocabulary)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


SUCCESSORS = 4


def walk(batch: int, length: int, vocabulary: int, generator: torch.Generator) -> torch.Tensor:
    """Tokens ``(batch, length)`` of random walks on a fixed random graph, in which each token has four successors.

    A model learns the graph.
    """
    graph = torch.randint(
        vocabulary, (vocabulary, SUCCESSORS), generator=torch.Generator().manual_seed(0), device="cpu"
    )
    tokens = [torch.randint(vocabulary, (batch,), generator=generator, device="cpu")]
    for _ in range(length - 1):
        choice = torch.randint(SUCCESSORS, (batch,), generator=generator, device="cpu")
        tokens.append(graph[tokens[-1], choice])
    return torch.stack(tokens, dim=1)


def lowest_loss() -> float:
    """The loss of a model that knows the graph of ``walk``, in nats; approximate, since successors may coincide."""
    return math.log(SUCCESSORS)
