"""The two windows around forward and backward: which bytes count."""

import pytest
import torch

from rematpass.compiler import devices
from rematpass.compiler.devices.allocator_trace import AllocationEvent, Recording
from rematpass.compiler.devices.cuda import StatisticsPeakWindow
from rematpass.compiler.devices.peak_window import RecordedPeakWindow

CUDA = torch.device("cuda", 0)


class Recorder:
    """Records one list of events per window: (address, signed bytes)."""

    def __init__(self, *windows: list[tuple[int, int]]) -> None:
        self.windows = iter(windows)

    def __call__(self) -> "Recorder":
        return self

    def __enter__(self) -> Recording:
        events = (AllocationEvent(time, *change) for time, change in enumerate(next(self.windows)))
        return Recording(tuple(events))

    def __exit__(self, *_: object) -> None:
        pass


def test_releases_of_earlier_allocations_do_not_count():
    window = RecordedPeakWindow(Recorder([(1, 3), (2, 5), (2, -5)], [(9, -1000), (3, 7), (1, -3), (3, -7)]))
    with window.forward():
        pass
    assert window.peak == 8
    with window.backward():
        pass
    assert window.peak == 10


def test_outputs_released_by_the_caller_do_not_count_in_backward():
    window = devices.of("cpu").peak_window(torch.device("cpu"))
    with window.forward():
        kept, dropped = torch.ones(1009), torch.ones(4001)
    window.set_outputs((kept, dropped))
    del dropped
    with window.backward():
        more = torch.ones(2003)
    assert window.peak == 4 * max(1009 + 4001, 1009 + 2003)
    assert (kept.numel(), more.numel()) == (1009, 2003)


@pytest.mark.parametrize(("in_backward", "peak"), [(20, 30), (60, 53)])
def test_statistics_leave_out_what_was_allocated_before_and_between(in_backward, peak, monkeypatch):
    """100 bytes exist before forward, which peaks 30 above them and keeps 11; others then allocate 7 bytes."""
    allocated, highest = iter([100, 111, 118]), iter([130, 100 + in_backward])
    resets = []
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: next(allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(highest))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", resets.append)
    window = devices.of(CUDA).peak_window(CUDA)
    assert isinstance(window, StatisticsPeakWindow)
    with window.forward():
        pass
    assert window.peak == 30
    window.set_outputs(torch.ones(1))
    with window.backward():
        pass
    assert window.peak == peak
    assert resets == [CUDA, CUDA]
