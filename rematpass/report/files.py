"""The files of a report: what ``REMAT_REPORT_DIR`` and ``rematpass explain`` write."""

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
    """Write all forms of the report, named after the graph and the plan's hash, and return their paths by form.

    ``html``: the page; ``text``; ``json``: all data; ``trace``: for ui.perfetto.dev; ``graph``: the joint graph, for
    ``rematpass plan``. Each file appears complete, so several ranks may share a directory.

    Raises:
        ReportError: the directory cannot be created, or a file cannot be written.
    """
    texts = render(report)
    for name, text in texts.items():
        write_text(directory / name, text)
    return {form: directory / name for form, name in zip(FORMS, texts, strict=True)}


def render(report: Report) -> dict[str, str]:
    """The contents of the files by name, in the order of ``FORMS``."""
    stem = f"{slug(report.summary.graph)}-{report.summary.plan_hash}"
    return {
        f"{stem}.html": to_html(report),
        f"{stem}.txt": to_text(report),
        f"{stem}.json": report.to_json(),
        f"{stem}.trace.json": to_trace(report),
        f"{stem}.graph.json": report.graph.to_json(),
    }


def slug(name: str) -> str:
    """``name`` as part of a file name: "graph 0/0" becomes "graph-0-0"."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "graph"
