"""The budget ``auto``: what is free on the device now, less what the optimizer is still going to take.

Rounded down to 256 MiB, so that two runs of one program find each other's compiled graphs in the cache; the least over
all ranks, so that they plan alike.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from rematpass.compiler import devices

ROUNDING = 256 << 20
_SLACK = 0.05  # of what is free, for what nobody accounts for
_ADAM_STATES = 2  # two moments, each of a parameter's size


def free_bytes(device: torch.device) -> int:
    """Bytes that a step could still allocate on ``device``, the allocator's unused reserve included.

    Rounded down to ``ROUNDING``; with torch.distributed initialized, the least over all ranks.
    """
    kind = devices.of(device)
    free = kind.free_nbytes(device)
    if dist.is_available() and dist.is_initialized():
        least = torch.tensor(free, device=device if dist.get_backend() == kind.collective_backend else None)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        free = int(least)
    return free // ROUNDING * ROUNDING


def auto_budget(free: int, parameter_nbytes: int, reserve: int | None) -> int:
    """Bytes of peak for a step: ``free`` less the optimizer's state (``reserve``, or Adam's) and 5%.

    Rounded down to ``ROUNDING``, and never below 0.
    """
    optimizer = _ADAM_STATES * parameter_nbytes if reserve is None else reserve
    return max(0, int((free - optimizer) * (1 - _SLACK))) // ROUNDING * ROUNDING
