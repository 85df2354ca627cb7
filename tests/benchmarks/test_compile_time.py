"""benchmarks/compile_time.py: the page and the store of first steps."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import compile_time
from compile_time import BASE, Row


def row(model, strategy, seconds, **fields):
    return Row(model, strategy, "cpu", "2.13", "", "2026-12-01", python=seconds - 1, compilers=1.0, **fields)


def test_the_page_has_ratios_per_model_with_median_and_worst():
    ours = [("a", 11), ("b", 30), ("c", 18)]
    rows = [row(m, BASE, 10.0) for m, _ in ours] + [row(m, "remat@0", float(s)) for m, s in ours]
    lines = compile_time.text(rows, ["a", "b", "c"], [BASE, "remat@0"]).splitlines()
    assert "| b | 10.0 | 3.00 |" in lines
    assert "| **median** |  | 1.80 |" in lines
    assert "| **worst** |  | 3.00 |" in lines


def test_a_row_that_failed_shows_its_error_and_has_no_ratio():
    failed = Row("a", "remat@0", "cpu", "2.13", "", "2026-12-01", error="ValueError: no")
    page = compile_time.text([row("a", BASE, 10.0), failed], ["a"], [BASE, "remat@0"])
    assert "| a | 10.0 |  |" in page.splitlines()
    assert "ValueError: no" in page


def test_what_the_store_has_is_not_measured_again(tmp_path, monkeypatch):
    measured = []

    def in_a_process(model, strategy, device):
        measured.append(strategy)
        return compile_time.blank(model, strategy, device, python=1.0, compilers=1.0)

    monkeypatch.setattr(compile_time, "in_a_process", in_a_process)
    store = tmp_path / "store.jsonl"
    for strategies in ([BASE], [BASE, "remat@0"]):
        rows, missing = compile_time.fill(store, ["mlp"], strategies, "cpu", until=float("inf"))
        assert ([r.strategy for r in rows], missing) == (strategies, 0)
    assert measured == [BASE, "remat@0"]
    assert [json.loads(line) for line in store.read_text().splitlines()] == [asdict(r) for r in rows]


def test_without_time_the_missing_rows_are_counted(tmp_path):
    assert compile_time.fill(tmp_path / "store.jsonl", ["mlp"], [BASE], "cpu", until=float("-inf")) == ([], 1)
