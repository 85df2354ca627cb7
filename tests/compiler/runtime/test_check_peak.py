"""A run that measures its own first steps: which steps, which bytes, and what it says."""

import logging

import pytest
import torch
from torch import nn

from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler import devices
from rematpass.compiler.devices.allocator_trace import AllocationEvent as Event
from rematpass.compiler.runtime.check_peak import check_steps
from rematpass.lab.measure.memory_and_time import measure_memory
from rematpass.lab.models.networks import chain
from rematpass.units import format_bytes


class Training:
    """A module under Dynamo's aot_eager, which has a backward of its own like Inductor's, behind ``check_steps``."""

    def __init__(self, planned: object, **options: object) -> None:
        torch._dynamo.reset()
        self.reports: list[tuple[int, int, str]] = []
        aot_eager = torch._dynamo.lookup_backend("aot_eager")

        def backend(module: object, inputs: object) -> object:
            told = options.pop("report", lambda *report: self.reports.append(report))
            return check_steps(aot_eager(module, inputs), planned, device="cpu", report=told, **options)

        self.weight = nn.Parameter(torch.ones(1009))
        self.forward = torch.compile(options.pop("function", lambda w: w.exp().sin()), backend=backend)
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.forward(self.weight).sum().backward()
        self.optimizer.step()


class TestCheckSteps:
    SAVED_AND_OUTPUT_AND_GRADIENT = 3 * 4 * 1009

    def test_measures_some_steps_after_the_first_and_then_no_more(self):
        training = Training(1 << 20, steps=2)
        counts = []
        for _ in range(5):
            training.step()
            counts.append(len(training.reports))
        assert counts == [0, 1, 2, 2, 2]
        assert all(planned == 1 << 20 for _, planned, _ in training.reports)

    def test_bytes_between_forward_and_backward_are_others(self):
        training = Training(1 << 20, steps=2)
        training.step()
        training.step()
        others = torch.ones(0)

        def loss(output: torch.Tensor) -> torch.Tensor:
            nonlocal others
            others = torch.ones(1 << 20)
            return output.sum()

        training.optimizer.zero_grad()
        loss(training.forward(training.weight)).backward()
        training.optimizer.step()
        (first, _, _), (second, _, _) = training.reports
        assert first == second
        assert self.SAVED_AND_OUTPUT_AND_GRADIENT <= first < 1 << 18

    def test_wording_of_more_than_planned(self, caplog):
        training = Training(1 << 10, steps=1, report=None, name="graph 0/0")
        with caplog.at_level(logging.INFO, logger="rematpass"):
            training.step()
            training.step()
        (entry,) = caplog.records
        assert entry.levelno == logging.WARNING
        assert entry.getMessage().startswith("graph 0/0, measured step 1: a peak of ")
        assert "more than the 1.00 KiB planned; lower the budget by " in entry.getMessage()

    def test_the_plan_may_depend_on_what_the_step_is_given(self):
        training = Training(lambda args: 7 * args[0].numel())
        for _ in range(3):
            training.step()
        assert [planned for _, planned, _ in training.reports] == [7 * 1009] * 2

    def test_hint_ends_the_sentence(self, caplog):
        training = Training(1 << 10, steps=1, report=None, hint=", or ask somebody")
        training.step()
        training.step()
        messages = [entry.getMessage() for entry in caplog.records if entry.name == "rematpass"]
        assert [message.endswith(" to stay under it, or ask somebody") for message in messages] == [True]

    def test_wording_of_within_the_plan(self, caplog):
        training = Training(1 << 20, steps=1, report=None, name="graph 0/0")
        with caplog.at_level(logging.INFO, logger="rematpass"):
            training.step()
            training.step()
        (entry,) = caplog.records
        assert entry.levelno == logging.INFO
        assert entry.getMessage().endswith("KiB, within the 1.00 MiB planned")

    def test_unplanned_graph_ends_the_check(self):
        training = Training(lambda args: None)
        for _ in range(3):
            training.step()
        assert training.reports == []

    def test_step_without_backward_is_passed_over(self):
        training = Training(1 << 20, steps=1)
        training.step()
        training.forward(training.weight)
        training.step()
        assert len(training.reports) == 1
        assert not torch.autograd._profiler_enabled()

    def test_without_gradients_nothing_is_measured(self):
        training = Training(1 << 20)
        training.step()
        with torch.no_grad():
            training.forward(training.weight)
        assert not torch.autograd._profiler_enabled()

    def test_users_profiler_goes_first(self, caplog):
        training = Training(1 << 20, steps=1)
        training.step()
        with torch.profiler.profile():
            training.step()
        assert training.reports == []
        assert "the check measures nothing in this step of the graph: a torch profiler is running" in caplog.text

    def test_profiler_that_does_not_start(self, caplog, monkeypatch):
        """On torch 2.11 it does not, in a process in which a backward that was measured has raised."""

        def start(_):
            raise RuntimeError("Can't disable Kineto profiler when it's not running")

        monkeypatch.setattr(torch.profiler.profile, "start", start)
        training = Training(1 << 20, steps=1)
        for _ in range(3):
            training.step()
        assert training.reports == []
        assert "in this step of the graph: torch's profiler does not start: Can't disable Kineto" in caplog.text

    def test_blocks_of_others_that_are_released_inside_do_not_count(self):
        window = devices.of("cpu").peak_window(torch.device("cpu"))
        window._count([Event(1, 1, 3), Event(2, 2, 5), Event(3, 2, -5)])
        assert window.peak == 8
        window._count([Event(4, 9, -1000), Event(5, 3, 7), Event(6, 1, -3), Event(7, 3, -7)])
        assert window.peak == 10

    def test_outputs_that_nobody_kept_are_gone_before_backward(self):
        window = devices.of("cpu").peak_window(torch.device("cpu"))
        with window.forward():
            kept, dropped = torch.ones(1009), torch.ones(4001)
        window.set_outputs((kept, dropped))
        del dropped
        with window.backward():
            more = torch.ones(2003)
        assert window.peak == 4 * max(1009 + 4001, 1009 + 2003)
        assert (kept.numel(), more.numel()) == (1009, 2003)

    @pytest.mark.skipif(torch.__version__ < "2.13", reason="its profiler does not start again in this process")
    def test_backward_that_raises_ends_the_check(self):
        training = Training(1 << 20, steps=3, function=lambda w: w * w)
        training.step()
        loss = training.forward(training.weight).sum()
        with torch.no_grad():
            training.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        for _ in range(3):
            training.step()
        assert training.reports == []
        assert not torch.autograd._profiler_enabled()


