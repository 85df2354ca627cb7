"""The interface of a kind of device: everything that the compiler and the lab have to know about it.

To add a third device, write a file beside ``cpu.py`` and ``cuda.py`` with a subclass of ``DeviceKind``, list it in
``KINDS`` (``__init__.py``) and in ``DEVICES`` (``lab/models/names.py``, for commands that have not loaded torch), and
add a preset to ``core/hardware.py``. The subclass sets the attributes and implements the abstract methods; the other
methods have defaults for a device with nothing special. No other code asks for the type of a device.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from rematpass.compiler.devices.allocator_trace import Recording, live_bytes
from rematpass.compiler.devices.peak_window import PeakWindow, RecordedPeakWindow


@dataclass(frozen=True)
class AllocatorPeak:
    """What an allocator's statistics report of a training step, in bytes beyond those allocated before it.

    ``peak``: of the blocks handed out; ``requested``: of what was asked for, which blocks round up; ``reserved``: taken
    from the device; ``saved``: alive between forward and backward.
    """

    peak: int
    requested: int
    reserved: int
    saved: int


@dataclass(frozen=True)
class CalibrationSizes:
    """How much work ``rematpass calibrate`` times, so that a device of this kind is busy.

    ``matrix``: rows and columns of the matrices; ``copied_nbytes``: bytes of the tensor copied; ``elements``: of the
    tensors that fused kernels read; ``chain``: multiply-adds in one fused kernel, enough to outweigh its reads and
    writes. ``tf32``, ``attention``: whether their rates differ from those of other matrix products, and are measured.
    """

    matrix: int
    copied_nbytes: int
    elements: int
    chain: int
    tf32: bool
    attention: bool


class DeviceKind(ABC):
    """One kind of device. Methods get the ``torch.device``, since a machine may have several of a kind."""

    type: str
    """``torch.device.type``, which is also the name that ``--device`` accepts."""

    codegen: str
    """Inductor's code generator for it: "cpp", "triton", or "" for others. For these two a dry run writes no kernels,
    and only C++ kernels are merged into functions."""

    granularity: int = 1
    """Bytes: the allocator rounds requests up to a multiple of this."""

    is_host: bool = False
    """Whether it is the CPU. A step that uses the CPU and another device is planned for the other one."""

    processes_are_isolated: bool = False
    """Whether measurements in several processes at a time do not affect each other's bytes."""

    start_method: str = "spawn"
    """How ``multiprocessing`` starts the workers of a benchmark."""

    collective_backend: str = ""
    """The backend of ``torch.distributed`` that communicates only tensors on this device."""

    packs_convolution_weights: bool = False
    """Whether Inductor copies the weight of a convolution to channels last for each call."""

    sums_in_any_order: bool = True
    """Whether a scatter of floats adds in any order, so that the last bits of its results differ from run to run."""

    calibration: CalibrationSizes
    """The sizes for ``rematpass calibrate``."""

    # ---- which devices there are

    @abstractmethod
    def is_available(self) -> bool:
        """Whether this process can use a device of this kind."""

    @abstractmethod
    def current(self) -> torch.device:
        """The device of this kind that this process works on."""

    @abstractmethod
    def check_usable(self, device: torch.device) -> None:
        """Raise MeasureError, which says what is missing, unless this machine has ``device``."""

    @abstractmethod
    def name(self, device: torch.device) -> str:
        """The name of the model ("NVIDIA H200"); ``core.hardware.for_device`` finds the preset by it."""

    def label(self, device: torch.device) -> str:
        """The name in tables of results, with everything that makes seconds comparable: "cpu, 2 threads"."""
        return self.name(device)

    # ---- memory

    @abstractmethod
    def free_nbytes(self, device: torch.device) -> int:
        """Bytes that a step could still allocate, including what the allocator has reserved and does not use."""

    @abstractmethod
    def record(self, device: torch.device) -> AbstractContextManager[Recording]:
        """Record all allocations and releases inside the ``with``.

        Raises:
            MeasureError: they cannot be recorded, in general or now.
        """

    def allocated(self, nbytes: int) -> int:
        """The bytes that the allocator hands out for a request of ``nbytes``."""
        return -(-nbytes // self.granularity) * self.granularity

    def empty_cache(self, device: torch.device) -> None:  # noqa: B027  (nothing to do by default)
        """Return unused memory of the allocator to the device."""

    def peak_window(self, device: torch.device) -> PeakWindow:
        """A measurement of the peak of one call of a compiled graph."""
        return RecordedPeakWindow(lambda: self.record(device))

    def allocator_peak(
        self, device: torch.device, step: Callable[[Callable[[], None]], object]
    ) -> AllocatorPeak | None:
        """Run ``step`` and read the allocator's peak statistics; None, without running it, where there are none.

        ``step`` calls its argument between forward and backward.
        """
        return None

    # ---- workspace: bytes that a library call takes inside itself

    def can_measure_workspace(self, target: Any, dtypes: Set[torch.dtype], flops: int) -> bool:
        """Whether the op ``target`` may be called now to measure its workspace. ``flops``: of the call, if known."""
        return False

    def workspace(self, device: torch.device, call: Callable[[], object]) -> int:
        """Bytes at the highest point inside of ``call``, beyond its results; the arguments exist already.

        Raises:
            MeasureError: allocations cannot be recorded now.
        """
        with self.record(device) as recording:
            results = call()
        counted = live_bytes(recording.events, set())
        del results
        return max((c.nbytes for c in counted), default=0) - (counted[-1].nbytes if counted else 0)

    def library_settings(self) -> tuple[str, ...]:
        """Settings and versions by which libraries choose their algorithms; a part of the key of a plan."""
        return ()

    def workspace_settings(self) -> tuple[str, ...]:
        """Everything besides the call that its workspace depends on."""
        return self.library_settings()

    # ---- arithmetic and seconds

    def rounds_to_tf32(self, *, convolution: bool) -> bool:
        """Whether float32 products (those of convolutions, or those of matrices) run as TF32 now."""
        return False

    def synchronize(self, device: torch.device) -> None:  # noqa: B027  (nothing to do by default)
        """Wait until everything that was started on the device is done."""

    def call_seconds(self, device: torch.device, call: Callable[[], object]) -> float:
        """Seconds that the device takes for one call."""
        self.synchronize(device)
        start = time.perf_counter()
        call()
        self.synchronize(device)
        return time.perf_counter() - start

    # ---- state that decides what a step computes

    def random_states(self) -> list[torch.Tensor]:
        """The states of the generators of all devices of this kind; a step that draws a number changes one."""
        return []

    def fork_rng(self, device: torch.device) -> AbstractContextManager[None]:
        """Restore the random states of the CPU and of ``device`` at the end of the ``with``."""
        return torch.random.fork_rng(devices=[device], device_type=self.type)

    def autocast_enabled(self) -> bool:
        """Whether autocast is on for this kind of device."""
        return torch.is_autocast_enabled(self.type)
