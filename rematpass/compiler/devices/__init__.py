"""The kinds of devices, one file each: the only place that knows how they differ.

``of(device)`` returns the ``DeviceKind`` of a device (``base.py`` defines the interface).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch

from rematpass.compiler.devices.allocator_trace import Recording
from rematpass.compiler.devices.base import DeviceKind
from rematpass.compiler.devices.cpu import Cpu
from rematpass.compiler.devices.cuda import Cuda
from rematpass.compiler.devices.other import Other
from rematpass.errors import MeasureError

KINDS: tuple[DeviceKind, ...] = (Cpu(), Cuda())


def of(device: torch.device | str) -> DeviceKind:
    """The kind of a device; for a type that is not in ``KINDS``, one whose measurements raise MeasureError."""
    device_type = device.type if isinstance(device, torch.device) else torch.device(device).type
    found = next((kind for kind in KINDS if kind.type == device_type), None)
    return found or Other(device_type, tuple(kind.type for kind in KINDS))


def current() -> torch.device:
    """The accelerator that this process works on; without one, the CPU."""
    available = [kind for kind in KINDS if kind.is_available()]
    return min(available, key=lambda kind: kind.is_host).current()


def accelerator_among(devices: Iterable[torch.device]) -> torch.device:
    """The first of the devices that is not the CPU; without one, the CPU."""
    return next((device for device in devices if not of(device).is_host), torch.device("cpu"))


def usable(device: torch.device | str) -> torch.device:
    """The device, checked.

    Raises:
        MeasureError: torch knows no such device, it cannot be measured, or this machine does not have it.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise MeasureError(f"{device!r} is not a device; try {' or '.join(kind.type for kind in KINDS)}") from error
    of(found).check_usable(found)
    return found


def record(device: torch.device) -> AbstractContextManager[Recording]:
    """Record all allocations and releases on the device inside the ``with``; ``Recording.events`` is set at its end.

    Raises:
        MeasureError: the device cannot be measured, or a profiler is running or does not start.
    """
    return of(device).record(device)


def random_states() -> list[torch.Tensor]:
    """The states of all generators; a step that draws a random number changes one of them."""
    return [state for kind in KINDS for state in kind.random_states()]
