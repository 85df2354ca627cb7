"""The workspace of library calls: bytes that a call takes inside itself and gives back, beyond its results.

cuDNN and cuBLASLt allocate workspaces, attention keeps partial sums, on the CPU oneDNN's convolutions copy their
arguments into another layout, a Fourier transform over several dimensions holds the result of one while it makes that
of the next, sorts and medians copy what they sort, and many kernels first copy a lazy conjugate. No table lists these
bytes, because libraries choose kernels by shape, layout, dtype and device. So each distinct call is made once per
process, on sample arguments, and the device reports the highest point (``DeviceKind.workspace``). On a GPU that takes
milliseconds and resets the allocator's peak statistics. On the CPU it takes as long as in a training step, so large
calls are left out, as are calls known to have no workspace.

Measured on the CPU (torch 2.13, 2 threads): a 3x3 convolution with channels first takes the bytes of its input, its
backward twice that, and with channels last a few hundredths; the backward of attention takes a copy of its queries; a
matrix product takes up to its operands in bfloat16 and nothing in float32.

Inductor has no such estimate: its memory planning covers only buffers that it allocates itself.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import fx

from rematpass.compiler import _torch, devices
from rematpass.compiler.ops.sample_call import SampleCall, sample_call_of
from rematpass.errors import MeasureError

log = logging.getLogger("rematpass")

_known: dict[tuple[str, ...], int] = {}
_used: set[torch.device] = set()  # whose allocator caches hold what measured calls have released


def measured_workspace(
    node: fx.Node,
    laid_out: Sequence[tuple[Sequence[int], Sequence[int]]] = (),
    *,
    channels_last: bool = False,
    flops: int = 0,
) -> int:
    """Workspace bytes of a node's call; 0 if they cannot be measured here and now.

    ``laid_out``, ``channels_last``: as for ``sample_call_of``. ``flops``: of the call, if known.
    """
    call = sample_call_of(node, laid_out, channels_last=channels_last)
    device = call.device if call else None
    if call is None or device is None:
        return 0
    kind = devices.of(device)
    if not kind.can_measure_workspace(call.target, call.dtypes, flops or call.assumed_flops):
        return 0
    key = (call.key, str(device), *kind.workspace_settings())
    if key not in _known:
        found = _measured(call, device)
        if found is None:
            return 0
        _known[key] = found
    return _known[key]


def known() -> dict[str, int]:
    """The workspace bytes of every call measured in this process, by ``SampleCall.key``."""
    return {key[0]: nbytes for key, nbytes in _known.items()}


def empty_caches() -> None:
    """Return memory that measured calls have left in the allocators' caches to the devices."""
    for device in _used:
        devices.of(device).empty_cache(device)
    _used.clear()


def _measured(call: SampleCall, device: torch.device) -> int | None:
    """None if the call cannot be made now; 0 if it never can, because sample arguments do not do for it."""
    _used.add(device)
    try:
        with _torch.without_modes(), torch.no_grad(), _torch.preserve_rng_state():
            return devices.of(device).workspace(device, call.prepare())
    except torch.AcceleratorError:  # the device is unusable from here on; planning on would hide it
        raise
    except Exception as error:  # out of memory, for example: the graph can be planned without this workspace
        log.warning("the workspace of %s could not be measured and is left out: %s", call.target, error)
        return None if isinstance(error, torch.OutOfMemoryError | MeasureError) else 0
