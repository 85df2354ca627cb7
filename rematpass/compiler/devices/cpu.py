"""The CPU: allocations are recorded by torch's profiler, and Inductor writes C++.

Autograd runs the backward of a CPU graph on the thread that calls it, so the recorder sees one thread. Memory that
kernels of oneDNN or MKL allocate privately does not come from torch's allocator and is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import psutil
import torch

from rematpass.compiler.devices.allocator_trace import MARK_PREFIX, AllocationEvent, Recording
from rematpass.compiler.devices.base import CalibrationSizes, DeviceKind
from rematpass.config import default_environment
from rematpass.errors import MeasureError

# A call with more takes longer than a few tenths of a second, and its workspace is not measured.
_MOST_FLOPS_PER_THREAD = 1e10
# BLAS reads rows and columns in place: in float32 and float64 these ops have no workspace.
_WITHOUT_WORKSPACE = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})


class Cpu(DeviceKind):
    type = "cpu"
    codegen = "cpp"
    is_host = True
    processes_are_isolated = True
    # Forks of a process that has imported everything, which takes seconds, and has done nothing else.
    start_method = "forkserver"
    packs_convolution_weights = True
    sums_in_any_order = False
    calibration = CalibrationSizes(
        matrix=1024, copied_nbytes=2**28, elements=2**22, chain=32, tf32=False, attention=False
    )

    def is_available(self) -> bool:
        return True

    def current(self) -> torch.device:
        return torch.device(self.type)

    def check_usable(self, device: torch.device) -> None:
        pass

    def name(self, device: torch.device) -> str:
        return self.type

    def label(self, device: torch.device) -> str:
        threads = torch.get_num_threads()
        return f"{self.type}, {threads} thread{'s' if threads > 1 else ''}"

    def free_nbytes(self, device: torch.device) -> int:
        return int(psutil.virtual_memory().available)

    @contextmanager
    def record(self, device: torch.device) -> Iterator[Recording]:
        if torch.autograd._profiler_enabled():
            raise MeasureError("a torch profiler is running, and there can be only one; stop it to measure memory")
        default_environment(KINETO_LOG_LEVEL="99")  # otherwise each recording prints two lines
        recording = Recording()
        with ExitStack() as stack:
            # acc_events has no effect on a profile of one cycle, but without it torch 2.11 warns about further cycles.
            profile = torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
            )
            try:
                stack.enter_context(profile)
            except RuntimeError as error:
                raise MeasureError(f"torch's profiler does not start: {error}") from error
            yield recording
        found: list[AllocationEvent] = []
        todo: list[Any] = list(profile.profiler.kineto_results.experimental_event_tree())
        while todo:
            node = todo.pop()
            todo.extend(node.children)
            if node.name == "[memory]" and node.extra_fields.device.type == self.type:
                block = node.extra_fields
                found.append(AllocationEvent(node.start_time_ns, block.ptr, block.alloc_size))
            elif node.name.startswith(MARK_PREFIX):
                recording.marks[node.name.removeprefix(MARK_PREFIX)] = node.start_time_ns
        recording.events = tuple(sorted(found, key=lambda e: e.nanoseconds))

    def can_measure_workspace(self, target: Any, dtypes: Set[torch.dtype], flops: int) -> bool:
        """A call takes as long as in a training step, so large ones are not made, nor those without a workspace."""
        has_none = target in _WITHOUT_WORKSPACE and dtypes <= {torch.float32, torch.float64}
        return not has_none and flops <= _MOST_FLOPS_PER_THREAD * torch.get_num_threads()

    def workspace_settings(self) -> tuple[str, ...]:
        return (str(torch.get_num_threads()),)

    def random_states(self) -> list[torch.Tensor]:
        return [torch.get_rng_state()]

    def fork_rng(self, device: torch.device) -> AbstractContextManager[None]:
        return torch.random.fork_rng(devices=[])
