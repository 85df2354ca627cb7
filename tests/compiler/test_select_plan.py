"""Which rung is taken if Inductor's peaks differ from the simulated ones."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest

from rematpass.budget import Budget, BudgetKind
from rematpass.compiler import select_plan
from rematpass.compiler.select_plan import Candidates
from rematpass.core.frontier import Default, Ladder, least_budget, select
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline
from rematpass.core.solve.ladder import Rung


@pytest.fixture(autouse=True)
def judged(monkeypatch):
    """The plans that the judge has seen, all of which it accepts; nothing is rewritten."""
    seen = []
    monkeypatch.setattr(select_plan, "verify", lambda graph, plan: seen.append(plan.solver))
    monkeypatch.setattr(select_plan, "emit", lambda captured, plan: (plan.solver, None))
    monkeypatch.setattr(select_plan, "step_facts", lambda captured: None)
    monkeypatch.setattr(select_plan, "rewrite_step", lambda fwd, bwd, facts, *, fuse: None)
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


def candidates(monkeypatch, exact):
    """``exact``: simulated peak -> Inductor's. Also returns the simulated peaks of the dry runs, in their order."""
    asked = []

    def dry_run(self, modules):
        simulated = int(modules[0][1:])
        asked.append(simulated)
        return Found(exact[simulated])

    monkeypatch.setattr(Candidates, "_dry_run", dry_run)
    return Candidates(captured(), fuse=True), asked


def captured(holds_outputs=True):
    """As much of a captured graph as candidates read."""
    return SimpleNamespace(graph=SimpleNamespace(holds_outputs=holds_outputs), fwd_outputs=())


def under(nbytes, ladder, found):
    """What a budget in bytes selects that allows a peak of ``nbytes``."""
    return select(ladder, Budget(BudgetKind.BYTES, nbytes=least_budget(nbytes, "cpu")), "cpu", found.of)


def test_the_fastest_rung_that_fits_is_judged_and_dry_run_once(monkeypatch, judged):
    found, asked = candidates(monkeypatch, {80: 81, 60: 60})
    rungs = ladder(100, 80, 60)
    for _ in range(2):
        assert under(85, rungs, found).candidate.rung.peak == 80
    assert asked == [80]
    assert judged == ["s80"]


def test_if_the_simulated_peak_is_too_low_the_next_rung_that_would_fit_is_taken(monkeypatch):
    found, asked = candidates(monkeypatch, {80: 96, 72: 86, 60: 72})
    assert under(80, ladder(100, 80, 72, 60), found).candidate.rung.peak == 60
    assert asked == [80, 60]  # 80 is wrong by a fifth, so 72 would not fit


def test_if_that_leaves_room_a_faster_rung_is_tried(monkeypatch):
    found, asked = candidates(monkeypatch, {90: 110, 80: 83, 70: 73, 60: 61})
    assert under(90, ladder(90, 80, 70, 60), found).candidate.rung.peak == 80
    assert asked == [90, 70, 80]  # 90 is wrong by a fifth, 70 by a twentieth


@pytest.mark.parametrize(("exact", "taken"), [(90, 80), (91, 70)])
def test_the_faster_rung_has_to_fit_as_well(exact, taken, monkeypatch):
    found, _ = candidates(monkeypatch, {90: 110, 80: exact, 70: 73})
    assert under(90, ladder(90, 80, 70, 60), found).candidate.rung.peak == taken


def test_under_a_fraction_a_peak_slightly_above_the_limit_is_accepted(monkeypatch):
    found, asked = candidates(monkeypatch, {1000: 1001, 1200: 1200})
    rungs = ladder(1200, 1000)
    selection = select(rungs, Budget(fraction=0.0), "cpu", found.of)
    assert (selection.candidate.peak, selection.limit) == (1001, 1000)
    assert not under(1000, rungs, found).fits
    assert asked == [1000]


@pytest.mark.parametrize(("holds", "peak"), [(True, 80), (False, 70)])
def test_outputs_count_if_the_caller_holds_them(holds, peak, monkeypatch):
    monkeypatch.setattr(Candidates, "_dry_run", lambda self, modules: Found(80, 70))
    floor = Candidates(captured(holds), fuse=True).of(ladder(75).rungs[0])
    assert (floor.peak, floor.peak_without_outputs) == (peak, 70)


def test_if_nothing_fits_the_floor_is_selected(monkeypatch):
    found, _ = candidates(monkeypatch, {100: 100, 80: 95})
    selection = under(90, ladder(100, 80), found)
    assert not selection.fits
    assert (selection.candidate.peak, selection.candidate.exact) == (95, True)


def test_without_a_fusing_compiler_there_is_no_dry_run():
    found = Candidates(captured(), fuse=False)
    candidate = under(85, ladder(100, 80), found).candidate
    assert (candidate.peak, candidate.exact, found.dry_run_seconds) == (80, False, 0.0)


def test_if_the_dry_run_fails_the_simulated_peak_stands(monkeypatch, caplog):
    def broken(*modules, num_fwd_outputs):
        raise ValueError("no such lowering")

    monkeypatch.setattr(select_plan, "dry_run_step", broken)
    with caplog.at_level(logging.INFO, "rematpass"):
        candidate = under(85, ladder(100, 80), Candidates(captured(), fuse=True)).candidate
    assert (candidate.peak, candidate.exact) == (80, False)
    assert "the dry run failed (ValueError: no such lowering); the simulated peak stands" in caplog.text


def test_torchs_own_choice_fits_no_budget_if_its_dry_run_fails(monkeypatch):
    known = ladder(100, 80)
    own = Rung(Plan("torch", (), (), ()), Timeline((), 0, (90,), (), 0.0, 0.0, (0,)))
    with_default = dataclasses.replace(known, default=Default(own, 70))
    monkeypatch.setattr(Candidates, "_dry_run", lambda self, modules: Found(int(modules[0][1:])) if modules else None)
    found = Candidates(captured(), fuse=True, default=(with_default.default, SimpleNamespace(modules=())))
    budget = Budget(BudgetKind.BYTES, nbytes=least_budget(95, "cpu"))
    selection = select(with_default, budget, "cpu", found.fitting)
    assert (selection.candidate.peak, selection.ceiling) == (80, 90)
    assert found.of(own).peak == 90  # without a limit there is no need to know
