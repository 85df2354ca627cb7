"""Any device that has no file here: torch may compile for it, and planning works, but nothing is measured on it."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NoReturn

import psutil
import torch

from rematpass.compiler.devices.allocator_trace import Recording
from rematpass.compiler.devices.base import CalibrationSizes, DeviceKind
from rematpass.errors import MeasureError


class Other(DeviceKind):
    """``supported``: the types of the devices that can be measured, for the error message."""

    codegen = ""
    calibration = CalibrationSizes(
        matrix=1024, copied_nbytes=2**28, elements=2**22, chain=32, tf32=False, attention=False
    )

    def __init__(self, device_type: str, supported: tuple[str, ...]) -> None:
        self.type, self._supported = device_type, supported

    def is_available(self) -> bool:
        return False

    def current(self) -> torch.device:
        return torch.device(self.type)

    def check_usable(self, device: torch.device) -> None:
        self._refuse()

    def name(self, device: torch.device) -> str:
        return self.type

    def free_nbytes(self, device: torch.device) -> int:
        """The host's, since this device cannot be asked."""
        return int(psutil.virtual_memory().available)

    def record(self, device: torch.device) -> AbstractContextManager[Recording]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise MeasureError(f"memory can be measured on {' and '.join(self._supported)}, not on {self.type}")
