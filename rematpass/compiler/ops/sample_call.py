"""Calls like those of a graph, made with arguments of their own: to take their seconds, or their scratch memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.compiler._torch import OpOverload, pytree
from rematpass.compiler.ops.size_hints import hint

# Ops whose first argument has the rows that are written at indices; all at one would take a GPU many times as long.
_BY_INDEX = frozenset("index_put _unsafe_index_put index_add scatter scatter_add scatter_reduce index_copy".split())


@dataclass(frozen=True)
class Like:
    """An argument like a fake tensor: sizes and strides as numbers."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.sizes)}{list(self.strides)}"

    def make(self, draw: torch.Generator | None = None, rows: int = 1) -> torch.Tensor:
        """A tensor like it; with numbers that ``draw`` draws, which leaves the program's own generators alone.

        Integers are 0; with ``draw``, those of 64 bits are 0, 1, and so on below ``rows``, valid as indices of rows.
        """
        # Filled as it stands in memory: expanded tensors cannot be written by their elements.
        spanned = 1 + sum((n - 1) * stride for n, stride in zip(self.sizes, self.strides, strict=True))
        flat = torch.empty(0 if 0 in self.sizes else spanned, dtype=self.dtype, device=self.device)
        if not (flat.is_floating_point() or flat.is_complex()):
            flat.zero_()
            if draw and self.dtype is torch.int64:
                flat.copy_(torch.arange(flat.numel(), device=self.device) % rows)
        elif draw:
            flat.normal_(generator=draw)
        return flat.as_strided(self.sizes, self.strides)


@dataclass(frozen=True)
class Call:
    """A call of a plain op; what tensors its arguments were is a ``Like`` in their place."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> str:
        """The same for calls that do the same work: the op, and shapes, strides and dtypes of its arguments."""
        leaves, _ = pytree.tree_flatten((self.args, self.kwargs))
        return f"{self.target}({', '.join(str(a) if isinstance(a, Like) else repr(a) for a in leaves)})"

    @property
    def device(self) -> torch.device | None:
        """Of its first tensor."""
        return next((like.device for like in self._likes()), None)

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {like.dtype for like in self._likes()}

    def _likes(self) -> list[Like]:
        leaves, _ = pytree.tree_flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Like)]

    def arguments(self, draw: torch.Generator | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Real arguments for one call. Where rows are written by index, they are different ones, as a rule."""
        name = self.target._schema.name.split("::")[1]
        written = self.args[0].sizes if name in _BY_INDEX and self.args and isinstance(self.args[0], Like) else ()
        rows = min(written, default=1)
        args, kwargs = pytree.tree_map(
            lambda a: a.make(draw, rows) if isinstance(a, Like) else a, (self.args, self.kwargs)
        )
        return args, kwargs


def call_of(
    node: fx.Node, laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (), *, channels_last: bool = False
) -> Call | None:
    """The call that a node makes; None for what is no plain op.

    ``laid_out``: sizes and strides of the tensors that it gets in the end, in their order, where a compiler lays them
    out in other ways than the node says; each goes to the next argument of the same sizes. ``channels_last``: before
    that is known, a convolution's images and weights are taken to be laid out so.
    """
    if not isinstance(node.target, OpOverload):
        return None
    left = [(tuple(sizes), tuple(strides)) for sizes, strides in laid_out]
    channels_last = channels_last and "convolution" in node.target._schema.name

    def described(argument: Any) -> Any:
        value = argument.meta.get("val") if isinstance(argument, fx.Node) else argument
        if not isinstance(value, torch.Tensor):
            return hint(value) if isinstance(value, torch.SymInt) else value
        sizes, strides = (tuple(map(hint, s)) for s in (value.shape, value.stride()))
        if channels_last and len(sizes) == 4:
            strides = tuple(torch.empty(sizes, device="meta").to(memory_format=torch.channels_last).stride())
        found = next((i for i, (those, _) in enumerate(left) if those == sizes), None)
        if found is not None:
            strides = left[found][1]
            del left[: found + 1]
        return Like(sizes, strides, value.dtype, value.device)

    args, kwargs = pytree.tree_map(described, (node.args, node.kwargs))
    return Call(node.target, args, kwargs)
