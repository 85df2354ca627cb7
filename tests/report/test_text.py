import dataclasses
import io
import re

import pytest
from rich.console import Console
from support.reports import report_of, tiny_report

from rematpass.report.report import Point, Provenance
from rematpass.report.text import frontier_table, show, to_text
from rematpass.units import format_bytes


def test_the_headline_states_the_plan():
    lines = to_text(tiny_report()).splitlines()
    assert lines[:9] == [
        "graph 0/0",
        "budget          no limit",
        "planned peak    77 B  (floor 73 B, ceiling 84 B)",
        "saved           1 values of 11 B",
        "recomputed      1 ops, 2.00 s a step (+3.4%)",
        "a step          60.00 s, by the cost model for h100",
        "proven bound    no plan under this budget takes less than 57.00 s; this plan is at most 5.3% above it "
        "(proven for the cost model's seconds and backward's own ops in their order)",
        "more memory     7 B more would save 2.00 s of a step (3.3%).",
        "less memory     The next lower plan saves 4 B and costs 3.00 s more.",
    ]


def test_a_fallback_is_stated():
    assert "fallback        PlanError: it broke" in to_text(tiny_report(fallback="PlanError: it broke"))


def rows(text, title):
    """The cells of the table under a title, split at two or more spaces."""
    block = text.split(title)[1].split("\n\n\n")[0]
    return [re.split(r"\s{2,}", line.strip()) for line in block.splitlines()[4:] if line.strip()]


def test_the_frontier_is_sorted_by_peak_and_marks_this_plan():
    found = rows(to_text(tiny_report(saved_by_torch=[3])), "Frontier: peak and step time of each plan")
    assert found == [
        ["rung", "84 B", "58.00 s", "+0.0%", "+1.8%"],
        ["save all", "84 B", "58.00 s", "+0.0%", "+1.8%"],
        ["torch's default, in our order", "84 B", "60.00 s", "+3.4%", "+5.3%"],
        ["square root (Chen 2016)", "84 B", "61.00 s", "+5.2%", "+7.0%"],
        ["recompute all", "84 B", "63.00 s", "+8.6%", "+10.5%"],
        ["▶ this plan", "77 B", "60.00 s", "+3.4%", "+5.3%"],
        ["rung", "73 B", "63.00 s", "+8.6%", "+7.7%"],
    ]


def test_a_long_frontier_is_thinned_out_between_its_ends():
    report = tiny_report()
    rungs = tuple(Point("s", 1000 - i, 58.0 + i) for i in range(200))
    table = frontier_table(dataclasses.replace(report, frontier=rungs))
    assert 20 < len(table.rows) < 35
    peaks = list(table.columns[1].cells)
    assert {"1000 B", "801 B", "77 B"} <= set(peaks)


def test_values_are_sorted_by_bytes_with_fate_and_reason():
    text = to_text(tiny_report())
    found = rows(text, "The largest values (9 of 9 in memory; * at the peak)")
    assert found[0] == ["v9", "29 B", "[]", "returned by backward"]
    assert ["* v2", "7 B", "[]", "recomputed: costs 2.00 s instead of 7 B"] in found
    assert ["v3", "11 B", "[]", "saved: recomputing costs 3.00 s for 11 B"] in found


def test_the_picture_reaches_the_peak():
    report = report_of()
    text = to_text(report)
    picture = text.split("Memory over time")[1].split("forward")[0].splitlines()
    assert picture[0] == " (█ saved, ▓ recomputed, ▒ gradients, o outputs, ░ temporaries)"
    rows_, labels = [line[13:] for line in picture[1:13]], [line[:12].strip() for line in picture[1:13]]
    assert [label for label in labels if label] == [
        format_bytes(report.timeline.peak),
        format_bytes(report.timeline.peak // 2),
    ]
    assert set("".join(rows_)) <= set(" █▓▒o░")
    heights = [sum(row[c : c + 1].strip() != "" for row in rows_) for c in range(96)]
    assert max(heights) == 12
    assert rows_[-1].strip() != ""


def test_modules_are_indented_and_limited():
    text = to_text(report_of())
    block = text.split("Totals per module")[1]
    assert re.search(r"^ {3}blocks ", block, re.MULTILINE)
    assert re.search(r"^ {5}blocks\.1 ", block, re.MULTILINE)
    assert "blocks.1.mlp.0" not in block


@pytest.mark.parametrize("colour", [True, False])
def test_colours_appear_only_if_the_console_has_them(colour):
    out = io.StringIO()
    show(
        tiny_report(), Console(file=out, force_terminal=colour, color_system="standard" if colour else None, width=100)
    )
    assert ("\x1b[" in out.getvalue()) is colour
    assert "\x1b[" not in to_text(tiny_report())


@pytest.mark.parametrize("width", [60, 80, 100])
def test_numbers_are_never_cut_in_a_narrow_terminal(width):
    """Every table keeps all of its rows' numbers whole; names are folded instead."""
    report = report_of()
    text = to_text(report, width)
    sizes = {format_bytes(p.peak) for p in (*report.frontier, *report.others, report.chosen)}
    sizes |= {format_bytes(report.graph.values[a.value].nbytes) for a in report.accounts[:20]}
    sizes |= {format_bytes(n) for m in report.modules[:8] for n in (m.saved_nbytes, m.recomputed_nbytes, m.peak_nbytes)}
    assert [size for size in sizes if not re.search(rf"(?<![0-9.]){re.escape(size)}(?![0-9])", text)] == []
    assert "…" not in text
    tables = text.split("Frontier: ")[1]
    assert max(map(len, tables.splitlines())) <= width


def test_the_origin_of_a_report_stands_below_its_name():
    origin = Provenance("llama", "2026-11-30 12:00 UTC", (("rematpass", "0.1.0"), ("torch", "2.13.0")))
    lines = to_text(dataclasses.replace(tiny_report(), provenance=origin)).splitlines()
    assert lines[:3] == [
        "graph 0/0",
        "llama · 2026-11-30 12:00 UTC · rematpass 0.1.0, torch 2.13.0",
        "budget          no limit",
    ]
