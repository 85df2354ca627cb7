"""Random models in plain torch, for ``tests/fuzz_peaks.py``: layers that users train, at small and odd sizes.

A ``Program`` is data: an input, layers, and a head with the loss. ``Program.build`` makes the module; each layer is
built for the shape that the one before it returns, so a layer can be left out. ``write`` draws a program from a seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from support.fuzz_attention import Attention
from support.fuzz_blocks import (
    ACTIVATIONS,
    Fourier,
    Mixture,
    Mlp,
    Permute,
    Pointwise,
    Recurrent,
    Sorted,
    TokenMix,
    rows,
    width_of,
)  # fmt: skip
from support.fuzz_convolution import ConvNext, Convolution, Inverted, Layout, UNet
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = {
    kind.__name__: kind
    for kind in (
        Attention, Convolution, ConvNext, Fourier, Inverted, Layout, Mixture, Mlp, Permute, Pointwise, Recurrent,
        Sorted, TokenMix, UNet,
    )
}  # fmt: skip
WIDTHS = (16, 24, 31, 37, 48, 61, 64, 97, 128, 160, 211)
LARGEST = 3_000_000  # elements of one layer's result; a larger program is not valid


@dataclass(frozen=True)
class Layer:
    """The name of a class in ``KINDS``, or of an input or a head, with its keywords. ``frozen``: it is not trained."""

    kind: str
    settings: dict[str, Any]
    frozen: bool = False

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{self.kind}({given}){' frozen' if self.frozen else ''}"


class Net(nn.Module):
    """Input, layers and head; returns the loss, or a tuple that begins with it."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        given, self.head = program.given.settings, dict(program.head.settings)
        self.is_tokens = program.given.kind == "tokens"
        self.autocast = program.dtype == "autocast"
        self.embedding = nn.Embedding(given["vocabulary"], given["width"]) if self.is_tokens else None
        self.layers = nn.ModuleList()
        dtype = torch.bfloat16 if program.dtype == "bfloat16" else torch.float32
        self.to(dtype)
        x = self._begin(program.arguments()[0])
        for layer in program.layers:
            module = KINDS[layer.kind](tuple(x.shape), **layer.settings).to(dtype).requires_grad_(not layer.frozen)
            self.layers.append(module)
            with torch.no_grad(), self._cast():
                x = module(x)
            if x.numel() > LARGEST:
                raise ValueError(f"{layer.kind} returns {x.numel()} elements")
        self._make_head(width_of(x.shape), dtype)

    def _make_head(self, width: int, dtype: torch.dtype) -> None:
        self.tied = self.head["tied"] and self.embedding is not None
        inner = self.embedding.embedding_dim if self.tied else width
        self.to_inner = nn.Linear(width, inner, dtype=dtype) if inner != width else nn.Identity()
        self.final = nn.LayerNorm(inner, dtype=dtype) if self.head["norm"] else nn.Identity()
        self.out = None if self.tied else nn.Linear(inner, self.head["classes"], bias=self.head["bias"], dtype=dtype)

    def _cast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def _begin(self, x: Tensor) -> Tensor:
        return self.embedding(x) if self.embedding is not None else x

    def forward(self, x: Tensor, target: Tensor) -> Any:
        with self._cast():
            h = self._begin(x)
            for layer in self.layers:
                h = layer(h)
            hidden = rows(h)
            pooled = hidden.mean(1, keepdim=True) if self.head["pool"] else hidden
            pooled = self.final(self.to_inner(pooled))
            out = F.linear(pooled, self.embedding.weight) if self.tied else self.out(pooled)
            out = out.float() if self.head["wide"] else out
            if self.head["cap"]:
                out = torch.tanh(out / self.head["cap"]) * self.head["cap"]
            loss = self._loss(out, target)
        more = {"": (), "logits": (out,), "hidden": (hidden,), "detached": (hidden.detach(), out.detach())}
        return (loss, *more[self.head["returns"]]) if self.head["returns"] else loss

    def _loss(self, out: Tensor, target: Tensor) -> Tensor:
        kind, length, classes = self.head["loss"], out.shape[1], out.shape[2]
        if kind in ("square", "smooth", "sum"):
            values = (out - torch.sin(target.reshape(-1)[0].float())).float()
            if kind == "smooth":
                return F.smooth_l1_loss(values, torch.zeros_like(values))
            return values.square().mean() if kind == "square" else values.sin().sum()
        if kind == "binary":
            return F.binary_cross_entropy_with_logits(
                out.float(), (target.reshape(-1)[0] % 2).float().expand(out.shape)
            )
        labels = (target.repeat(1, -(-length // target.shape[1]))[:, :length] % classes).clone()
        labels[:, 0] = -100 if self.head["ignore"] and length > 1 else labels[:, 0]
        if self.head["shift"] and length > 1:
            out, labels = out[:, :-1], labels[:, 1:]
        more = {"label_smoothing": self.head["smoothing"], "reduction": self.head["reduction"]}
        if kind == "transposed":
            loss = F.cross_entropy(out.transpose(1, 2), labels, **more)
        elif kind == "written":
            picked = torch.log_softmax(out, -1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
            loss = -(picked * (labels >= 0)).sum() / labels.numel()
        else:
            loss = F.cross_entropy(out.reshape(-1, classes), labels.reshape(-1), **more)
        return loss + 1e-4 * torch.logsumexp(out, -1).square().mean() if self.head["z"] else loss


@dataclass(frozen=True)
class Program:
    """``dtype``: "float32", "bfloat16" (all parameters), "autocast". ``hold_outputs``: as in ``rematpass.Config``."""

    seed: int
    given: Layer
    layers: tuple[Layer, ...]
    head: Layer
    dtype: str
    hold_outputs: bool
    input_gradient: bool

    def arguments(self) -> tuple[Tensor, Tensor]:
        given, torch_dtype = self.given.settings, torch.bfloat16 if self.dtype == "bfloat16" else torch.float32
        target = torch.randint(0, 1000, (given["batch"], given["length"]))
        if self.given.kind == "tokens":
            return torch.randint(0, given["vocabulary"], (given["batch"], given["length"])), target
        if self.given.kind == "image":
            x = torch.randn(given["batch"], given["width"], given["length"], given["side"], dtype=torch_dtype)
            x = x.to(memory_format=torch.channels_last) if given["channels_last"] else x
        else:
            x = torch.randn(given["batch"], given["length"], given["width"], dtype=torch_dtype)
        return x.requires_grad_(self.input_gradient), target

    def build(self) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
        """The module and its arguments.

        Raises:
            Exception: the program is not valid; any exception of its layers.
        """
        torch.manual_seed(self.seed)
        return Net(self), self.arguments()

    def without(self, place: int) -> Program:
        return dataclasses.replace(self, layers=(*self.layers[:place], *self.layers[place + 1 :]))

    def text(self) -> str:
        flags = f"{self.dtype}, hold_outputs={self.hold_outputs}, input_gradient={self.input_gradient}"
        return "\n".join([f"# seed {self.seed}, {flags}", *map(str, (self.given, *self.layers, self.head))])


def _layer(r: random.Random, kind: str) -> Layer:
    act = r.choice(list(ACTIVATIONS))
    width, dropout = r.choice(WIDTHS), r.choice((0, 0, 0.1, 0.3))
    drawn: dict[str, Callable[[], dict[str, Any]]] = {
        "Mlp": lambda: {
            "hidden": r.choice((*WIDTHS, 256, 384)), "out": r.choice((0, 0, 0, width)), "act": act,
            "gated": r.random() < 0.3, "norm": r.choice(("layer", "rms", "llama", "none")), "dropout": dropout,
            "bias": r.random() < 0.7,
        },
        "Attention": lambda: {
            "kind": r.choice(("sdpa", "eager", "eager")), "heads": r.choice((1, 2, 3)), "size": r.choice((8, 16, 32)),
            "groups": r.choice((1, 1, 2)), "mask": r.choice(("none", "causal", "bias", "keep")),
            "cap": r.choice((0, 0, 20.0)), "dropout": dropout, "rotary": r.random() < 0.3,
            "norm": r.choice(("layer", "rms", "llama", "none")), "fused": r.random() < 0.5, "wide": r.random() < 0.5,
        },
        "Convolution": lambda: {
            "out": r.choice((0, 0, width)), "size": r.choice((1, 3, 3, 5)), "stride": r.choice((1, 1, 2)),
            "norm": r.choice(("batch", "group", "none")), "act": act, "before": r.random() < 0.3,
            "pool": r.choice(("none", "none", "max", "average")), "residual": r.random() < 0.5,
            "drop": r.choice((0, 0, 0.2)),
        },
        "ConvNext": lambda: {
            "size": r.choice((3, 7)), "hidden": r.choice((*WIDTHS, 256)), "drop": r.choice((0, 0.1)), "act": act,
        },
        "Inverted": lambda: {"hidden": width, "stride": r.choice((1, 1, 2)), "act": act, "squeeze": r.choice((4, 8))},
        "UNet": lambda: {
            "hidden": width, "norm": r.choice(("batch", "group", "none")), "act": act,
            "mode": r.choice(("nearest", "bilinear", "transposed")),
        },
        "Layout": lambda: {"channels_last": r.random() < 0.7},
        "Fourier": lambda: {"learned": r.random() < 0.5, "act": act},
        "Mixture": lambda: {"experts": r.choice((2, 3, 4)), "hidden": width, "top": r.choice((0, 1, 2)), "act": act},
        "Permute": lambda: {"kind": r.choice(("heads", "contiguous", "roll", "halve", "concatenate"))},
        "Pointwise": lambda: {
            "acts": tuple(r.choices(list(ACTIVATIONS), k=r.randint(1, 4))), "residual": r.random() < 0.5,
            "dropout": dropout,
        },
        "Recurrent": lambda: {"cell": r.choice(("gru", "lstm", "rnn")), "hidden": width, "steps": r.randint(3, 6)},
        "Sorted": lambda: {"kind": r.choice(("sort", "top", "scatter", "gather"))},
        "TokenMix": lambda: {"hidden": width, "act": act},
    }  # fmt: skip
    return Layer(kind, drawn[kind](), frozen=r.random() < 0.08)


MIXES = {  # the kinds of layers of one program, with their weights
    "decoder": {"Attention": 4, "Mlp": 5, "Mixture": 1, "Pointwise": 1, "Permute": 1},
    "mlp": {"Mlp": 5, "Pointwise": 3, "Mixture": 1},
    "image": {"Convolution": 5, "ConvNext": 3, "Inverted": 2, "UNet": 2, "Layout": 2, "Attention": 1, "Pointwise": 1},
    "sequence": {"Recurrent": 3, "Mlp": 2, "TokenMix": 2, "Permute": 1, "Sorted": 1},
    "all": dict.fromkeys(KINDS, 1),
}


def write(seed: int) -> Program:
    """The program of a seed."""
    r = random.Random(f"peaks {seed}")
    mix = r.choice([*MIXES, "all"])
    tokens = (mix in ("decoder", "sequence") and r.random() < 0.8) or r.random() < 0.2
    kind = "tokens" if tokens else "image" if mix == "image" or (mix == "all" and r.random() < 0.5) else "rows"
    vocabulary = r.choice((64, 211, 509, 1024, 2048))
    given = {"batch": r.choice((2, 3, 4, 7)), "length": r.choice((13, 24, 31, 48, 65)), "width": r.choice(WIDTHS)}
    if kind == "tokens":
        given["vocabulary"] = vocabulary
    elif kind == "image":
        given |= {"length": r.choice((12, 17, 24)), "side": r.choice((12, 17, 24)), "width": r.choice((3, 16, 24))}
        given["channels_last"] = r.random() < 0.4
    count = r.choices(range(1, 7), (45, 30, 12, 7, 3, 3))[0]
    kinds = r.choices(list(MIXES[mix]), list(MIXES[mix].values()), k=count)
    layers = [_layer(r, kind) for kind in kinds]
    if count <= 2 and r.random() < 0.2:
        layers *= 2  # equal layers
    return Program(
        seed=seed,
        given=Layer(kind, given),
        layers=tuple(layers),
        head=_head(r, vocabulary if kind == "tokens" else r.choice((10, 101, 509)), is_tokens=kind == "tokens"),
        dtype=r.choice(("float32", "float32", "float32", "bfloat16", "autocast")),
        hold_outputs=r.random() < 0.7,
        input_gradient=kind != "tokens" and r.random() < 0.2,
    )


def _head(r: random.Random, classes: int, *, is_tokens: bool) -> Layer:
    classify = is_tokens or r.random() < 0.5
    losses = ("flat", "flat", "transposed", "written") if classify else ("square", "smooth", "sum", "binary", "flat")
    return Layer("head", {
        "loss": r.choice(losses), "classes": classes, "tied": r.random() < 0.4, "norm": r.random() < 0.6,
        "bias": r.random() < 0.5, "pool": r.random() < (0.1 if is_tokens else 0.5), "wide": r.random() < 0.4,
        "cap": r.choice((0, 0, 0, 30.0)), "shift": is_tokens and r.random() < 0.5, "ignore": r.random() < 0.3,
        "smoothing": r.choice((0.0, 0.0, 0.1)), "reduction": r.choice(("mean", "mean", "sum")),
        "z": r.random() < 0.15, "returns": r.choice(("", "", "logits", "hidden", "detached")),
    })  # fmt: skip
