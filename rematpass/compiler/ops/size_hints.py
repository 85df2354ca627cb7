"""Sizes as numbers: the value of a symbol when the graph was compiled, or an assumption for an unbacked symbol."""

from __future__ import annotations

from typing import Any

import torch

from rematpass.compiler._torch import SymT, free_symbols, inductor_config, symbol_is_type

_LARGEST_BOUND = 1 << 40  # an unbacked size with a higher upper bound has no real bound


def is_size(value: Any) -> bool:
    """Whether a node's result is a number (a size, or a truth value about sizes) and not a tensor."""
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool))


def hint(size: Any) -> int:
    """A size as a number: itself, the value of its symbols at compile time, or the assumption for unbacked ones."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.has_hint():
        return int(size.node.hint)
    assumed = {s: _assumed(size.node.shape_env, s) for s in size.node.expr.free_symbols}
    return int(size.node.expr.subs(assumed))


def hint_in(graph: Any, size: Any) -> int:
    """As ``hint``, for a size in one of Inductor's graphs."""
    if getattr(size, "free_symbols", ()):
        size = graph.sizevars.simplify(size)
        unbacked = [s for s in size.free_symbols if symbol_is_type(s, SymT.UNBACKED_INT)]
        size = size.subs({s: _assumed(graph.sizevars.shape_env, s) for s in unbacked})
    return int(graph.sizevars.optimization_hint(size, fallback=0))


def symbols_with_hints(value: Any) -> dict[str, int]:
    """The free symbols of a size or tensor, by name, each with the number assumed for it."""
    return {str(s): _assumed(_shape_env(value), s) for s in free_symbols(value)}


def _assumed(shape_env: Any, symbol: Any) -> int:
    """The value of a symbol at compile time; for an unbacked symbol its upper bound, so that no peak is too low.

    The result of ``nonzero`` on 512 tokens, for example, has at most 512 rows. Without a bound it is Inductor's own
    assumption.
    """
    # torch 2.13 deprecates var_to_val, the only name in 2.11.
    known = shape_env.backed_var_to_val if hasattr(shape_env, "backed_var_to_val") else shape_env.var_to_val
    if symbol in known:
        value = known[symbol]  # a symbol for a nested tensor's ragged size, which no dense tensor has
        return int(value) if getattr(value, "is_Integer", isinstance(value, int)) else 0
    bounds = getattr(shape_env, "var_to_range", {}).get(symbol)
    if bounds is not None and bounds.upper.is_Integer and bounds.upper < _LARGEST_BOUND:
        return int(bounds.upper)
    return int(getattr(inductor_config, "unbacked_symint_fallback", 8192))


def _shape_env(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value.node.shape_env
    return getattr(getattr(value, "fake_mode", None), "shape_env", None)
