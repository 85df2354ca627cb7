"""Reports for tests: of a tiny graph with known bytes, and of a real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from support.graphs import three_layers

from rematpass.commands.plan_file import plan_graph
from rematpass.config import Config
from rematpass.core.cost import Costs
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.solve.bound import Bound
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.report.report import Report, explain
from rematpass.report.summary import summarize

# The joint graph of the package's GPT, 2 layers of width 32 on 2 x 16 tokens, captured with torch 2.13.
TINY_GPT = Path(__file__).parents[1] / "data" / "tiny_gpt.graph.json"
COSTS = Costs(run=(2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), keep=(0.0,) * 10)


def tiny_report(rung: int = 1, name: str = "graph 0/0", saved_by_torch=None, **fields) -> Report:
    """Three plans of ``three_layers``: 84 bytes in 58 s, 77 in 60, and 73 in 63; the middle one is chosen.

    The peaks are invented, and so is the bound: 57 s, and 1 s more for every 2 bytes below 76, down to 70.
    """
    graph = dataclasses.replace(three_layers(), name=name)
    problem = Problem(graph, COSTS, fuse=False)
    plans = [schedule_late(graph, saved, "ladder") for saved in ([2, 3], [3], [])]
    rungs = [Rung(plan, problem.timeline(plan)) for plan in plans]
    peaks = (84, 77, 73)
    rungs = [_with_peak(r, peak) for r, peak in zip(rungs, peaks, strict=True)]
    ladder = Ladder(tuple(rungs))
    config = Config()
    summary = summarize(
        graph,
        ladder,
        rungs[rung],
        budget=config.memory_budget,
        limit=None,
        peaks=(rungs[rung].peak, rungs[rung].timeline.peak_without_outputs),
        exact=False,
        dry_run_seconds=0.0,
        planning_seconds=0.25,
        plan_hash="c0ffee",
        bound_seconds=57.0,
    )
    summary = dataclasses.replace(summary, **fields)
    report = explain(problem, ladder, rungs[rung], summary, hardware="h100", saved_by_torch=saved_by_torch)
    return dataclasses.replace(report, bound=Bound(((95.0, 0.5), (57.0, 0.0)), floor=70))


def _with_peak(rung: Rung, peak: int) -> Rung:
    """The rung with ``peak`` bytes at its highest position."""
    live = list(rung.timeline.live)
    live[live.index(max(live))] = peak
    return Rung(rung.plan, dataclasses.replace(rung.timeline, live=tuple(min(n, peak) for n in live)))


def report_of(path: Path = TINY_GPT, budget: object = 0.3, device: str = "h100") -> Report:
    graph = JointGraph.from_json(path.read_text("utf-8"))
    return plan_graph(graph, Config.read({"memory_budget": budget}, {}), device).report()
