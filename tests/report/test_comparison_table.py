"""The terminal's tables: whole numbers at any width, one table at 100 columns."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from test_comparison import EAGER, FULL, KIB, LIKE, OURS

from rematpass.report.comparison_table import gradients_note, tables
from rematpass.report.measurement import INFEASIBLE, Measurement, Strategy

MIB = KIB * KIB
LARGE = [
    (Strategy("eager"), replace(EAGER, peak=1003 * MIB)),
    (LIKE, replace(OURS, peak=967 * MIB, planned_peak=961 * MIB, compile_seconds=121.7, planning_seconds=13.1)),
    (
        Strategy("inductor", checkpoint=True),
        replace(OURS, strategy="inductor+checkpoint", peak=503 * MIB, step_ratio=(1.13, 2.17, 3.19)),
    ),
    (
        Strategy("remat", budget="0"),
        replace(OURS, strategy="remat@0", peak=401 * MIB, gradient_error=None, gradient_reference="Inductor"),
    ),
]
NUMBERS = [
    *("1003.00", "967.00", "961.00", "503.00", "401.00"),
    *("1.50 (1.00-2.00)", "1.20 (1.10-1.30)", "2.17 (1.13-3.19)"),
    *("70.0%", "3e-07 *", "ref. *", "121.7 s", "13.1 s", "17.0 s"),
]


def printed(width, pairs=LARGE):
    console = Console(width=width, file=io.StringIO())
    made, notes = tables([s for s, _ in pairs], {row.strategy: row for _, row in pairs if row}, width)
    for table in made:
        console.print(table)
    return console.file.getvalue(), len(made), notes


@pytest.mark.parametrize("width", [30, 60, 80, 100, 160])
def test_numbers_are_whole_at_every_width(width):
    text, _, _ = printed(width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for number in NUMBERS:
        assert number in text


@pytest.mark.parametrize(("width", "expected"), [(100, 1), (80, 2), (60, 3)])
def test_columns_that_do_not_fit_are_in_a_further_table(width, expected):
    text, count, _ = printed(width)
    assert count == expected
    assert text.count("eager") == expected


def test_bytes_have_the_unit_of_the_largest_peak():
    text, _, _ = printed(100, [(Strategy("eager"), EAGER), (LIKE, OURS)])
    assert "KiB" in text.splitlines()[1]
    assert "13.00 KiB" in text  # the budget
    assert "11.00" in text


def test_columns_without_figures_are_left_out():
    text, _, _ = printed(100, [(Strategy("eager"), replace(EAGER, step_ratio=None))])
    assert "measured" in text
    assert not any(title in text for title in ("step", "planned", "compile"))


def test_strategies_that_are_not_measured_have_a_dash():
    text, _, _ = printed(100, [(Strategy("eager"), EAGER), (Strategy("inductor"), None)])
    (line,) = [line for line in text.splitlines() if line.startswith("Inductor")]
    assert set(line.split()[1:]) == {"-"}


def test_budget_below_the_floor_is_a_note():
    below = Measurement(strategy="remat@2KiB", status=INFEASIBLE, error="the floor is 17.00 KiB", **FULL)
    text, _, notes = printed(100, [(Strategy("eager"), EAGER), (Strategy("remat", budget="2KiB"), below)])
    assert "no plan" in text
    assert notes == ["remat 2.00 KiB: no plan: the floor is 17.00 KiB"]


def test_gradients_are_a_note():
    assert gradients_note({"eager": EAGER}) == "Each peak includes 3.00 KiB of parameter gradients."
    assert gradients_note({}) == ""
