"""The models that are measured, by name: how they are built, and their sizes.

Models for a GPU have sizes that are common in training; a step of the others takes less than a second on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from rematpass.lab.models import networks, transformers_zoo

Made = tuple[nn.Module, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Spec:
    """How to build a model: ``make(**sizes)`` returns the module and its arguments by name.

    ``blocks``: the class of the blocks, if they are not the members of the outermost lists.
    """

    summary: str
    make: Callable[..., Made]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    blocks: str = ""
    dtype: torch.dtype = torch.float32
    for_gpu: bool = False


def _mlp(*, layers: int = 32, width: int = 512, batch: int = 2048) -> Made:
    return networks.mlp(layers, width), {"x": torch.randn(batch, width)}


def _chain(*, layers: int = 64, width: int = 256, batch: int = 4096) -> Made:
    return networks.chain(layers, width), {"x": torch.randn(batch, width)}


def _unet(*, channels: int = 32, levels: int = 4, side: int = 128, batch: int = 4) -> Made:
    images, classes = torch.randn(batch, 3, side, side), torch.randint(8, (batch, side, side))
    return networks.UNet(channels, levels), {"images": images, "classes": classes}


def _tiny_gpt(*, width: int = 256, layers: int = 4, vocabulary: int = 512, batch: int = 8, length: int = 256) -> Made:
    module = networks.TinyGPT(width, layers, vocabulary=vocabulary, length=length)
    return module, {"tokens": networks.walk(batch, length, vocabulary, torch.default_generator)}


def _llama_1b(length: int) -> Spec:
    sizes = {"width": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "mlp": 8192, "vocabulary": 128256, "tied": True}
    summary = f"Llama 3.2 1B, one sequence of {length} tokens, bfloat16"
    return Spec(
        summary, transformers_zoo.llama, {**sizes, "batch": 1, "length": length}, dtype=torch.bfloat16, for_gpu=True
    )


_MEDIUM: dict[str, Any] = {"width": 1024, "layers": 24, "heads": 16, "attention": "sdpa"}
_GPT2_MEDIUM = {**_MEDIUM, "vocabulary": 50257, "batch": 8, "length": 1024}
_VIT_L = {**_MEDIUM, "classes": 1000, "batch": 64}
_RESNET_224 = {"side": 224, "classes": 1000, "batch": 128}
_UNET_512 = {"channels": 64, "levels": 5, "side": 512, "batch": 8}
_BOTTLENECK = "ResNetBottleNeckLayer"
_LOW = torch.bfloat16

MODELS: dict[str, Spec] = {
    "llama": Spec("Llama: 8 layers of width 256, 4 x 256 tokens, sdpa", transformers_zoo.llama),
    "llama-small": Spec("Llama: 4 layers of width 256, 4 x 256 tokens, sdpa", transformers_zoo.llama, {"layers": 4}),
    "gpt2": Spec("GPT-2: 8 layers of width 256, 4 x 256 tokens, dropout 0.1, eager attention", transformers_zoo.gpt2),
    "vit": Spec("ViT: 8 layers of width 256, 8 images of 224 px, eager attention", transformers_zoo.vit),
    "resnet50": Spec("ResNet-50: 8 images of 128 px", transformers_zoo.resnet50, blocks=_BOTTLENECK),
    "mlp": Spec("32 x (Linear 512, GELU, LayerNorm), batch 2048", _mlp),
    "chain": Spec("64 x (Linear 256, Tanh), batch 4096", _chain),
    "unet": Spec("U-Net: 4 levels from 32 channels, 4 images of 128 px", _unet),
    "t5": Spec("T5: 4 encoder and 4 decoder layers of width 256, 4 x 256 tokens, dropout 0.1", transformers_zoo.t5),
    "tiny-gpt": Spec("GPT in plain torch: 4 layers of width 256, 8 x 256 tokens", _tiny_gpt),
    **{f"llama-1b-{k}k": _llama_1b(k * 1024) for k in (2, 4, 8, 16)},
    "gpt2-medium": Spec(
        "GPT-2 medium, 8 x 1024 tokens, bfloat16", transformers_zoo.gpt2, _GPT2_MEDIUM, dtype=_LOW, for_gpu=True
    ),
    "vit-l": Spec("ViT-L/16, 64 images of 224 px, bfloat16", transformers_zoo.vit, _VIT_L, dtype=_LOW, for_gpu=True),
    "resnet50-224": Spec(
        "ResNet-50, 128 images of 224 px", transformers_zoo.resnet50, _RESNET_224, _BOTTLENECK, for_gpu=True
    ),
    "unet-512": Spec("U-Net: 5 levels from 64 channels, 8 images of 512 px", _unet, _UNET_512, for_gpu=True),
}
