"""The page's structure; ``test_page_in_browser.py`` opens it in a browser."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
from support.graphs import chain
from support.reports import report_of, tiny_report

from rematpass.commands.plan_file import plan_graph
from rematpass.config import Config
from rematpass.report import page
from rematpass.report.page import data, shortened, to_html


class Reader(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.open, self.scripts = set(), [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.links += [v for k, v in attrs if k in ("src", "href", "action", "srcset") and v != "data:,"]
        if tag not in ("meta", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "script":
            self.scripts.append(text)


def table(columns, strings):
    cells = {k: [strings[i] for i in column] for k, column in columns["texts"].items()} | columns["numbers"]
    return [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]


def test_the_page_is_complete_and_self_contained():
    text = to_html(report_of())
    reader = Reader(text)
    assert reader.open == []
    assert reader.links == []
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|import\(", text)
    assert set(re.findall(r"https?://[^\s\"'`]+", text)) == {"http://www.w3.org/2000/svg"}  # a namespace
    assert {"frontier", "timeline", "values", "modules", "cards"} <= reader.ids
    assert "{{" not in text


def test_the_data_of_the_script_is_that_of_the_report():
    report = tiny_report()
    found = json.loads(Reader(to_html(report)).scripts[0])
    assert found == json.loads(json.dumps(data(report)))
    assert [(p["peak"], p["seconds"]) for p in found["frontier"]] == [(84, 58.0), (77, 60.0), (73, 63.0)]
    values, accounts = (table(found[name], found["strings"]) for name in ("values", "accounts"))
    told = {values[a["value"]]["name"]: (a["fate"], a["reason"]) for a in accounts}
    assert told["v3"] == ("saved", "saved: recomputing costs 3.00 s for 11 B")
    assert len(told) == len(report.accounts)
    runs, intervals = (table(found[name], found["strings"]) for name in ("runs", "intervals"))
    assert [r["live"] for r in runs] == list(report.timeline.live)
    assert [r["copy"] for r in runs] == [run.copy for run in report.timeline.runs]
    lives = {(values[t["value"]]["name"], t["copy"]): (t["born"], t["end"]) for t in intervals}
    assert lives == {(report.graph.values[o.value].name, o.copy): (o.born, o.end) for o in report.occupancy.occupants}


def test_text_from_a_model_cannot_become_markup():
    report = tiny_report(name="</script><script>alert(1)</script>")
    text = to_html(report)
    assert "<script>alert" not in text
    assert json.loads(Reader(text).scripts[0])["summary"]["graph"] == report.summary.graph
    evil = dataclasses.replace(report.summary, graph="</script><b>", budget="</script>\u2028")
    text = to_html(dataclasses.replace(report, summary=evil))
    assert text.count("</script>") == 2
    assert "&lt;/script&gt;&lt;b&gt;" in text
    assert json.loads(Reader(text).scripts[0])["summary"]["budget"] == "</script>\u2028"


@pytest.fixture(scope="module")
def long_report():
    graph = chain(1200, [7 + i % 5 for i in range(1200)])
    return plan_graph(graph, Config.read({"memory_budget": 0.5, "solver": "chen_sqrt"}, {}), "h100").report()


def test_a_large_graph_keeps_its_peak_and_its_largest_values(long_report, monkeypatch):
    for name in ("MOST_MOMENTS", "MOST_INTERVALS", "MOST_ACCOUNTS"):
        monkeypatch.setattr(page, name, 300)
    found = data(long_report)
    runs, intervals = (table(found[name], found["strings"]) for name in ("runs", "intervals"))
    assert len(runs) == 300
    assert max(r["live"] for r in runs) == runs[found["peak_at"]]["live"] == long_report.timeline.peak
    assert [sum(sizes) for sizes in zip(*found["by_role"], strict=True)] == [r["live"] for r in runs]
    assert sum(r["seconds"] for r in runs) == pytest.approx(sum(long_report.seconds), rel=1e-3)
    assert all(0 <= t["born"] <= t["end"] < 300 for t in intervals)
    assert len(table(found["accounts"], found["strings"])) == 300
    assert f"{len(long_report.accounts) - 300:,} smaller values are in the JSON report only." in found["left_out"]


def test_the_page_of_a_large_graph_is_at_most_half_a_megabyte(long_report):
    assert len(long_report.timeline.runs) > 2400
    assert len(to_html(long_report)) < 500_000


@pytest.mark.parametrize(
    ("source", "short"),
    [("/usr/lib/llama/modeling.py:372", "llama/modeling.py:372"), ("C:\\a\\b.py:3", "a/b.py:3"), ("", "")],
)
def test_a_file_is_named_with_its_directory(source, short):
    assert shortened(source) == short
