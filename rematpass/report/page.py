"""The report as one HTML page: self-contained, works offline, and follows the reader's light or dark setting.

``to_html`` combines the parts in ``assets/`` and the data into one file. The size of a page is bounded: of thousands of
ops it keeps the moments with the most bytes, of thousands of values the largest. The JSON report has all of them.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import re
from bisect import bisect_left, bisect_right
from importlib.resources import files
from typing import Any

from rematpass.core.solve.bound import ASSUMES
from rematpass.report.layers import clean
from rematpass.report.occupancy import ROLES, Occupant
from rematpass.report.report import Report
from rematpass.units import format_bytes

MOST_MOMENTS, MOST_INTERVALS, MOST_ACCOUNTS = 3000, 3000, 1500
_SCRIPTS = ("common.js", "frontier.js", "timeline.js", "tables.js", "main.js")


def to_html(report: Report) -> str:
    """The complete page."""
    parts = {
        "title": html.escape(" · ".join(filter(None, (report.provenance.model, report.summary.graph)))),
        "style": _asset("page.css"),
        "script": "".join(_asset(name) for name in _SCRIPTS),
        "data": _embedded(data(report)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


def data(report: Report) -> dict[str, Any]:
    """The data for the page's script. Tables are stored by column, and each text once, in ``strings``."""
    in_memory = [a for a in report.accounts if a.in_memory]
    shown, rest = in_memory[:MOST_ACCOUNTS], in_memory[MOST_ACCOUNTS:]
    intervals = sorted(report.occupancy.occupants, key=lambda o: -o.nbytes)[:MOST_INTERVALS]
    index = {v: i for i, v in enumerate(dict.fromkeys([*(a.value for a in shown), *(o.value for o in intervals)]))}
    moments, columns = _moments(report), _Columns()
    accounts = [{**dataclasses.asdict(a), "fate": a.fate.value, "value": index[a.value]} for a in shown]
    return {
        "origin": str(dataclasses.replace(report.provenance, model="")),  # the title names the model
        "summary": dataclasses.asdict(report.summary),
        "hardware": report.hardware,
        "ops": len(report.graph.ops),
        "roles": [role.value for role in ROLES],
        "more_memory": report.what_more_buys(),
        "less_memory": report.what_less_costs(),
        "fine_print": _fine_print(report),
        "left_out": _left_out(report, len(rest)),
        "frontier": [report.point(p) for p in report.frontier],
        "others": [report.point(p) for p in report.others],
        "chosen": report.point(report.chosen),
        "bound": report.bound_curve,
        "gap": report.summary.gap,
        "values": columns.of([_value(report, v) for v in index]),
        "accounts": columns.of(accounts),
        "modules": columns.of([dataclasses.asdict(m) for m in report.modules]),
        "runs": columns.of(_runs(report, moments)),
        "intervals": columns.of([{**t, "value": index[t["value"]]} for t in _intervals(intervals, moments)]),
        "by_role": [[sizes[m] for m in moments] for sizes in report.occupancy.by_role],
        "peak": report.timeline.peak,
        "peak_at": bisect_left(moments, report.peak_at),
        "first_backward": bisect_left(moments, report.timeline.first_backward),
        "strings": columns.strings,
    }


class _Columns:
    """Turns rows into columns: a text becomes its index in ``strings``; seconds are rounded to five digits."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}

    @property
    def strings(self) -> list[str]:
        return list(self._index)

    def of(self, rows: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
        """The columns of texts and of numbers, by name; all rows have the same fields."""
        columns: dict[str, dict[str, list[Any]]] = {"texts": {}, "numbers": {}}
        for name, first in rows[0].items() if rows else ():
            cells = [row[name] for row in rows]
            if isinstance(first, str):
                columns["texts"][name] = [self._index.setdefault(text, len(self._index)) for text in cells]
            elif isinstance(first, float):
                columns["numbers"][name] = [float(f"{cell:.5g}") for cell in cells]
            else:
                columns["numbers"][name] = cells
        return columns


def _intervals(intervals: list[Occupant], moments: list[int]) -> list[dict[str, Any]]:
    """The intervals that contain at least one of the moments, with their ends as moments."""
    rows = []
    for o in intervals:
        born, end = bisect_left(moments, o.born), bisect_right(moments, o.end) - 1
        if born <= end:
            rows.append({**dataclasses.asdict(o), "role": ROLES.index(o.role), "born": born, "end": end})
    return rows


def _runs(report: Report, moments: list[int]) -> list[dict[str, Any]]:
    """A row per moment. Its seconds cover all runs up to the next moment; the first row includes earlier runs."""
    starts, rows = [0.0, *itertools.accumulate(report.seconds)], []
    bounds = [0, *moments[1:], len(report.seconds)]
    for moment, (since, until) in zip(moments, itertools.pairwise(bounds), strict=False):
        run = report.timeline.runs[moment]
        op = report.graph.ops[run.op]
        row = {"op": op.name, "module": clean(op.module), "source": shortened(op.source), "copy": run.copy}
        rows.append({**row, "live": report.timeline.live[moment], "seconds": starts[until] - starts[since]})
    return rows


def _moments(report: Report) -> list[int]:
    """The positions to show: all, or from each of ``MOST_MOMENTS`` groups the one with the most live bytes."""
    live = report.timeline.live
    groups = min(len(live), MOST_MOMENTS)
    bounds = [len(live) * g // groups for g in range(groups + 1)] if groups else []
    return [max(range(a, b), key=lambda p: live[p]) for a, b in itertools.pairwise(bounds)]


def _value(report: Report, id: int) -> dict[str, Any]:
    value, producer = report.graph.values[id], report.graph.producer[id]
    op = None if producer is None else report.graph.ops[producer]
    return {
        "name": value.name,
        "type": f"{value.dtype}[{', '.join(value.shape)}]",
        "nbytes": value.nbytes,
        "module": clean(op.module) if op else "",
        "source": shortened(op.source) if op else "",
    }


def shortened(source: str) -> str:
    """The file with its directory, and the line: "llama/modeling_llama.py:372"."""
    return "/".join(re.split(r"[/\\]", source)[-2:])


def _fine_print(report: Report) -> str:
    planned, peak = report.summary.planned_peak, report.timeline.peak
    simulated = (
        f"The planned peak of {format_bytes(planned)} is the compiler's exact figure for this plan; the pictures show "
        f"the simulated plan, with a peak of {format_bytes(peak)}. "
        if planned != peak
        else ""
    )
    s = report.summary
    several = (
        f"A step calls this graph {s.calls} times: the picture shows one call, above what the others have saved. "
        if s.calls > 1
        else ""
    )
    return (
        f"Seconds are estimated by a roofline model of {report.hardware}, not measured. Bytes are simulated: "
        "everything that the compiled forward and backward of a step allocate. "
        f"{format_bytes(report.held_nbytes)} of parameters and buffers, the inputs and the optimizer's state exist "
        f"before the step and are not counted. {several}{simulated}The cost of recomputing a saved value assumes that "
        f"only this value is no longer saved. The lower bound is proven {ASSUMES}."
    )


def _left_out(report: Report, rest: int) -> str:
    fused = sum(not a.in_memory for a in report.accounts)
    texts = [f"{fused:,} more are fused into the kernels that read them and take no memory."] if fused else []
    texts += [f"{rest:,} smaller values are in the JSON report only."] if rest else []
    return " ".join(texts)


def _embedded(document: dict[str, Any]) -> str:
    """The document as JSON that cannot close its script element."""
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return (files("rematpass.report") / "assets" / name).read_text("utf-8")
