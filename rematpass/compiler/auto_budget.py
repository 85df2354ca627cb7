"""The budget "auto": the free bytes of the device, less what the optimizer will take.

Free bytes are rounded down to 256 MiB, so that two runs of a program share compiled graphs in the cache, and are the
minimum over all ranks, so that all ranks make the same plans.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from rematpass.compiler import devices

ROUNDING = 256 << 20
_SLACK = 0.05  # the share of the free bytes that is left for allocations outside of the plan
_ADAM_STATES = 2  # two moments, each as large as the parameters


def free_bytes(device: torch.device) -> int:
    """The bytes that a step can allocate on ``device``, including the unused reserve of the allocator.

    They are rounded down to ``ROUNDING``. If torch.distributed is initialized, the result is the minimum of all ranks.
    """
    kind = devices.of(device)
    free = kind.free_nbytes(device)
    if dist.is_available() and dist.is_initialized():
        least = torch.tensor(free, device=device if dist.get_backend() == kind.collective_backend else None)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        free = int(least)
    return free // ROUNDING * ROUNDING


def auto_budget(free: int, parameter_nbytes: int, reserve: int | None) -> int:
    """The budget of a step in bytes: ``free`` less the optimizer's state (``reserve``, by default Adam's), less 5%.

    The result is rounded down to ``ROUNDING`` and never below 0.
    """
    optimizer = _ADAM_STATES * parameter_nbytes if reserve is None else reserve
    return max(0, int((free - optimizer) * (1 - _SLACK))) // ROUNDING * ROUNDING
