"""A report's files in a directory: what ``REMAT_REPORT_DIR`` and ``rematpass explain`` leave behind."""

from __future__ import annotations

import re
from pathlib import Path

from rematpass.report.atomic import write_text
from rematpass.report.page import to_html
from rematpass.report.report import Report
from rematpass.report.text import to_text
from rematpass.report.trace import to_trace

FORMS = ("html", "text", "json", "trace", "graph")


def write(report: Report, directory: Path) -> dict[str, Path]:
    """Write all forms of the report, each under the graph's name and the plan's hash; the paths, by form.

    ``html``: the page; ``text``; ``json``: everything; ``trace``: for ui.perfetto.dev; ``graph``: the joint graph, for
    ``rematpass plan``. A file is there entirely or not at all, so that ranks may share a directory.

    Raises:
        ReportError: the directory cannot be made or written.
    """
    texts = render(report)
    for name, text in texts.items():
        write_text(directory / name, text)
    return {form: directory / name for form, name in zip(FORMS, texts, strict=True)}


def render(report: Report) -> dict[str, str]:
    """The files' texts by their names, in the order of ``FORMS``."""
    stem = f"{slug(report.summary.graph)}-{report.summary.plan_hash}"
    return {
        f"{stem}.html": to_html(report),
        f"{stem}.txt": to_text(report),
        f"{stem}.json": report.to_json(),
        f"{stem}.trace.json": to_trace(report),
        f"{stem}.graph.json": report.graph.to_json(),
    }


def slug(name: str) -> str:
    """A name as it can stand in a file's: "graph 0/0" is "graph-0-0"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "graph"
