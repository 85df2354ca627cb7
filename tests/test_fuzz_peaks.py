"""Random models under random budgets with fixed seeds, and tests of the fuzzer (``python tests/fuzz_peaks.py``)."""

import dataclasses

import fuzz_peaks
import pytest
from fuzz_peaks import Outcome, broken_promises, judge, shrink
from rich.console import Console
from support.fuzz_models import KINDS, write
from support.peaks import Choice
from support.programs import afresh

afresh = pytest.fixture(autouse=True)(afresh)

OWN = 1_000_000
KEPT = (
    Choice(1, None, OWN, OWN, exact=True, seconds=1.0),
    Choice(0.5, 750_000, 740_000, 740_000, exact=True, seconds=2.0),
    Choice(0, 500_000, 500_000, 500_000, exact=True, seconds=3.0),
    Choice(800_000, 800_000, 740_000, 740_000, exact=True, seconds=2.0),
    Choice(400_000, 400_000, floor=500_000),
)


def changed(place, **fields):
    choices = list(KEPT)
    choices[place] = dataclasses.replace(choices[place], **fields)
    return choices


def kinds(choices, own=OWN):
    return {(b.kind, b.budgets) for b in broken_promises(own, choices)}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_random_model_keeps_every_promise_under_every_budget(seed):
    outcome = judge(write(seed))
    assert not outcome.broken, outcome.text()
    assert len(outcome.choices) >= 7, outcome.invalid


def test_choices_that_keep_all_promises_are_not_reported():
    assert not kinds(KEPT)


@pytest.mark.parametrize(
    ("place", "fields", "found"),
    [
        (3, {"peak": 800_001, "planned": 800_001}, ("held", (800_000,))),
        (1, {"peak": 751_000, "planned": 751_000}, ("held", (0.5,))),
        (4, {"budget": 600_000, "limit": 600_000}, ("refused", (600_000,))),
        (4, {"floor": 500_001}, ("refused", (400_000,))),
        (2, {"peak": 745_000, "planned": 745_000, "limit": 746_000}, ("monotone", (0.5, 0))),
        (0, {"peak": 700_000, "planned": 700_000}, ("monotone", (1, 800_000))),
        (0, {"peak": OWN + 1, "planned": OWN + 1}, ("inductor", (1,))),
        (3, {"budget": 2 * OWN, "limit": 2 * OWN, "peak": OWN + 1}, ("inductor", (2 * OWN,))),
        (1, {"seconds": 3.1}, ("beaten", (0.5, 0))),
        (1, {"planned": 739_999}, ("planned", (0.5,))),
        (1, {"exact": False}, ("planned", (0.5,))),
        (2, {"error": "PlanError: no", "peak": -1}, ("error", (0,))),
    ],
)
def test_each_broken_promise_is_reported(place, fields, found):
    assert found in kinds(changed(place, **fields))


def test_a_peak_above_the_limit_is_found_in_a_real_program_and_shrunk_to_the_layers_it_needs(monkeypatch):
    """A planner that ignores byte budgets: it selects without a limit."""
    program = next(p for p in map(write, range(100)) if len(p.layers) == 2 and p.layers[0].kind == "Mlp")
    right = fuzz_peaks.Looker.choose

    def choose(looker, budget):
        unlimited = right(looker, 1)
        return dataclasses.replace(unlimited, budget=budget, limit=None if budget == 1 else int(budget))

    monkeypatch.setattr(fuzz_peaks.Looker, "choose", choose)
    monkeypatch.setattr(fuzz_peaks, "byte_budgets", lambda seed, floor, own: [floor // 2])
    outcome = judge(program)
    assert "held" in outcome.kinds
    small = shrink(outcome)
    assert len(small.program.layers) < 2
    assert "held" in small.kinds
    assert "torch.compile's own peak" in small.text()


def test_shrinking_keeps_the_layers_that_the_broken_promise_needs():
    program = write(0)
    needed = program.layers[0]

    def judge_it(candidate):
        broken = (fuzz_peaks.Broken("held", (0,)),) if needed in candidate.layers else ()
        return Outcome(candidate, broken=broken)

    assert set(map(str, shrink(judge_it(program), judge_it).program.layers)) == {str(needed)}


def test_a_seed_determines_the_program():
    assert write(17) == write(17)
    assert len({write(seed).text() for seed in range(20)}) == 20


def test_three_hundred_programs_contain_every_layer_and_head():
    programs = [write(seed) for seed in range(300)]
    assert {layer.kind for p in programs for layer in p.layers} == set(KINDS)
    assert {p.dtype for p in programs} == {"float32", "bfloat16", "autocast"}
    for setting in ("loss", "returns", "cap", "shift", "tied", "ignore", "wide", "reduction"):
        assert len({p.head.settings[setting] for p in programs}) >= 2
    assert {layer.frozen for p in programs for layer in p.layers} == {p.hold_outputs for p in programs} == {True, False}


def test_programs_that_keep_all_promises_are_counted(monkeypatch):
    monkeypatch.setattr(fuzz_peaks, "judge", lambda program: Outcome(program, OWN, KEPT))
    found = fuzz_peaks.fuzz(range(3), 1, lambda outcome: pytest.fail(outcome.text()), Console(quiet=True))
    assert found == {"kept": 3}
