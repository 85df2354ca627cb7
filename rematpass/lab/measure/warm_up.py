"""A first compilation that is not measured.

The first compilation of a process also imports Inductor, finds out what the C++ compiler can do, and precompiles
headers. None of that belongs to the model that is compiled first.
"""

from __future__ import annotations

import torch


def warm_up(device: torch.device | str = "cpu") -> None:
    """Compile and run a small function and its backward on ``device``."""
    weight = torch.ones(64, 64, device=device, requires_grad=True)
    torch.compile(lambda w: (w.sin() @ w).sum())(weight).backward()
