"""Bytes that a call takes and gives back inside itself: workspaces of cuDNN and cuBLASLt, attention's sums, and on the
CPU what oneDNN's convolutions copy into a layout that they like better.

No table says what they are: libraries choose among kernels by shape, layout, dtype and device. So each call is made
with arguments like its own, and the allocator is asked what stood at the highest point beyond arguments and results.
That is once in a process for each different call, takes milliseconds on a GPU, and begins the allocator's peak
statistics anew. On the CPU a call takes as long as in a training step, so large ones are not made, nor those that are
known to take nothing.

Measured on the CPU (torch 2.13, 2 threads): a 3x3 convolution with its channels first takes its input once more, its
backward twice, and with channels last a few hundredths of that; the backward of attention takes a copy of its queries,
a product in bfloat16 up to its operands, one in float32 nothing.

Source: Inductor estimates nothing of the kind; what it plans are the buffers that it allocates itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.ops import device as settings
from rematpass.compiler.ops.allocator_trace import live_bytes, record
from rematpass.compiler.ops.sample_call import Call, call_of
from rematpass.core.op import Kind

log = logging.getLogger("rematpass")

# What libraries run, whatever compiles the rest. What a custom op does when it is called, nobody knows.
OF_LIBRARIES = frozenset({Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION})
# A few tenths of a second.
_MOST_FLOPS_PER_THREAD = 1e10
# Which reads rows and columns alike, in place.
_BY_BLAS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})

_known: dict[tuple[str, ...], int] = {}
_unsettled: set[torch.device] = set()


def measured_workspace(
    node: fx.Node,
    laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    *,
    channels_last: bool = False,
    flops: int = 0,
) -> int:
    """Scratch bytes of a node's call, on the CPU or on a CUDA device that is there; 0 where they cannot be measured.

    ``laid_out``, ``channels_last``: as for ``call_of``. ``flops``: of the call, as far as they are known.
    """
    try:
        call = call_of(node, laid_out, channels_last=channels_last)
    except (RuntimeError, NotImplementedError):  # arguments without strides: sparse ones
        return 0
    device = call.device if call else None
    if call is None or device is None or not _can_be_made(call, device, flops):
        return 0
    how = settings.how_cudnn_chooses() if device.type == "cuda" else (str(torch.get_num_threads()),)
    key = (call.key, str(device), *how)
    if key not in _known:
        found = _measured(call, device)
        if found is None:
            return 0
        _known[key] = found
    return _known[key]


def _can_be_made(call: Call, device: torch.device, flops: int) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_initialized()
    by_blas = call.target in _BY_BLAS and call.dtypes <= {torch.float32, torch.float64}
    return device.type == "cpu" and not by_blas and flops <= _MOST_FLOPS_PER_THREAD * torch.get_num_threads()


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
    try:
        with _torch.without_modes(), torch.no_grad(), _torch.preserve_rng_state():
            return (_on_cuda if device.type == "cuda" else _on_cpu)(call, device)
    except torch.AcceleratorError:  # the device is in no state to go on, and planning over it would hide that
        raise
    except Exception as error:  # short of memory, say: the call can still be planned, by what is known without it
        log.warning("the scratch memory of %s could not be measured and is left out: %s", call.target, error)
        return None


def _on_cuda(call: Call, device: torch.device) -> int:
    _unsettled.add(device)
    with torch.cuda.device(device):
        args, kwargs = call.arguments()
        call.target(*args, **kwargs)  # what a library takes on its first call and keeps is not scratch
        torch.cuda.reset_peak_memory_stats(device)
        results = call.target(*args, **kwargs)
        torch.cuda.synchronize(device)  # what fails, fails here
        found = torch.cuda.memory_stats(device)
        del results
    return int(found["requested_bytes.all.peak"] - found["requested_bytes.all.current"])


def _on_cpu(call: Call, device: torch.device) -> int:
    args, kwargs = call.arguments()
    with record(device) as recording:
        results = call.target(*args, **kwargs)
    moments = live_bytes(recording.events, set())
    del results
    return max((m.nbytes for m in moments), default=0) - (moments[-1].nbytes if moments else 0)
