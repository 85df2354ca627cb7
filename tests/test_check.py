"""A run that measures its own first steps: which steps, which bytes, and what it says."""

import logging

import torch
from torch import nn

from rematpass.lab.allocations import Event, Recording
from rematpass.lab.check import check_steps, own_events


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
        self.forward = torch.compile(lambda w: w.exp().sin(), backend=backend)
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

    def test_wording_of_within_the_plan(self, caplog):
        training = Training(1 << 20, steps=1, report=None, name="graph 0/0")
        with caplog.at_level(logging.INFO, logger="rematpass"):
            training.step()
            training.step()
        (entry,) = caplog.records
        assert entry.levelno == logging.INFO
        assert entry.getMessage().endswith("KiB, within the 1.00 MiB planned")

    def test_unplanned_graph_ends_the_check(self):
        training = Training(lambda: None)
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

    def test_own_events_are_those_of_forward_and_backward(self):
        marks = {"forward done": 10, "backward starts": 20, "backward done": 30}
        inside, between, later, after = Event(1, 1, 3), Event(11, 2, 5), Event(21, 3, 7), Event(31, 4, 11)
        released, of_others = Event(22, 1, -3), Event(23, 2, -5)
        found = own_events(Recording((inside, between, later, released, of_others, after), marks))
        assert list(found) == [inside, later, released]
