"""Every allocation and every release of a span of code, with its address, in the order in which they happened.

On the CPU they come from the profiler's event tree, on CUDA from the allocator's own history. Both are exact, but
both carry traces of what came before: the profiler keeps the sizes of blocks that outlived an earlier recording and
reports their release with a size that is not theirs, and the allocator's history goes back further than the span. So
the bytes alive are counted here, from the addresses that were handed out inside the span; its own running totals are
not used. What stood before the span and is released inside it does not count.

Autograd runs a CPU backward on the thread that calls it, so one thread is recorded. Kernels' private scratch memory
(oneDNN, MKL) does not come from torch's allocator and is seen by neither.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rematpass.config import default_environment
from rematpass.errors import MeasureError

HISTORY_ENTRIES = 1_000_000


@dataclass(frozen=True)
class Event:
    """An allocation (``nbytes`` > 0) or a release (< 0) of the block at ``address``, at a wall-clock time in ns."""

    nanoseconds: int
    address: int
    nbytes: int


@dataclass
class Recording:
    """What ``record`` fills in when its span ends. ``marks``: the times in ns at which ``mark`` was called, by name."""

    events: tuple[Event, ...] = ()
    marks: dict[str, int] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Remember that this place in the code was reached now, on the clock of the events."""
        self.marks[name] = time.time_ns()
        with torch.profiler.record_function(_MARK + name):  # whose time replaces the one above on the CPU
            pass


_MARK = "rematpass::"


@contextmanager
def record(device: torch.device) -> Iterator[Recording]:
    """Record the span inside the ``with``; ``Recording.events`` is there once it has ended.

    Raises:
        MeasureError: the device is neither the CPU nor CUDA, or a profiler is running already or does not start.
    """
    if device.type == "cpu":
        with _record_cpu() as recording:
            yield recording
    elif device.type == "cuda":
        with _record_cuda(device) as recording:
            yield recording
    else:
        raise MeasureError(f"memory can be measured on cpu and cuda, not on {device.type!r}")


@contextmanager
def _record_cpu() -> Iterator[Recording]:
    if torch.autograd._profiler_enabled():
        raise MeasureError("a torch profiler is running, and there can be only one; stop it to measure memory")
    default_environment(KINETO_LOG_LEVEL="99")  # else each recording prints two lines that are no one's concern
    recording = Recording()
    with ExitStack() as stack:
        profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        )  # one cycle has nothing to accumulate, but torch 2.11 would warn that others are not
        try:
            stack.enter_context(profile)
        except RuntimeError as error:
            raise MeasureError(f"torch's profiler does not start: {error}") from error
        yield recording
    found: list[Event] = []
    todo: list[Any] = list(profile.profiler.kineto_results.experimental_event_tree())
    while todo:
        node = todo.pop()
        todo.extend(node.children)
        if node.name == "[memory]" and node.extra_fields.device.type == "cpu":
            block = node.extra_fields
            found.append(Event(node.start_time_ns, block.ptr, block.alloc_size))
        elif node.name.startswith(_MARK):
            recording.marks[node.name.removeprefix(_MARK)] = node.start_time_ns
    recording.events = tuple(sorted(found, key=lambda e: e.nanoseconds))


@contextmanager
def _record_cuda(device: torch.device) -> Iterator[Recording]:
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
    recording.events = tuple(cuda_events(traces[index], since))


def cuda_events(trace: Sequence[dict[str, Any]], since: int) -> Iterator[Event]:
    """The allocations and completed releases after ``since`` (ns) in one device's list of a memory snapshot."""
    for entry in trace:
        nanoseconds = entry["time_us"] * 1000
        sign = {"alloc": 1, "free_completed": -1}.get(entry["action"], 0)
        if sign and nanoseconds >= since:
            yield Event(nanoseconds, entry["addr"], sign * entry["size"])


@dataclass(frozen=True)
class AllocatedBytes:
    """What is alive right after one event: all bytes, and those of them that end up as parameter gradients."""

    nanoseconds: int
    nbytes: int
    gradients: int


def live_bytes(events: Sequence[Event], gradient_addresses: frozenset[int] | set[int]) -> tuple[AllocatedBytes, ...]:
    """The bytes alive over time, starting from zero before the first event.

    A block counts as gradient from its allocation on if it is at one of ``gradient_addresses`` and still alive at
    the end: an address can be handed out many times in a step, and only its last interval is the gradient.
    """
    last = {e.address: i for i, e in enumerate(events) if e.address in gradient_addresses}
    gradients = {i for i in last.values() if events[i].nbytes > 0}
    alive: dict[int, int] = {}
    total = of_gradients = 0
    moments = []
    for i, event in enumerate(events):
        total -= alive.pop(event.address, 0)
        if event.nbytes > 0:
            alive[event.address] = event.nbytes
            total += event.nbytes
        if i in gradients:
            of_gradients += event.nbytes
        moments.append(AllocatedBytes(event.nanoseconds, total, of_gradients))
    return tuple(moments)
