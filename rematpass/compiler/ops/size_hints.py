"""Sizes as numbers: what a symbol stood for when the graph was compiled, or what is assumed of an unknown one."""

from __future__ import annotations

from typing import Any

import torch

from rematpass.compiler._torch import SymT, free_symbols, inductor_config, symbol_is_type

_LARGEST_BOUND = 1 << 40  # a bound of an unbacked size that is higher means "any"


def hint(size: Any) -> int:
    """The number behind a size: itself, a symbol's value at compile time, or what is assumed of an unbacked one."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.has_hint():
        return int(size.node.hint)
    assumed = {s: _assumed(size.node.shape_env, s) for s in size.node.expr.free_symbols}
    return int(size.node.expr.subs(assumed))


def hint_in(graph: Any, size: Any) -> int:
    """The same of a size in one of Inductor's graphs."""
    if getattr(size, "free_symbols", ()):
        size = graph.sizevars.simplify(size)
        unbacked = [s for s in size.free_symbols if symbol_is_type(s, SymT.UNBACKED_INT)]
        size = size.subs({s: _assumed(graph.sizevars.shape_env, s) for s in unbacked})
    return int(graph.sizevars.optimization_hint(size, fallback=0))


def symbols_with_hints(value: Any) -> dict[str, int]:
    """The free symbols of a size or tensor, each with the number assumed for it."""
    return {str(s): _assumed(_shape_env(value), s) for s in free_symbols(value)}


def _assumed(shape_env: Any, symbol: Any) -> int:
    """What a symbol was when compiling; of an unbacked one the most it can be, so that a peak is not too low.

    ``nonzero`` of 512 tokens, say, finds 512 at most. Without such a bound it is what Inductor assumes.
    """
    known = shape_env.backed_var_to_val if hasattr(shape_env, "backed_var_to_val") else shape_env.var_to_val
    if symbol in known:
        return int(known[symbol])
    bounds = getattr(shape_env, "var_to_range", {}).get(symbol)
    if bounds is not None and bounds.upper.is_Integer and bounds.upper < _LARGEST_BOUND:
        return int(bounds.upper)
    return int(getattr(inductor_config, "unbacked_symint_fallback", 8192))


def _shape_env(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value.node.shape_env
    return getattr(getattr(value, "fake_mode", None), "shape_env", None)
