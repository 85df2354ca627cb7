"""REMAT_CHECK: which steps are measured, which bytes count, and what is reported."""

import logging

import pytest
import torch
from torch import nn

from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.runtime.check_peak import check_steps
from rematpass.lab.measure.memory_and_time import measure_memory
from rematpass.lab.models.networks import chain
from rematpass.units import format_bytes


class Training:
    """A function under ``check_steps``, compiled by aot_eager, whose backward is one node as it is with Inductor."""

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

    def test_some_steps_after_the_first_are_measured(self):
        training = Training(1 << 20, steps=2)
        counts = []
        for _ in range(5):
            training.step()
            counts.append(len(training.reports))
        assert counts == [0, 1, 2, 2, 2]
        assert all(planned == 1 << 20 for _, planned, _ in training.reports)

    def test_bytes_allocated_between_forward_and_backward_do_not_count(self):
        training = Training(1 << 20, steps=2)
        training.step()
        training.step()
        between = torch.ones(0)

        def loss(output: torch.Tensor) -> torch.Tensor:
            nonlocal between
            between = torch.ones(1 << 20)
            return output.sum()

        training.optimizer.zero_grad()
        loss(training.forward(training.weight)).backward()
        training.optimizer.step()
        (first, _, _), (second, _, _) = training.reports
        assert first == second
        assert self.SAVED_AND_OUTPUT_AND_GRADIENT <= first < 1 << 18

    def test_message_for_a_peak_above_the_plan(self, caplog):
        training = Training(1 << 10, steps=1, report=None, name="graph 0/0")
        with caplog.at_level(logging.INFO, logger="rematpass"):
            training.step()
            training.step()
        (entry,) = caplog.records
        assert entry.levelno == logging.WARNING
        assert entry.getMessage().startswith("graph 0/0, measured step 1: a peak of ")
        assert "more than the 1.00 KiB planned; lower the budget by " in entry.getMessage()

    def test_the_planned_peak_may_depend_on_the_arguments(self):
        training = Training(lambda args: 7 * args[0].numel())
        for _ in range(3):
            training.step()
        assert [planned for _, planned, _ in training.reports] == [7 * 1009] * 2

    def test_the_hint_is_appended_to_the_message(self, caplog):
        training = Training(1 << 10, steps=1, report=None, hint=", or ask somebody")
        training.step()
        training.step()
        messages = [entry.getMessage() for entry in caplog.records if entry.name == "rematpass"]
        assert [message.endswith(" to stay under it, or ask somebody") for message in messages] == [True]

    def test_message_for_a_peak_within_the_plan(self, caplog):
        training = Training(1 << 20, steps=1, report=None, name="graph 0/0")
        with caplog.at_level(logging.INFO, logger="rematpass"):
            training.step()
            training.step()
        (entry,) = caplog.records
        assert entry.levelno == logging.INFO
        assert entry.getMessage().endswith("KiB, within the 1.00 MiB planned")

    def test_an_unknown_planned_peak_ends_the_check(self):
        training = Training(lambda args: None)
        for _ in range(3):
            training.step()
        assert training.reports == []

    def test_a_step_without_backward_is_not_counted(self):
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

    def test_a_step_under_the_users_profiler_is_skipped(self, caplog):
        training = Training(1 << 20, steps=1)
        training.step()
        with torch.profiler.profile():
            training.step()
        assert training.reports == []
        assert "the check cannot measure this step of the graph: a torch profiler is running" in caplog.text

    def test_a_step_is_skipped_if_the_profiler_does_not_start(self, caplog, monkeypatch):
        """As on torch 2.11, in a process in which a measured backward has raised."""

        def start(_):
            raise RuntimeError("Can't disable Kineto profiler when it's not running")

        monkeypatch.setattr(torch.profiler.profile, "start", start)
        training = Training(1 << 20, steps=1)
        for _ in range(3):
            training.step()
        assert training.reports == []
        assert "measure this step of the graph: torch's profiler does not start: Can't disable Kineto" in caplog.text

    @pytest.mark.skipif(torch.__version__ < "2.13", reason="the profiler would not start again in this process")
    def test_a_backward_that_raises_ends_the_check(self):
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
    """Two graphs, with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        return self.second(x).square().mean()


@pytest.mark.parametrize("with_optimizer", [True, False])
def test_two_graphs_are_measured_while_spans_begin_and_end(with_optimizer, caplog):
    """With spans around every step: a profiler that ran from one call to the next would crash the process."""
    caplog.set_level(logging.INFO, logger="rematpass")
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = Halves()
    module.compile(backend=remat_aot_eager, options={"check": True, "memory_budget": 0})
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(8):
        with torch.profiler.record_function("a user's step"):
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


def test_the_check_of_one_graph_agrees_with_measure_memory(caplog):
    """Except for the bytes of the loss, which is computed outside of the graph."""
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


def test_a_view_of_an_input_does_not_lead_to_the_previous_graph(caplog, monkeypatch):
    """Its node is behind the view; a window around it would overlap the window of that graph."""
    monkeypatch.setenv("REMAT_CHECK", "1")
    caplog.set_level("INFO", logger="rematpass")
    torch._dynamo.reset()
    first = torch.compile(nn.Sequential(nn.Linear(64, 64), nn.GELU()), backend="remat_aot_eager")
    second = torch.compile(lambda h: (h.sin().exp(), h[:, :2]), backend="remat_aot_eager")
    for _ in range(4):
        y, view = second(first(torch.ones(128, 64)))
        (y.sum() + view.sum()).backward()
    told = [r.getMessage() for r in caplog.records]
    assert not [t for t in told if "cannot measure" in t]
    assert sum("measured step" in t for t in told) == 6
