"""Calls like those of a graph, made with arguments of their own: to take their seconds, or their scratch memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import OpOverload, pytree

# Ops whose first argument is written at indices; all at the same one would take a GPU many times as long.
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

        Integers are valid as indices of ``rows`` rows: 0, 1, and so on, over and over.
        """
        made = torch.empty_strided(self.sizes, self.strides, dtype=self.dtype, device=self.device)
        if not (made.is_floating_point() or made.is_complex()):
            made.zero_()
            if draw and rows > 1 and made.numel() and self.dtype is torch.int64:
                made.copy_((torch.arange(made.numel(), device=self.device) % rows).view(self.sizes))
            return made
        return made.normal_(generator=draw) if draw else made


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
        leaves, _ = pytree.tree_flatten((self.args, self.kwargs))
        return next((leaf.device for leaf in leaves if isinstance(leaf, Like)), None)

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
            return _torch.hint(value) if isinstance(value, torch.SymInt) else value
        sizes, strides = (tuple(map(_torch.hint, s)) for s in (value.shape, value.stride()))
        if channels_last and len(sizes) == 4:
            strides = tuple(torch.empty(sizes, device="meta").to(memory_format=torch.channels_last).stride())
        found = next((i for i, (those, _) in enumerate(left) if those == sizes), None)
        if found is not None:
            strides = left[found][1]
            del left[: found + 1]
        return Like(sizes, strides, value.dtype, value.device)

    args, kwargs = pytree.tree_map(described, (node.args, node.kwargs))
    return Call(node.target, args, kwargs)
