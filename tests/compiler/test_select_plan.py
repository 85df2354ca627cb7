"""Which rung is taken when Inductor's word is another one than the simulator's; and the two of them on a real model."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch
from support.programs import afresh
from torch import nn

import rematpass
from rematpass.compiler import select_plan
from rematpass.compiler.select_plan import Probes
from rematpass.core.frontier import Ladder
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline
from rematpass.core.solve.ladder import Rung
from rematpass.lab.measure.memory_and_time import measure_memory

afresh = pytest.fixture(autouse=True)(afresh)


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    """The plans that the judge has seen, all of which it lets pass."""
    seen = []
    monkeypatch.setattr(select_plan, "verify", lambda graph, plan: seen.append(plan.solver))
    return seen


def ladder(*peaks):
    rungs = [
        Rung(Plan(f"s{p}", (), (), ()), Timeline((), 0, (p,), (), 0.0, float(i), (0,))) for i, p in enumerate(peaks)
    ]
    return Ladder(tuple(rungs))


@dataclasses.dataclass
class Found:
    peak_nbytes: int
    peak_nbytes_without_outputs: int = 0


def probes(monkeypatch, ladder, said):
    """``said``: simulated peak -> Inductor's; the rungs that are asked about are noted."""
    asked = []
    monkeypatch.setattr(select_plan, "emit", lambda captured, plan, *, fuse: plan.solver)

    def ask(self, modules):
        simulated = int(modules[1:])
        asked.append(simulated)
        return Found(said[simulated])

    monkeypatch.setattr(Probes, "_ask", ask)
    return Probes(captured(), ladder, fuse=True), asked


def captured(holds_outputs=True):
    """As much of a graph as probes look at."""
    graph = SimpleNamespace(holds_outputs=holds_outputs)
    return SimpleNamespace(graph=graph, fwd_outputs=())


def test_the_fastest_that_fits_is_judged_and_asked_about_once(monkeypatch, judged):
    found, asked = probes(monkeypatch, ladder(100, 80, 60), {80: 81, 60: 60})
    assert found.under(85).rung.peak == 80
    assert found.under(85).rung.peak == 80
    assert asked == [80]
    assert judged == ["s80"]


def test_where_the_simulator_is_too_low_the_next_that_would_fit_is_taken(monkeypatch):
    found, asked = probes(monkeypatch, ladder(100, 80, 72, 60), {80: 96, 72: 86, 60: 72})
    assert found.under(80).rung.peak == 60
    assert asked == [80, 60]  # 80 is wrong by a fifth, so 72 would not fit


def test_where_that_leaves_room_one_faster_is_tried(monkeypatch):
    said = {90: 110, 80: 83, 70: 73, 60: 61}
    found, asked = probes(monkeypatch, ladder(90, 80, 70, 60), said)
    assert found.under(90).rung.peak == 80
    assert asked == [90, 70, 80]  # 90 is wrong by a fifth, 70 by a twentieth


@pytest.mark.parametrize(("of_80", "taken"), [(90, 80), (91, 70)])
def test_the_faster_one_has_to_fit_as_well(of_80, taken, monkeypatch):
    found, _ = probes(monkeypatch, ladder(90, 80, 70, 60), {90: 110, 80: of_80, 70: 73})
    assert found.under(90).rung.peak == taken


def test_a_little_above_may_be_accepted(monkeypatch):
    found, asked = probes(monkeypatch, ladder(100, 80), {80: 81})
    assert found.under(80, accepted=82).peak == 81
    assert found.under(80) is None
    assert asked == [80]


@pytest.mark.parametrize(("holds", "peak"), [(True, 80), (False, 70)])
def test_outputs_count_where_the_caller_holds_them(holds, peak, monkeypatch):
    monkeypatch.setattr(select_plan, "emit", lambda captured, plan, *, fuse: plan.solver)
    monkeypatch.setattr(Probes, "_ask", lambda self, modules: Found(80, 70))
    found = Probes(captured(holds), ladder(75), fuse=True).floor
    assert (found.peak, found.peak_without_outputs) == (peak, 70)


def test_the_floor_is_the_last_word(monkeypatch):
    found, _ = probes(monkeypatch, ladder(100, 80), {100: 100, 80: 95})
    assert found.under(90) is None
    assert (found.floor.peak, found.floor.exact) == (95, True)


def test_without_a_fusing_compiler_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(select_plan, "emit", lambda captured, plan, *, fuse: plan.solver)
    found = Probes(captured(), ladder(100, 80), fuse=False)
    assert (found.under(85).peak, found.under(85).exact, found.seconds) == (80, False, 0.0)


def test_when_asking_fails_the_simulators_word_stands(monkeypatch, caplog):
    def broken(*modules, num_fwd_outputs):
        raise ValueError("no such lowering")

    monkeypatch.setattr(select_plan, "emit", lambda captured, plan, *, fuse: ())
    monkeypatch.setattr(select_plan, "dry_run_step", broken)
    with caplog.at_level(logging.INFO, "rematpass"):
        found = Probes(captured(), ladder(100, 80), fuse=True).under(85)
    assert (found.peak, found.exact) == (80, False)
    assert "the dry run failed (ValueError: no such lowering); the simulator's peak stands" in caplog.text


class Net(nn.Module):
    """Layers, their logits as an output beside the loss, and dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(61, 61), nn.GELU(), nn.LayerNorm(61)) for _ in range(6))
        self.head = nn.Linear(61, 89)

    def forward(self, x):
        for layer in self.layers:
            x = x + nn.functional.dropout(layer(x), 0.1)
        logits = self.head(x)
        return logits.square().mean(), logits


@pytest.mark.parametrize(
    ("keep", "hold"), [(False, 1), (True, 1), (False, 0)], ids=["outputs dropped", "outputs kept", "said to be dropped"]
)
@pytest.mark.parametrize("budget", [0, 0.5])
def test_planned_is_measured_but_for_the_loss_and_its_gradient(budget, keep, hold):
    torch.manual_seed(0)
    model, x = Net(), torch.randn(512, 61)
    options = {"memory_budget": budget, "hold_outputs": hold}
    compiled = torch.compile(model, backend="remat", options=options)
    kept = []

    def step():
        loss, logits = compiled(x)
        kept[:] = [logits] if keep else []
        return loss

    def without_the_last_one():
        kept.clear()
        return step()

    measured = measure_memory(without_the_last_one, list(model.parameters())).peak
    (summary,) = rematpass.plans(clear=True)
    assert summary.exact
    planned = summary.planned_peak if keep or not hold else summary.peak_without_outputs
    assert planned <= measured <= planned + 2 * 4  # autograd holds two numbers for as long as backward runs
