"""CUDA GPUs: the caching allocator keeps statistics and a history, and Inductor writes Triton.

The history (``torch.cuda.memory._record_memory_history``, ``_snapshot``) is private; seen in torch 2.11 to 2.15.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from rematpass.compiler.devices.allocator_trace import AllocationEvent, Recording
from rematpass.compiler.devices.base import AllocatorPeak, CalibrationSizes, DeviceKind
from rematpass.compiler.devices.peak_window import PeakWindow
from rematpass.errors import MeasureError

HISTORY_ENTRIES = 1_000_000


class Cuda(DeviceKind):
    type = "cuda"
    codegen = "triton"
    granularity = 512  # kMinBlockSize of c10/cuda/CUDACachingAllocator
    start_method = "spawn"  # a fork of a process that has initialized CUDA cannot use it
    collective_backend = "nccl"
    calibration = CalibrationSizes(
        matrix=8192, copied_nbytes=2**30, elements=2**28, chain=256, tf32=True, attention=True
    )

    def is_available(self) -> bool:
        return torch.cuda.is_available()

    def current(self) -> torch.device:
        return torch.device(self.type, torch.cuda.current_device())

    def check_usable(self, device: torch.device) -> None:
        if not torch.cuda.is_available():
            raise MeasureError(f"this torch ({torch.__version__}) finds no CUDA device here; try --device cpu")
        if (device.index or 0) >= (count := torch.cuda.device_count()):
            raise MeasureError(f"there is no {device}: the machine has {count} CUDA device(s)")

    def name(self, device: torch.device) -> str:
        return torch.cuda.get_device_name(device)

    def free_nbytes(self, device: torch.device) -> int:
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

    @contextmanager
    def record(self, device: torch.device) -> Iterator[Recording]:
        recording = Recording()
        torch.cuda.synchronize(device)
        since = time.time_ns()
        torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=HISTORY_ENTRIES)
        try:
            yield recording
            torch.cuda.synchronize(device)
            traces = torch.cuda.memory._snapshot(device)["device_traces"]
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
        index = torch.cuda.current_device() if device.index is None else device.index
        recording.events = tuple(events_of_history(traces[index], since))

    def empty_cache(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            torch.cuda.empty_cache()

    def peak_window(self, device: torch.device) -> PeakWindow:
        return StatisticsPeakWindow(device)

    def allocator_peak(
        self, device: torch.device, step: Callable[[Callable[[], None]], object]
    ) -> AllocatorPeak | None:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()  # so that only the step's own reservations count
        torch.cuda.reset_peak_memory_stats(device)
        allocated, reserved = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        requested = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        between: list[int] = []
        step(lambda: between.append(torch.cuda.memory_allocated(device)))
        torch.cuda.synchronize(device)
        return AllocatorPeak(
            peak=torch.cuda.max_memory_allocated(device) - allocated,
            requested=torch.cuda.memory_stats(device)["requested_bytes.all.peak"] - requested,
            reserved=torch.cuda.max_memory_reserved(device) - reserved,
            saved=between[0] - allocated,
        )

    def can_measure_workspace(self, target: Any, dtypes: Set[torch.dtype], flops: int) -> bool:
        return torch.cuda.is_initialized()

    def workspace(self, device: torch.device, call: Callable[[], object]) -> int:
        """From the allocator's statistics, whose peak is reset. A call takes milliseconds."""
        with torch.cuda.device(device):
            call()  # what a library allocates on its first call and keeps is not workspace
            torch.cuda.reset_peak_memory_stats(device)
            results = call()
            torch.cuda.synchronize(device)  # an error of the kernel is raised here
            found = torch.cuda.memory_stats(device)
            del results
        return int(found["requested_bytes.all.peak"] - found["requested_bytes.all.current"])

    def library_settings(self) -> tuple[str, ...]:
        """Those of cuDNN, whose algorithms differ in their workspace."""
        cudnn: Any = torch.backends.cudnn
        return tuple(map(str, (cudnn.version(), cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision)))

    def rounds_to_tf32(self, *, convolution: bool) -> bool:
        """cuDNN rounds by default, cuBLAS only when asked to."""
        library: Any = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
        return bool(library.fp32_precision == "tf32")

    def synchronize(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def call_seconds(self, device: torch.device, call: Callable[[], object]) -> float:
        """Between two events on the stream, so without the time that Python takes to launch the kernels."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def random_states(self) -> list[torch.Tensor]:
        return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def fork_rng(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[device])


class StatisticsPeakWindow(PeakWindow):
    """The windows as differences of the allocator's statistics, whose peak is reset at the start of each."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peak = 0
        self._before = torch.cuda.memory_allocated(device)
        self._after_forward = 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        self._after_forward = torch.cuda.memory_allocated(self.device)

    def set_outputs(self, outputs: Any) -> None:
        pass  # the statistics follow them

    @contextmanager
    def backward(self) -> Iterator[None]:
        between = max(0, torch.cuda.memory_allocated(self.device) - self._after_forward)  # allocated by others
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        self.peak = max(self.peak, torch.cuda.max_memory_allocated(self.device) - self._before - between)


def events_of_history(trace: Sequence[dict[str, Any]], since: int) -> Iterator[AllocationEvent]:
    """The allocations and completed releases after ``since`` (ns) in one device's part of a memory snapshot."""
    for entry in trace:
        nanoseconds = entry["time_us"] * 1000
        sign = {"alloc": 1, "free_completed": -1}.get(entry["action"], 0)
        if sign and nanoseconds >= since:
            yield AllocationEvent(nanoseconds, entry["addr"], sign * entry["size"])
