"""The device that is trained on, and what torch's settings say."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rematpass.compiler._torch import functorch_config, inductor_config, inductor_graph


def current_device() -> torch.device:
    """The GPU that this process works on, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """How the device calls itself ("NVIDIA H200"), or its type where it has no name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rounds_to_tf32(*, convolution: bool) -> bool:
    """Whether products of float32 run as TF32 on GPUs that have it: cuDNN's do by default, cuBLAS' when asked to."""
    place: Any = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
    return bool(place.fp32_precision == "tf32")


def lays_channels_last(module: fx.GraphModule) -> bool:
    """Whether Inductor is going to lay this module's convolutions out with channels last, as far as can be told."""
    return bool(inductor_graph.GraphLowering.decide_layout_opt(module, is_inference=False))


def how_cudnn_chooses() -> tuple[str, ...]:
    """The settings by which cuDNN chooses among its algorithms, whose workspaces differ."""
    cudnn: Any = torch.backends.cudnn
    return tuple(map(str, (cudnn.version(), cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision)))


def caches_are_disabled() -> bool:
    """Whether nothing compiled is kept for other processes."""
    return bool(inductor_config.force_disable_caches) or not inductor_config.fx_graph_cache


def plain_settings() -> list[tuple[str, str, Any]]:
    """All of Inductor's and functorch's settings that are numbers or texts: what a joint graph may depend on."""
    return [
        (config.__name__, name, value)
        for config in (inductor_config, functorch_config)
        for name, value in sorted(config.get_config_copy().items())  # type: ignore[attr-defined]
        if isinstance(value, (bool, int, float, str))
    ]


def inductor_option_names() -> list[str]:
    """The names that Inductor's ``options=`` accepts."""
    return list(inductor_config.get_config_copy())
