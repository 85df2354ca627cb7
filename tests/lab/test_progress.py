"""Progress: one line for each strategy where there is no terminal."""

import io

import pytest
from rich.console import Console

from rematpass.lab.progress import Watcher, label, outcome, progress_bar
from rematpass.report.measurement import FAILED, INFEASIBLE, Measurement, Strategy

ROW = Measurement("m", "inductor", "cpu", "2", peak=13 * 2**20, compile_seconds=17.0)
LIKE = Strategy("remat", budget="13631488B", like="inductor@0.2")


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=40)


def lines(console):
    return console.file.getvalue().splitlines()


def test_a_pipe_gets_one_line_per_strategy_as_it_is_done(console):
    with progress_bar(console) as bar:
        watcher = Watcher(console, bar, "llama", total=3)
        watcher.on_stage(Strategy("inductor"), "compiling")
        assert lines(console) == []
        watcher.on_row(Strategy("inductor"), ROW)
        assert lines(console) == ["llama, 0 s, 1 of at most 3: Inductor: peak 13.00 MiB, compiled in 17.00 s"]
        for stage in ("timing, round 1 of 2", "timing, round 2 of 2"):
            watcher.on_stage(Strategy("inductor"), stage)
        watcher.on_row(LIKE, ROW)
        watcher.end()
    assert [line.partition(" s, ")[2].partition(":")[0] for line in lines(console)[1:]] == [
        "taking step times in turns",
        "2 of at most 3",
    ]


def test_a_terminal_gets_a_bar_and_no_lines():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with progress_bar(console) as bar:
        watcher = Watcher(console, bar, "llama", total=3)
        watcher.on_stage(Strategy("inductor"), "compiling")
        watcher.on_row(Strategy("inductor"), ROW)
        assert (bar.tasks[0].completed, bar.tasks[0].description) == (1, "llama: Inductor: compiling")
        watcher.end()
        assert bar.tasks[0].completed == 3
    assert "peak" not in console.file.getvalue()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"status": FAILED, "error": "ValueError: odd"}, "failed: ValueError: odd"),
        ({"status": INFEASIBLE, "error": "the floor is 5.00 KiB"}, "no plan: the floor is 5.00 KiB"),
        ({"same_plan_as": "remat@1"}, "the same plan as remat 1"),
        ({"peak": 2048}, "peak 2.00 KiB"),
    ],
)
def test_the_outcome_in_a_few_words(fields, text):
    assert outcome(Measurement("m", "remat@0", "cpu", "2", **fields)) == text


def test_labels():
    assert label(Strategy("remat", budget="0")) == "remat 0"
    assert label(LIKE) == "remat in the 13.00 MiB of Inductor 0.2"
