"""The peak of a compiled graph, measured in two windows: one around its forward, one around its backward.

Only bytes allocated inside the windows count. Bytes allocated between them (the loss, other graphs) do not.
``runtime/check_peak.py`` opens the windows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from rematpass.compiler.devices.allocator_trace import AllocationEvent, Recording


class PeakWindow(ABC):
    """Measures one call of one graph. ``peak``: bytes, the maximum over the windows closed so far.

    Opening a window raises MeasureError where the device cannot be measured now.
    """

    peak: int

    @abstractmethod
    def forward(self) -> AbstractContextManager[None]:
        """Measure what runs inside the ``with``: the call of the forward graph."""

    @abstractmethod
    def set_outputs(self, outputs: Any) -> None:
        """The results of forward, given before they are returned: the caller may release them before backward."""

    @abstractmethod
    def backward(self) -> AbstractContextManager[None]:
        """Measure what runs inside the ``with``: the backward graph of the same call."""


class RecordedPeakWindow(PeakWindow):
    """The windows as two recordings of allocations; for a device whose recorder must not run in between."""

    def __init__(self, record: Callable[[], AbstractContextManager[Recording]]) -> None:
        self.peak = 0
        self._record = record
        self._alive: dict[int, int] = {}  # address -> bytes of the blocks that the windows allocated
        self._outputs: dict[int, StorageWeakRef] = {}

    @contextmanager
    def forward(self) -> Iterator[None]:
        with self._record() as recording:
            yield
        self._count(recording.events)

    def set_outputs(self, outputs: Any) -> None:
        for output in outputs if isinstance(outputs, Sequence) else [outputs]:
            if isinstance(output, torch.Tensor):
                storage = output.untyped_storage()
                self._outputs[storage.data_ptr()] = StorageWeakRef(storage)

    @contextmanager
    def backward(self) -> Iterator[None]:
        for address, storage in self._outputs.items():
            if storage.expired():
                self._alive.pop(address, None)
        with self._record() as recording:
            yield
        self._count(recording.events)

    def _count(self, events: Sequence[AllocationEvent]) -> None:
        total = sum(self._alive.values())
        self.peak = max(self.peak, total)
        for event in events:
            total -= self._alive.pop(event.address, 0)
            if event.nbytes > 0:
                self._alive[event.address] = event.nbytes
                total += event.nbytes
            self.peak = max(self.peak, total)
