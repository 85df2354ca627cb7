"""Inductor's settings, as far as plans and their caches depend on them."""

from __future__ import annotations

from typing import Any

from rematpass.compiler._torch import functorch_config, inductor_config


def caches_are_disabled() -> bool:
    """Whether compiled graphs are not kept for other processes."""
    return bool(inductor_config.force_disable_caches) or not inductor_config.fx_graph_cache


def plain_settings() -> list[tuple[str, str, Any]]:
    """All settings of Inductor and functorch that are numbers or strings: what a joint graph may depend on."""
    return [
        (config.__name__, name, value)
        for config in (inductor_config, functorch_config)
        for name, value in sorted(config.get_config_copy().items())  # type: ignore[attr-defined]
        if isinstance(value, (bool, int, float, str))
    ]


def option_names() -> list[str]:
    """The names that ``torch.compile(options=...)`` accepts with Inductor."""
    return list(inductor_config.get_config_copy())
