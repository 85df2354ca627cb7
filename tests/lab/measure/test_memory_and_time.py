"""Measured bytes against counts by hand, measured seconds against a fake clock."""

import pytest
import torch
from torch import nn

from rematpass.compiler.devices import record
from rematpass.errors import MeasureError
from rematpass.lab.measure import memory_and_time
from rematpass.lab.measure.memory_and_time import Timing, compile_seconds, interleaved_medians, measure_memory, run_step
from rematpass.lab.models.networks import chain


class TestMeasureMemory:
    def test_peak_saved_and_gradients_to_the_byte(self):
        weight = nn.Parameter(torch.ones(1009))
        memory = measure_memory(lambda: weight.exp().sum(), [weight])
        result, loss, seed = 4 * 1009, 4, 4
        assert memory.saved == result + loss
        assert memory.gradients == result
        assert memory.peak == result + loss + seed + result
        assert memory.peak_other == result + loss + seed
        assert memory.peak_less_gradients == memory.peak - result
        assert memory.reserved is None

    def test_history_ends_with_the_gradients_and_contains_the_peak(self):
        weight = nn.Parameter(torch.ones(1009))
        memory = measure_memory(lambda: weight.exp().sum(), [weight])
        assert max(m.nbytes for m in memory.history) == memory.peak
        assert memory.history[-1].gradients == 4 * 1009

    def test_saved_values_of_a_chain(self):
        module = chain(layers=5, width=16, segments=5)
        x = torch.randn(64, 16)
        memory = measure_memory(lambda: module(x), module.parameters())
        assert memory.saved == 5 * 4 * 64 * 16 + 4
        assert memory.gradients == 5 * 4 * (16 * 16 + 16)

    def test_a_peak_does_not_depend_on_earlier_measurements(self):
        module = chain(layers=3, width=16, segments=3)
        inputs = torch.randn(64, 16), torch.randn(128, 16)

        def peak(x: torch.Tensor) -> int:
            return measure_memory(lambda: module(x), module.parameters(), warm=0).peak

        small, large = map(peak, inputs)
        assert small < large
        assert [peak(x) for x in inputs * 3] == [small, large] * 3

    def test_gradients_are_none_afterwards(self):
        weight = nn.Parameter(torch.ones(7))
        measure_memory(lambda: weight.exp().sum(), [weight])
        assert weight.grad is None

    def test_another_running_profiler_is_refused(self):
        weight = nn.Parameter(torch.ones(7))
        with torch.profiler.profile(), pytest.raises(MeasureError, match=r"a torch profiler is running, .* stop it"):
            measure_memory(lambda: weight.exp().sum(), [weight])

    def test_a_device_that_cannot_be_measured_is_refused(self):
        with pytest.raises(MeasureError, match="on cpu and cuda, not on meta"), record(torch.device("meta")):
            pass

    @pytest.mark.gpu
    def test_cuda_statistics_and_history_agree(self):
        module = chain(layers=5, width=256, segments=5).cuda()
        x = torch.randn(1024, 256, device="cuda")
        memory = measure_memory(lambda: module(x), module.parameters(), device="cuda")
        assert memory.saved == 5 * 4 * 1024 * 256 + 512
        assert memory.gradients == 5 * 4 * (256 * 256 + 256)
        assert 0 < memory.requested <= memory.peak
        assert memory.reserved > 0  # less than the peak if existing segments have room
        assert abs(max(m.nbytes for m in memory.history) - memory.peak) <= 512 * len(memory.history)


class TestRunStep:
    @pytest.mark.parametrize(
        ("step", "message"),
        [
            (lambda: {"loss": 1}, "the step returned dict; return the loss, a tensor with one element"),
            (lambda: None, "the step returned NoneType; return the loss"),
            (lambda: torch.ones(2, 3), r"the step returned a tensor of shape \(2, 3\); return the loss"),
            (lambda: torch.ones(()), "the loss does not require a gradient, so there is nothing to train"),
            (lambda: nn.Parameter(torch.ones(())) * 2, "none of the model's parameters a gradient"),
        ],
    )
    def test_an_invalid_step_is_refused(self, step, message):
        with pytest.raises(MeasureError, match=message):
            run_step(step, [nn.Parameter(torch.ones(3))])

    def test_gradients_do_not_accumulate(self):
        weight = nn.Parameter(torch.ones(3))
        for _ in range(2):
            run_step(lambda: weight.sum(), [weight])
        assert weight.grad.tolist() == [1, 1, 1]


class Clock:
    """A fake clock that only ``work`` advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.calls: list[str] = []
        monkeypatch.setattr(memory_and_time.time, "perf_counter", lambda: self.now)

    def work(self, name: str, *seconds: float):
        left = list(seconds)

        def run() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


class TestSeconds:
    def test_each_round_starts_with_another_run(self, monkeypatch):
        clock = Clock(monkeypatch)
        interleaved_medians({name: clock.work(name, 1) for name in "abc"}, rounds=4)
        assert "".join(clock.calls) == "abcbcacababc"

    def test_medians_and_quartiles(self, monkeypatch):
        clock = Clock(monkeypatch)
        found = interleaved_medians({"a": clock.work("a", 5, 3, 100, 7, 4), "b": clock.work("b", 2)}, rounds=5)
        assert found["a"].median == 5
        assert found["a"].spread == (4, 7)
        assert found["b"].seconds == (2, 2, 2, 2, 2)

    def test_quotients_within_a_round_cancel_slow_phases(self):
        assert Timing((3, 30, 6)).relative_to(Timing((2, 20, 4))).median == 1.5

    def test_one_run_has_no_spread(self):
        assert Timing((3,)).spread == (3, 3)

    def test_after_round_is_called_once_per_round(self, monkeypatch):
        rounds = []
        interleaved_medians({"a": lambda: None}, rounds=3, after_round=lambda: rounds.append(1))
        assert len(rounds) == 3

    def test_compile_seconds_are_the_first_call_less_the_fastest_warm_one(self, monkeypatch):
        assert compile_seconds(Clock(monkeypatch).work("a", 11, 3, 2), warm=2) == 9

    def test_compile_seconds_are_never_negative(self, monkeypatch):
        assert compile_seconds(Clock(monkeypatch).work("a", 1, 3), warm=1) == 0
