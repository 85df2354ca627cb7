import dataclasses
import json
import re

import pytest
from support.graphs import Builder, three_layers
from support.reports import COSTS, report_of, tiny_report

from rematpass import __version__
from rematpass.core import frontier
from rematpass.core.frontier import Ladder
from rematpass.core.op import Origin
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.report.report import Point, Provenance, explain


def test_a_report_has_the_frontier_and_plans_to_compare_with():
    report = tiny_report()
    assert report.frontier == (Point("ladder", 84, 58.0), Point("ladder", 77, 60.0), Point("ladder", 73, 63.0))
    assert [p.name for p in report.others] == ["save all", "square root (Chen 2016)", "recompute all"]
    assert [p.seconds for p in report.others] == [58.0, 61.0, 63.0]
    assert report.chosen == Point("this plan", 77, 60.0)
    assert report.bound_curve == ((70, 60.0), (76, 57.0), (84, 57.0))
    assert [report.above_bound(p) for p in report.frontier] == pytest.approx([1 / 57, 3 / 57, 4.5 / 58.5])
    assert report.above_bound(Point("none can be here", 69, 60.0)) is None
    assert report.seconds == tuple(COSTS.run[run.op] for run in report.timeline.runs)


def test_the_default_plan_of_torch_comes_first_if_it_is_known():
    others = tiny_report(saved_by_torch=[3]).others
    assert others[0] == Point("torch's default, in our order", 84, 60.0)
    assert len(others) == 4


@pytest.mark.parametrize(
    ("rung", "more", "less"),
    [
        (
            0,
            "More memory would save no time: this is the fastest plan.",
            "The next lower plan saves 7 B and costs 2.00 s more.",
        ),
        (
            1,
            "7 B more would save 2.00 s of a step (3.3%).",
            "The next lower plan saves 4 B and costs 3.00 s more.",
        ),
        (2, "11 B more would save 5.00 s of a step (7.9%).", "No plan with a lower peak was found."),
    ],
)
def test_a_sentence_each_for_more_and_for_less_memory(rung, more, less):
    report = tiny_report(rung)
    assert (report.what_more_buys(), report.what_less_costs()) == (more, less)


def test_more_memory_is_offered_in_round_numbers():
    gib = 2**30
    rungs = (Point("s", 7 * gib, 5.0), Point("s", 5 * gib, 7.0), Point("s", 4 * gib, 10.0))
    report = dataclasses.replace(tiny_report(), frontier=rungs)
    summary = dataclasses.replace(report.summary, step_seconds=10.0)
    timeline = dataclasses.replace(report.timeline, live=(4 * gib,))
    assert dataclasses.replace(report, summary=summary, timeline=timeline).what_more_buys() == (
        "1.00 GiB more would save 3.00 s of a step (30.0%); 3.00 GiB more, 5.00 s (50.0%)."
    )


def test_parameters_are_counted_separately():
    assert tiny_report().held_nbytes == 5


def test_the_json_document_is_complete():
    report = tiny_report()
    found = json.loads(report.to_json())
    assert found["format"] == 1
    assert (found["model"], found["date"], found["versions"]) == ("", "", {})
    assert found["summary"] == json.loads(json.dumps(dataclasses.asdict(report.summary)))
    assert (found["hardware"], found["device"], found["bound"]) == ("h100", "cpu", [[70, 60], [76, 57], [84, 57]])
    assert "own ops in their order" in found["bound_assumes"]
    assert found["chosen"] == {"name": "this plan", "peak": 77, "seconds": 60.0, "above_bound": 60 / 57 - 1}
    assert [v["value"] for v in found["values"][:3]] == ["v9", "v8", "v7"]
    assert found["values"][0] == {
        "value": "v9",
        "id": 9,
        "fate": "gradient",
        "reason": "returned by backward",
        "seconds": 0.0,
        "in_memory": True,
        "at_peak": False,
        "nbytes": 29,
        "dtype": "",
        "shape": [],
        "op": "op6",
        "source": "",
        "module": "",
    }
    timeline = found["timeline"]
    assert [r["live"] for r in timeline["runs"]] == list(report.timeline.live)
    assert (timeline["first_backward"], timeline["peak_at"]) == (report.timeline.first_backward, 6)
    assert set(timeline["roles"]) == {"others", "saved", "recomputed", "gradients", "outputs", "temporaries"}
    assert {(t["value"], t["copy"], t["role"]) for t in timeline["intervals"]} >= {("v2", 1, "recomputed")}


def test_the_report_on_a_real_graph_is_consistent():
    report = report_of()
    assert report.graph.values[report.accounts[0].value].nbytes == max(v.nbytes for v in report.graph.values[31:])
    assert report.modules[0].saved_nbytes <= report.summary.saved_nbytes
    assert {m.path for m in report.modules} >= {"", "blocks", "blocks.0", "blocks.0.mlp.0", "head"}
    assert (
        report.chosen.peak == report.timeline.peak == sum(sizes[report.peak_at] for sizes in report.occupancy.by_role)
    )


def test_baselines_that_annotations_forbid_are_left_out():
    graph = three_layers(op1={"must_recompute": True, "never_recompute": "it draws"})
    problem = Problem(graph, COSTS)
    fine = Problem(three_layers(), COSTS)
    ladder = frontier.build(fine)
    report = explain(problem, ladder, ladder.rungs[0], tiny_report().summary, hardware="cpu")
    assert report.others == ()


def test_a_graph_without_ops_has_a_report():
    b = Builder()
    x = b.input(3)
    graph = b.build([x], [b.input(3, Origin.TANGENT)])
    problem = Problem(graph, dataclasses.replace(COSTS, run=(), keep=(0.0, 0.0)), fuse=False)
    ladder = frontier.build(problem)
    assert isinstance(ladder, Ladder)
    assert isinstance(ladder.rungs[0], Rung)
    report = explain(problem, ladder, ladder.rungs[0], tiny_report().summary, hardware="cpu")
    assert report.peak_at == 0
    assert json.loads(report.to_json())["timeline"]["runs"] == []


def test_the_origin_of_a_report_is_in_its_json():
    origin = Provenance.now("llama", torch="2.13.0")
    found = json.loads(dataclasses.replace(tiny_report(), provenance=origin).to_json())
    assert found["model"] == "llama"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", found["date"])
    assert found["versions"] == {"rematpass": __version__, "torch": "2.13.0"}
    assert dict(Provenance.now().versions) == {"rematpass": __version__}, "a plan from a file knows no torch"
