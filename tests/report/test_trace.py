import json
from collections import defaultdict

from support.reports import report_of, tiny_report

from rematpass.report.occupancy import ROLES
from rematpass.report.trace import to_trace


def events(report):
    found = defaultdict(list)
    document = json.loads(to_trace(report))
    assert document["displayTimeUnit"] == "ms"
    for event in document["traceEvents"]:
        found[event["ph"]].append(event)
    return found


def test_every_run_is_an_event_at_its_start():
    report = tiny_report()
    runs = events(report)["X"]
    assert [e["name"] for e in runs] == [report.graph.ops[run.op].name for run in report.timeline.runs]
    assert [e["dur"] for e in runs] == [s * 1e6 for s in report.seconds]
    assert [e["ts"] for e in runs] == [sum(report.seconds[:i]) * 1e6 for i in range(len(runs))]
    assert [e["args"]["bytes alive"] for e in runs] == list(report.timeline.live)


def test_forward_backward_and_recompute_are_separate_tracks():
    report = tiny_report()
    found = events(report)
    tracks = {e["tid"]: e["args"]["name"] for e in found["M"] if e["name"] == "thread_name"}
    by_track = defaultdict(list)
    for event in found["X"]:
        by_track[tracks[event["tid"]]].append(event["name"])
    assert by_track == {
        "forward": ["op0", "op1", "op2"],
        "backward": ["op4", "op3", "op5", "op6"],
        "recomputed in backward": ["op0"],
    }


def test_counters_add_up_to_the_live_bytes():
    report = report_of()
    counters = events(report)["C"]
    assert [sum(e["args"].values()) for e in counters] == list(report.timeline.live)
    assert {tuple(e["args"]) for e in counters} == {tuple(r.value for r in ROLES)}


def test_each_lifetime_begins_and_ends_once():
    report = report_of()
    found = events(report)
    begun, ended = ({e["id"]: e for e in found[ph]} for ph in "be")
    assert begun.keys() == ended.keys()
    assert len(begun) == len(found["b"]) == min(500, len(report.occupancy.occupants))
    assert all(begun[i]["ts"] <= ended[i]["ts"] and begun[i]["name"] == ended[i]["name"] for i in begun)
    assert begun[0]["args"]["bytes"] == max(o.nbytes for o in report.occupancy.occupants)
