"""Tables and pictures of a store's rows, in files named ``<what>_<device>_<date>``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rematpass.lab.benchmark.job import Job, blank
from rematpass.lab.benchmark.store import Store
from rematpass.lab.models.catalog import MODELS
from rematpass.report import pictures, speed
from rematpass.report.atomic import write_text
from rematpass.report.comparison import OF_BLOCKS, markdown, same_peak
from rematpass.report.measurement import PER_BLOCK, Measurement, Strategy, resolve, unique


def write_results(
    store: Store, strategies: Mapping[str, Sequence[Strategy]], device: str, what: str, directory: Path
) -> list[Path]:
    """Write a Markdown file with a table per model, a second one about speed, and their pictures; return all paths.

    Rows are ``strategies``, by model, and every other row of the store for the model on this device and torch version.
    A strategy without a row is listed as not measured. The date is that of the last measurement.

    Raises:
        ReportError: a file cannot be written.
        MeasureError: pictures cannot be drawn.
    """
    empty = blank(Job("any", Strategy("eager"), device))
    found = {name: resolve(store.rows(name, empty.device, empty.torch), store.all_rows()) for name in strategies}
    date = max((row.date for rows in found.values() for row in rows), default=empty.date)
    place = slug(empty.device)
    stem = f"{what}_{place}_{date}"
    heading = f"{empty.device}, torch {empty.torch}, {date}"
    text = [f"# {what.replace('-', ' ').capitalize()}, {heading}\n\n{EXPLAINED}"]
    written, timed = [], {}
    overview = directory / f"{stem}.svg"
    if pictures.peak_against_budget(found, heading, overview):
        written.append(overview)
        text.append(f"![Measured peak against budget]({overview.name})\n")
    for name, rows in found.items():
        text += _section(name, strategies[name], rows)
        picture = directory / f"{stem}_{slug(name)}.svg"
        if pictures.seconds_against_peak(rows, f"{name}, {heading}", picture):
            written.append(picture)
            timed[name] = picture.name
            text.append(f"![Step time against peak]({picture.name})\n")
    speed_stem = "speed" if what == "five-models" else f"speed-{what}"
    documents = {
        directory / f"{stem}.md": "\n".join(text),
        directory / f"{speed_stem}_{place}_{date}.md": speed.page(found, heading, timed),
    }
    for document, contents in documents.items():
        write_text(document, contents)
    return [*documents, *written]


EXPLAINED = """Bytes are exact: the peak of one training step beyond the bytes allocated before it. Step times are
medians of quotients with Inductor's in the same round, quartiles in brackets; compile seconds are cold.
[The README](../README.md) says how everything is measured and what counts as a result.
"""


def _section(name: str, strategies: Sequence[Strategy], rows: Sequence[Measurement]) -> list[str]:
    """One model's heading, table, and comparisons at the same peak."""
    by_name = {row.strategy: row for row in rows}
    summary = f"{MODELS[name].summary}.\n\n" if name in MODELS else ""
    summary += f"{OF_BLOCKS}\n\n" if name.endswith(PER_BLOCK) else ""
    listed = _in_order([*strategies, *(Strategy.parse(row.strategy) for row in rows)])
    lines = same_peak(listed, by_name)
    text = [f"## {name}\n\n{summary}{markdown(listed, by_name)}"]
    return [*text, "".join(f"- {line}\n" for line in lines)] if lines else text


def _in_order(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Peers first, then remat, by falling budget. A strategy that refers to a peer replaces its equal that does not."""
    like = {s.name: s for s in strategies if s.like}
    return sorted((like.get(s.name, s) for s in unique(strategies)), key=_sort_key)


def _sort_key(strategy: Strategy) -> tuple[int, bool, bool, float]:
    runner = ("eager", "inductor", "remat").index(strategy.runner)
    fraction = strategy.fraction
    size = float(strategy.nbytes or 0) if fraction is None else fraction
    return runner, strategy.checkpoint, fraction is None, -size


def slug(text: str) -> str:
    """``text`` as a part of a file name: "NVIDIA H200" is "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