class Halves(nn.Module):
    """Two graphs: Dynamo breaks between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x).square().mean()


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_two_graphs_are_both_measured_while_spans_and_compiles_come_and_go(with_optimizer, caplog):
    """What crashed when one profiler ran from a graph's forward to its next: run after run, spans around every step."""
    caplog.set_level(logging.INFO, logger="rematpass")
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Halves()
    module.compile(backend=remat_aot_eager, options={"check": True, "memory_budget": 0})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(8):
        with torch.profiler.record_function("a step of the user's"):
            module(torch.ones(64, 16)).backward()
            if with_optimizer:
                optimizer.step()
            module.zero_grad()
    told = [record.getMessage() for record in caplog.records if ", measured step" in record.getMessage()]
    graphs = {message.partition(",")[0] for message in told}
    assert len(graphs) == 2
    assert len(told) == 6
    assert all("a peak of" in message for message in told)
    assert not torch.autograd._profiler_enabled()


def test_the_check_of_one_graph_takes_what_a_measured_step_takes(caplog):
    """The same figure as ``measure_memory``, but for what the loss outside of the graph takes."""
    caplog.set_level(logging.INFO, logger="rematpass")
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = chain(layers=4, width=32, segments=2)
    x = torch.randn(256, 32)
    module.compile(backend=remat_aot_eager, options={"check": True, "memory_budget": 0})
    for _ in range(4):
        module(x).backward()
        module.zero_grad()
    peak = measure_memory(lambda: module(x), module.parameters(), warm=0).peak
    told = [record.getMessage() for record in caplog.records if ", measured step" in record.getMessage()]
    assert len(told) == 3
    assert all(format_bytes(peak) in message or format_bytes(peak - 4) in message for message in told), (peak, told)


def test_a_view_of_an_input_does_not_lead_to_the_graph_before(caplog, monkeypatch):
    """Its node lies behind the view; a window around it would stand open inside of that graph's own."""
    monkeypatch.setenv("REMAT_CHECK", "1")
    caplog.set_level("INFO", logger="rematpass")
    torch._dynamo.reset()
    first = torch.compile(nn.Sequential(nn.Linear(64, 64), nn.GELU()), backend="remat_aot_eager")
    second = torch.compile(lambda h: (h.sin().exp(), h[:, :2]), backend="remat_aot_eager")
    for _ in range(4):
        y, view = second(first(torch.ones(128, 64)))
        (y.sum() + view.sum()).backward()
    told = [r.getMessage() for r in caplog.records]
    assert not [t for t in told if "measures nothing" in t]
    assert sum("measured step" in t for t in told) == 6
