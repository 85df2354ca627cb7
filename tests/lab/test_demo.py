"""``rematpass demo`` with stubbed measurements: the order of its steps, its verdict and its table."""

import io

import pytest
import torch
from rich.console import Console

from rematpass.lab import demo
from rematpass.lab.measure.memory_and_time import StepMemory

MIB = 2**20
PEAKS = {"eager": 101, "torch.compile": 97, "remat": 53}


def trainee(name, compile_it, batch, gradients=None):
    module = torch.nn.Linear(1, 1)
    return demo.Trainee(
        name=name,
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        memory=StepMemory(PEAKS[name] * MIB, 0, 3 * MIB, 5 * MIB, None, None, ()),
        gradients=gradients or {"weight": torch.ones(2)},
        compile_seconds=17.25 if compile_it else 0.0,
        planned_peak=53 * MIB if name == "remat" else None,
    )


@pytest.fixture
def calls(monkeypatch):
    """Stubs for everything that takes time; the list of their calls."""
    made = []

    def prepare(name, compile_it, batch):
        made.append((name, batch.device.type))
        return trainee(name, compile_it, batch)

    monkeypatch.setattr(demo, "warm_up", lambda device: made.append(("warm up", device.type)))
    monkeypatch.setattr(demo, "_prepare", prepare)
    losses = iter(range(100, 0, -1))
    monkeypatch.setattr(demo.Trainee, "update", lambda self, batch: self.losses.append(float(next(losses))))
    return made


def run(width=100, **options):
    console = Console(width=width, file=io.StringIO())
    code = demo.run(**{"budget": "0.25", "steps": 3, "device": "cpu", **options}, console=console)
    return code, console.file.getvalue()


def test_a_warm_up_on_the_same_device_precedes_every_measured_compilation(calls):
    assert run()[0] == 0
    assert calls == [("warm up", "cpu"), ("eager", "cpu"), ("remat", "cpu"), ("torch.compile", "cpu")]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_numbers_are_whole_at_every_width(calls, width):
    _, text = run(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in ("101.00 MiB", "97.00 MiB", "53.00 MiB", "17.25 s", "100.000"):
        assert number in text


def test_memory_that_does_not_fall_is_a_problem(calls, monkeypatch):
    monkeypatch.setitem(PEAKS, "remat", 97)
    code, text = run()
    assert code == 1
    assert "Problem: the peak is not lower than torch.compile's; try a smaller budget." in text


def test_wrong_gradients_are_a_problem(calls, monkeypatch):
    def prepare(name, compile_it, batch):
        return trainee(name, compile_it, batch, {"weight": torch.ones(2) + 0.1 * (name == "remat")})

    monkeypatch.setattr(demo, "_prepare", prepare)
    code, text = run()
    assert code == 1
    assert "Problem: gradients differ from eager mode's by 1.0e-01 of their largest entry." in text
