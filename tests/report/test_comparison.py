"""Tables of measurements: the text of each cell, with and without a measurement."""

from dataclasses import replace

from rematpass.report.comparison import COLUMNS, cells, markdown, same_peak, title
from rematpass.report.measurement import FAILED, INFEASIBLE, Measurement, Strategy

KIB = 1024
FULL = {"device": "cpu", "torch": "2.13.0", "model": "m"}
EAGER = Measurement(
    strategy="eager", peak=13 * KIB, gradients=3 * KIB, saved=7 * KIB, step_flops=30, eager_flops=30, forward_flops=10,
    gradient_error=0.0, gradient_reference="eager", step_ratio=(1.0, 1.5, 2.0), **FULL,
)  # fmt: skip
OURS = Measurement(
    strategy="remat@13312B", budget_nbytes=13 * KIB, planned_peak=11 * KIB, peak=11 * KIB, gradients=3 * KIB,
    saved=5 * KIB, step_flops=37, eager_flops=30, forward_flops=10, gradient_error=3e-7, gradient_reference="Inductor",
    step_ratio=(1.1, 1.2, 1.3), compile_seconds=17.0, planning_seconds=0.5, **FULL,
)  # fmt: skip
LIKE = Strategy("remat", budget="13312B", like="eager")


def one(strategy, *rows):
    texts, notes = cells([strategy], {row.strategy: row for row in rows})
    return dict(zip(["", *(column.title for column in COLUMNS)], texts[0], strict=True)), notes


def test_a_measured_row_has_all_figures():
    row, notes = one(LIKE, OURS)
    assert row == {
        "": "└ remat in as many bytes",
        "budget": "13.00 KiB",
        "planned": "11.00 KiB",
        "measured": "11.00 KiB",
        "less gradients": "8.00 KiB",
        "step / Inductor": "1.20 (1.10-1.30)",
        "saved": "5.00 KiB",
        "recomputed": "70.0%",
        "gradients off": "3e-07 *",
        "compile": "17.00 s",
        "plan": "500.00 ms",
    }
    assert notes == ["* compared with plain Inductor and its seed: dropout draws different numbers in a compiled model"]


def test_a_note_says_that_outputs_are_dropped():
    _, (note, _) = one(LIKE, replace(OURS, drops_outputs=True))
    assert note == (
        "byte budgets are set with REMAT_HOLD_OUTPUTS=0: a step returns its loss and drops forward's other outputs"
    )


def test_figures_that_a_peer_lacks_are_empty():
    row, notes = one(Strategy("eager"), EAGER)
    assert [row[name] for name in ("budget", "planned", "compile", "plan")] == [""] * 4
    assert (row["gradients off"], notes) == ("0e+00", [])


def test_missing_measurements_are_labelled():
    row, _ = one(Strategy("inductor", budget="0.2"))
    assert row.pop("") == "Inductor"
    assert row.pop("budget") == "0.2"
    assert set(row.values()) == {"not measured"}
    only_bytes, _ = one(Strategy("eager"), Measurement(strategy="eager", peak=KIB, gradients=0, **FULL))
    assert [only_bytes[n] for n in ("measured", "step / Inductor", "gradients off")] == ["1.00 KiB"] + [
        "not measured"
    ] * 2


def test_a_failed_row_and_an_infeasible_row_give_the_reason():
    failed = Measurement(strategy="inductor", status=FAILED, error="CppCompileError: no compiler", **FULL)
    row, notes = one(Strategy("inductor"), failed)
    assert row["measured"] == "failed"
    assert notes == ["Inductor failed: CppCompileError: no compiler"]
    below = Measurement(strategy="remat@13312B", status=INFEASIBLE, error="the floor is 17.00 KiB", **FULL)
    row, notes = one(LIKE, below)
    assert (row["measured"], row["planned"], notes) == ("the floor is 17.00 KiB", "", [])


def test_a_fallback_has_a_note():
    _, notes = one(Strategy("remat", budget="0"), Measurement(strategy="remat@0", fallback="PlanError: x", **FULL))
    assert notes == ["remat 0: the planner fell back: PlanError: x"]


def test_one_sentence_compares_bytes_and_seconds_at_equal_peaks():
    rows = {row.strategy: row for row in (EAGER, OURS)}
    assert same_peak([LIKE], rows) == [
        "Given the 13.00 KiB of eager, remat takes 11.00 KiB and 0.80 times its seconds."
    ]
    over = Measurement(strategy="remat@13312B", peak=14 * KIB, **FULL)
    assert same_peak([LIKE], {"eager": EAGER, over.strategy: over}) == [
        "Given the 13.00 KiB of eager, remat takes 14.00 KiB (1.00 KiB over the budget)."
    ]
    below = Measurement(strategy="remat@13312B", status=INFEASIBLE, error="the floor is 17.00 KiB", **FULL)
    assert same_peak([LIKE], {"eager": EAGER, below.strategy: below}) == [
        "Given the 13.00 KiB of eager, remat has no plan: the floor is 17.00 KiB."
    ]
    assert same_peak([LIKE], {}) == []


def test_markdown_has_a_line_per_row_and_the_notes():
    text = markdown([Strategy("eager"), LIKE], {row.strategy: row for row in (EAGER, OURS)})
    lines = text.splitlines()
    assert lines[0].startswith("|  | budget | planned | measured | less gradients | peak of others |")
    assert lines[2].startswith("| eager |  |  | 13.00 KiB | 10.00 KiB | not measured | 1.50 (1.00-2.00) |")
    assert lines[-1].startswith("- * compared with plain Inductor")


def test_titles_leave_out_the_budget():
    assert title(Strategy("inductor", checkpoint=True)) == "Inductor, checkpointed"
    assert title(Strategy("remat", budget="0")) == "remat"
