import json

import pytest
from support.reports import tiny_report

from rematpass.core.graph import JointGraph
from rematpass.errors import ReportError
from rematpass.report.atomic import write_text
from rematpass.report.files import slug, write
from rematpass.report.text import to_text


def test_a_report_has_five_files_named_after_graph_and_plan(tmp_path):
    report = tiny_report()
    paths = write(report, tmp_path / "made" / "reports")
    assert {form: path.relative_to(tmp_path).as_posix() for form, path in paths.items()} == {
        "html": "made/reports/graph-0-0-c0ffee.html",
        "text": "made/reports/graph-0-0-c0ffee.txt",
        "json": "made/reports/graph-0-0-c0ffee.json",
        "trace": "made/reports/graph-0-0-c0ffee.trace.json",
        "graph": "made/reports/graph-0-0-c0ffee.graph.json",
    }
    assert sorted(p.name for p in (tmp_path / "made" / "reports").iterdir()) == sorted(p.name for p in paths.values())
    assert paths["html"].read_text("utf-8").startswith("<!doctype html>")
    assert paths["text"].read_text("utf-8") == to_text(report)
    assert json.loads(paths["json"].read_text("utf-8"))["summary"]["plan_hash"] == "c0ffee"
    assert json.loads(paths["trace"].read_text("utf-8"))["traceEvents"]
    assert JointGraph.from_json(paths["graph"].read_text("utf-8")) == report.graph


def test_a_report_is_replaced_by_the_next(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "new")]


def test_what_cannot_be_written_says_why(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ReportError) as caught:
        write_text(tmp_path / "taken" / "a.txt", "text")
    assert str(caught.value) in {
        f"cannot write {tmp_path}/taken/a.txt: {reason}; give another directory"
        for reason in ("File exists", "Not a directory")
    }


@pytest.mark.parametrize(
    ("name", "file"), [("graph 0/0", "graph-0-0"), ("../../etc", "etc"), ("", "graph"), ("a.b_c-1", "a.b_c-1")]
)
def test_any_name_becomes_a_file_name(name, file):
    assert slug(name) == file
