"""The allocations and releases during a span of code, and the bytes alive that follow from them.

The devices record the events (``DeviceKind.record``).

Bytes alive are counted from the addresses that were allocated inside the span, never from a recorder's own totals: both
recorders report events of earlier code. The profiler reports the release of a block that outlived an earlier recording
with a wrong size, and the history of the CUDA allocator reaches back before the span. Releases of blocks that were
allocated before the span are ignored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

MARK_PREFIX = "rematpass::"


@dataclass(frozen=True)
class AllocationEvent:
    """An allocation (``nbytes`` > 0) or a release (< 0) of the block at ``address``, at a wall-clock time in ns."""

    nanoseconds: int
    address: int
    nbytes: int


@dataclass
class Recording:
    """The result of ``DeviceKind.record``, complete once its span has ended.

    ``events``: in order of time. ``marks``: wall-clock times in ns at which ``mark`` was called, by name.
    """

    events: tuple[AllocationEvent, ...] = ()
    marks: dict[str, int] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Record the current time under ``name``, on the clock of the events."""
        self.marks[name] = time.time_ns()
        # The CPU's events carry the profiler's clock: its recorder replaces the time above by that of this span.
        with torch.profiler.record_function(MARK_PREFIX + name):
            pass


@dataclass(frozen=True)
class AllocatedBytes:
    """The bytes alive right after an event. ``gradients``: those of blocks that become parameter gradients."""

    nanoseconds: int
    nbytes: int
    gradients: int


def live_bytes(
    events: Sequence[AllocationEvent], gradient_addresses: frozenset[int] | set[int]
) -> tuple[AllocatedBytes, ...]:
    """The bytes alive after each event, starting from zero before the first.

    A block counts as a gradient from its allocation on if its address is in ``gradient_addresses`` and it is alive at
    the end. An address can be reused many times in a step; only its last block is the gradient.
    """
    last = {e.address: i for i, e in enumerate(events) if e.address in gradient_addresses}
    gradients = {i for i in last.values() if events[i].nbytes > 0}
    alive: dict[int, int] = {}
    total = gradient_total = 0
    counted = []
    for i, event in enumerate(events):
        total -= alive.pop(event.address, 0)
        if event.nbytes > 0:
            alive[event.address] = event.nbytes
            total += event.nbytes
        if i in gradients:
            gradient_total += event.nbytes
        counted.append(AllocatedBytes(event.nanoseconds, total, gradient_total))
    return tuple(counted)
