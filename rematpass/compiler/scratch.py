"""Bytes that a call on a GPU takes and gives back inside itself: cuDNN's workspaces, cuBLASLt's, attention's sums.

No table says what they are: libraries choose among kernels by shape, layout, dtype and device. So each call is made
once, with arguments like its own, and the allocator is asked what stood at the highest point beyond arguments and
results. That takes milliseconds for each different call, once in a process. The allocator's peak statistics begin anew
with it.

Source: Inductor estimates nothing of the kind; what it plans are the buffers that it allocates itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.calls import Call, call_of
from rematpass.core.graph import Kind

log = logging.getLogger("rematpass")

# What libraries run, whatever compiles the rest. What a custom op does when it is called, nobody knows.
OF_LIBRARIES = frozenset({Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION})

_known: dict[tuple[str, ...], int] = {}
_unsettled: set[torch.device] = set()


def scratch_of(
    node: fx.Node, laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (), *, channels_last: bool = False
) -> int:
    """Scratch bytes of a node's call, if it runs on a CUDA device that is there; 0 where they cannot be measured.

    ``laid_out``, ``channels_last``: as for ``call_of``.
    """
    if not torch.cuda.is_initialized():
        return 0
    try:
        call = call_of(node, laid_out, channels_last=channels_last)
    except (RuntimeError, NotImplementedError):  # arguments without strides: sparse ones
        return 0
    if call is None or call.device is None or call.device.type != "cuda":
        return 0
    key = (call.key, str(call.device), *_torch.how_cudnn_chooses())
    if key not in _known:
        found = _measured(call, call.device)
        if found is None:
            return 0
        _known[key] = found
    return _known[key]


def known() -> dict[str, int]:
    """Every call measured in this process, described, and its scratch bytes."""
    return {key[0]: nbytes for key, nbytes in _known.items()}


def settle() -> None:
    """Give back to the device what the measured calls have left in the allocator's cache."""
    for device in _unsettled:
        with torch.cuda.device(device):
            torch.cuda.empty_cache()
    _unsettled.clear()


def _measured(call: Call, device: torch.device) -> int | None:
    """None where the call cannot be made now."""
    _unsettled.add(device)
    try:
        with torch.cuda.device(device), _torch.without_modes(), torch.no_grad(), _torch.preserve_rng_state():
            args, kwargs = call.arguments()
            call.target(*args, **kwargs)  # what a library takes on its first call and keeps is not scratch
            torch.cuda.reset_peak_memory_stats(device)
            results = call.target(*args, **kwargs)
            torch.cuda.synchronize(device)  # what fails, fails here
            found = torch.cuda.memory_stats(device)
            del results
    except torch.AcceleratorError:  # the device is in no state to go on, and planning over it would hide that
        raise
    except Exception as error:  # short of memory, say: the call can still be planned, by what is known without it
        log.warning("the scratch memory of %s could not be measured and is left out: %s", call.target, error)
        return None
    return int(found["requested_bytes.all.peak"] - found["requested_bytes.all.current"])
