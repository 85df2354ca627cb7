"""Pictures: they are drawn, labelled, and equal for equal measurements."""

import sys

import pytest

pytest.importorskip("matplotlib")

from rematpass.errors import MeasureError, ReportError
from rematpass.report.measurement import Measurement
from rematpass.report.pictures import (
    _budget_lines,
    _frame,
    _name,
    check,
    matplotlib,
    peak_against_budget,
    seconds_against_peak,
)

MIB = 2**20


def row(strategy, peak, ratio=None, **fields):
    return Measurement("m", strategy, "cpu", "2.13.0", peak=peak * MIB, step_ratio=ratio, **fields)


ROWS = [
    row("eager", 13, (1.0, 1.1, 1.2)),
    row("inductor", 11, (1.0, 1.0, 1.0)),
    row("inductor@0.2", 17, (1.1, 1.2, 1.3)),
    row("inductor+checkpoint", 7, (1.2, 1.3, 1.4)),
    row("remat@1", 11, (0.9, 1.0, 1.1), planned_peak=11 * MIB, floor=5 * MIB, ceiling=11 * MIB),
    row("remat@8388608B", 7, (1.1, 1.2, 1.3), planned_peak=7 * MIB, floor=5 * MIB, ceiling=11 * MIB),
]


def test_seconds_against_peak_is_drawn_reproducibly(tmp_path):
    path, again = tmp_path / "a.svg", tmp_path / "b.svg"
    assert seconds_against_peak(ROWS, "a heading", path)
    assert seconds_against_peak(ROWS, "a heading", again)
    text = path.read_text()
    assert text == again.read_text()
    for said in (
        "a heading",
        "Inductor 0.2",
        "Inductor, checkpointed",
        ">remat<",
        "measured peak of a training step, MiB",
    ):
        assert said in text


def test_a_quartile_far_away_does_not_flatten_the_others():
    quiet = [(0.9, 1.0, 1.1), (1.1, 1.2, 1.3)]
    bottom, top = _frame(quiet)
    assert bottom < 0.9
    assert 1.3 < top < 1.4
    low, high = _frame([*quiet, (0.1, 1.1, 7.0)])
    assert 0.8 < low < 1.0
    assert 1.2 < high < 1.4
    assert _frame([(1.0, 1.0, 1.0)]) == (0.95, 1.05)


def test_names_of_near_points_do_not_overlap():
    axes = matplotlib()(figsize=(8, 4.5), layout="constrained").subplots()
    axes.set(xlim=(0, 10), ylim=(0, 1))
    _name(axes, {"far": (2, 0.5), "upper": (5, 0.51), "lower": (5, 0.5), "third": (5.1, 0.505)})
    height = {note.get_text(): note.xyann[1] for note in axes.texts}
    assert height["far"] == height["lower"] == 5 < height["third"] < height["upper"]
    boxes = [note.get_window_extent() for note in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_without_times_no_file_is_written(tmp_path):
    assert not seconds_against_peak([row("eager", 13)], "a heading", tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_peak_against_budget_is_drawn_for_each_model(tmp_path):
    path = tmp_path / "a.svg"
    assert peak_against_budget({"one": ROWS, "two": ROWS[:3], "nothing": ROWS[:1]}, "a heading", path)
    text = path.read_text()
    for said in (">one<", ">two<", "activation_memory_budget", "remat, measured", "remat, planned"):
        assert said in text
    assert ">nothing<" not in text
    assert not peak_against_budget({"nothing": ROWS[:1]}, "a heading", tmp_path / "b.svg")


def test_byte_budgets_of_another_ladder_are_left_out():
    floor = row("remat@0", 5, planned_peak=5 * MIB, floor=5 * MIB, ceiling=11 * MIB)
    older = row("remat@7340032B", 3, planned_peak=3 * MIB, floor=3 * MIB, ceiling=12 * MIB)
    others = row("remat@7340032B", 6, planned_peak=6 * MIB, floor=5 * MIB, ceiling=11 * MIB, source="another planner")
    for foreign in (older, others):
        _, ours, planned = _budget_lines([*ROWS, floor, foreign])
        assert ours == planned == [(0.0, 5.0), (0.5, 7.0), (1.0, 11.0)]
    assert (4 / 9, 3.0) in _budget_lines([*ROWS, older])[1]


def test_the_file_name_selects_png(tmp_path):
    seconds_against_peak(ROWS, "a heading", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


class TestCheck:
    def test_an_unknown_format_is_refused(self, tmp_path):
        with pytest.raises(MeasureError, match=r"'.*a\.pdf' ends in neither \.svg nor \.png"):
            check(tmp_path / "a.pdf")

    def test_a_missing_directory_is_refused(self, tmp_path):
        with pytest.raises(MeasureError, match=r"there is no directory '.*none' to write 'a\.svg' to"):
            check(tmp_path / "none" / "a.svg")

    def test_missing_matplotlib_is_reported(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MeasureError, match=r"matplotlib, which is not installed: pip install 'rematpass\[bench\]'"):
            check(tmp_path / "a.svg")


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(ReportError, match=r"cannot write .*: Is a directory"):
        seconds_against_peak(ROWS, "a heading", tmp_path / "a.svg")
