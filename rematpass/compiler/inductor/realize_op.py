"""An op that returns its argument and makes Inductor write it to memory.

Inductor computes a pointwise value inside each of its readers, unless there are many of them or it reads much. Where a
plan has the value realized, ``emit`` puts this op behind it. Its lowering realizes the argument and returns it, so
nothing is copied; a value that is then fused into its only reader takes no bytes.
"""

from __future__ import annotations

from typing import Any

import torch

from rematpass.compiler import _torch

torch.library.define("rematpass::realize", "(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


@torch.library.impl("rematpass::realize", "CompositeExplicitAutograd")
def _clone(x: torch.Tensor) -> torch.Tensor:
    """Without Inductor: a copy, since an op must not return its own argument."""
    return x.clone()


@torch.library.register_fake("rematpass::realize")
def _like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device=x.device)


REALIZE = torch.ops.rematpass.realize.default


@_torch.register_lowering(REALIZE, type_promotion_kind=None)  # type: ignore[misc]
def _realized(x: Any) -> Any:
    x.realize()
    return x
