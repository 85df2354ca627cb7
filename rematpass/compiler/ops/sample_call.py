"""Calls of ops outside of their graph, on sample arguments, to measure their seconds and their workspace."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import OpOverload, pytree
from rematpass.compiler.ops.kinds import kind_by_name
from rematpass.compiler.ops.size_hints import hint
from rematpass.core.op import LIBRARY_KINDS

# Parts of the names of ops on matrices, whose FLOPs per element grow with the rows.
_ON_MATRICES = ("linalg", "cholesky", "lu_", "triangular", "geqrf", "ormqr", "svd", "pinv")
# FLOPs assumed for each element of the arguments where no formula is known, from the time of a sort; and for each row
# of matrices, from the formulas of a singular value decomposition.
_FLOPS_PER_ELEMENT, _FLOPS_PER_ROW = 1000, 20

# Ops that write rows of their first argument by index. If all indices are equal, they take a GPU many times as long.
_WRITE_BY_INDEX = frozenset(
    "index_put _unsafe_index_put index_add scatter scatter_add scatter_reduce index_copy".split()
)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor argument without its numbers; ``sizes`` and ``strides`` in elements, symbols replaced by numbers.

    ``conjugated``, ``negated``: a lazy conjugate or negative view, which many kernels copy before they read it.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    conjugated: bool = False
    negated: bool = False

    def __str__(self) -> str:
        lazy = "*" * self.conjugated + "-" * self.negated
        return f"{lazy}{str(self.dtype).removeprefix('torch.')}{list(self.sizes)}{list(self.strides)}"

    def make(
        self, draw: torch.Generator | None = None, rows: int = 1, *, fill: bool = False, pivots: bool = False
    ) -> torch.Tensor:
        """A tensor of this description. The program's own random generators are not used.

        Floats are drawn by ``draw``; without it they are uninitialized, or with ``fill``, matrices of 1 on the diagonal
        and 1/2 elsewhere, which are invertible, positive definite, and valid as probabilities. Integers are 0, but with
        ``draw``, those of 64 bits count 0, 1, ... modulo ``rows``: different and valid as indices of that many rows.
        With ``pivots``, those of 32 bits are 1, since LAPACK counts rows from 1.
        """
        # Filled before it is strided: the elements of an expanded tensor cannot be written one by one.
        spanned = 1 + sum((n - 1) * stride for n, stride in zip(self.sizes, self.strides, strict=True))
        flat = torch.empty(0 if 0 in self.sizes else spanned, dtype=self.dtype, device=self.device)
        has_floats = flat.is_floating_point() or flat.is_complex()
        if not has_floats:
            flat.zero_()
            if pivots and self.dtype is torch.int32:
                flat.fill_(1)
            if draw and self.dtype is torch.int64:
                flat.copy_(torch.arange(flat.numel(), device=self.device) % rows)
        elif draw:
            flat.normal_(generator=draw)
        elif fill:
            flat.fill_(0.5)
        made = flat.as_strided(self.sizes, self.strides)
        if has_floats and fill and not draw and len(self.sizes) > 1 and 0 not in self.strides:
            made.diagonal(dim1=-2, dim2=-1).fill_(1)
        made = torch.conj(made) if self.conjugated else made
        return torch.ops.aten._neg_view.default(made) if self.negated else made


@dataclass(frozen=True)
class SampleCall:
    """A call of an op, with a ``TensorSpec`` in place of each tensor argument."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for calls that do the same work: the op, and the shapes, strides and dtypes of its arguments."""
        leaves, _ = pytree.tree_flatten((self.args, self.kwargs))
        return f"{self.target}({', '.join(str(a) if isinstance(a, TensorSpec) else repr(a) for a in leaves)})"

    @property
    def device(self) -> torch.device | None:
        """The device of its first tensor; None if it has no tensor."""
        return next((spec.device for spec in self._specs()), None)

    @property
    def dtypes(self) -> set[torch.dtype]:
        return {spec.dtype for spec in self._specs()}

    @property
    def assumed_flops(self) -> int:
        """What the work of a call is taken for where no formula gives its FLOPs."""
        elements = sum(math.prod(spec.sizes) for spec in self._specs())
        rows = max((spec.sizes[-1] for spec in self._specs() if spec.sizes), default=1) if self._is_on_matrices else 0
        return elements * max(_FLOPS_PER_ELEMENT, _FLOPS_PER_ROW * rows)

    @property
    def _is_on_matrices(self) -> bool:
        return any(part in self.target._schema.name for part in _ON_MATRICES)

    def _specs(self) -> list[TensorSpec]:
        leaves, _ = pytree.tree_flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, TensorSpec)]

    def arguments(self, draw: torch.Generator | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Real arguments. With ``draw``, indices of rows that are written differ, as they usually do in a graph."""
        name = self.target._schema.name.split("::")[1]
        by_index = name in _WRITE_BY_INDEX and self.args and isinstance(self.args[0], TensorSpec)
        rows = min(self.args[0].sizes if by_index else (), default=1)
        fill = kind_by_name(self.target) not in LIBRARY_KINDS  # these do the same whatever the numbers are
        make = functools.partial(TensorSpec.make, draw=draw, rows=rows, fill=fill, pivots=self._is_on_matrices)
        args, kwargs = pytree.tree_map_only(TensorSpec, make, (self.args, self.kwargs))
        return args, kwargs

    def prepare(self, draw: torch.Generator | None = None) -> Callable[[], Any]:
        """A function that makes the call with the same real arguments, any number of times."""
        args, kwargs = self.arguments(draw)
        return functools.partial(self.target, *args, **kwargs)


def sample_call_of(
    node: fx.Node, laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (), *, channels_last: bool = False
) -> SampleCall | None:
    """The call that a node makes; None if it does not call an op, or if an argument has no strides (a sparse tensor).

    ``laid_out``: sizes and strides of the tensor arguments in order, where Inductor lays them out differently from the
    node; each applies to the next argument of the same sizes. ``channels_last``: whether a convolution's images and
    weights will be laid out with channels last, while the final strides are not known yet.
    """
    target, arguments = _torch.replayed_call(node)
    if not isinstance(target, OpOverload):
        return None
    left = [(tuple(sizes), tuple(strides)) for sizes, strides in laid_out]
    channels_last = channels_last and "convolution" in target._schema.name

    def spec_of(argument: Any) -> Any:
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
        return TensorSpec(sizes, strides, value.dtype, value.device, value.is_conj(), value.is_neg())

    try:
        args, kwargs = pytree.tree_map(spec_of, (arguments, node.kwargs))
    except RuntimeError:  # torch raises it, or its subclass NotImplementedError, for strides that do not exist
        return None
    return SampleCall(target, args, kwargs)
