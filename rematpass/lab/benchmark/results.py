"""Tables and pictures of what a store holds, in files named by what, device and date."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rematpass.errors import MeasureError
from rematpass.lab.benchmark import trial
from rematpass.lab.benchmark.store import Store
from rematpass.lab.models.catalog import MODELS
from rematpass.report import pictures, speed
from rematpass.report.comparison import OF_BLOCKS, markdown, same_peak
from rematpass.report.measurement import PER_BLOCK, Strategy, resolve, unique


def write_results(
    store: Store, strategies: Mapping[str, Sequence[Strategy]], device: str, what: str, directory: Path
) -> list[Path]:
    """Write one Markdown file with a table per model, its pictures beside it, a second one about speed, and return
    their paths.

    Rows are ``strategies`` (by model) and whatever else the store has of the model on this device and torch; what was
    not measured says so. The date is the last measurement's.

    Raises:
        MeasureError: a file cannot be written, or pictures cannot be drawn.
    """
    blank = trial.blank(trial.Job("any", Strategy("eager"), device))
    found = {name: resolve(store.rows(name, blank.device, blank.torch), store.all_rows()) for name in strategies}
    date = max((row.date for rows in found.values() for row in rows), default=blank.date)
    place = slug(blank.device)
    stem = f"{what}_{place}_{date}"
    heading = f"{blank.device}, torch {blank.torch}, {date}"
    text = [f"# {what.replace('-', ' ').capitalize()}, {heading}\n\n{EXPLAINED}"]
    written, timed = [], {}
    overview = directory / f"{stem}.svg"
    if pictures.peak_against_budget(found, heading, overview):
        written.append(overview)
        text.append(f"![Measured peak against budget]({overview.name})\n")
    for name, rows in found.items():
        by_name = {row.strategy: row for row in rows}
        summary = f"{MODELS[name].summary}.\n\n" if name in MODELS else ""
        summary += f"{OF_BLOCKS}\n\n" if name.endswith(PER_BLOCK) else ""
        listed = _in_order([*strategies[name], *(Strategy.parse(row.strategy) for row in rows)])
        text.append(f"## {name}\n\n{summary}{markdown(listed, by_name)}")
        if lines := same_peak(listed, by_name):
            text.append("".join(f"- {line}\n" for line in lines))
        picture = directory / f"{stem}_{slug(name)}.svg"
        if pictures.seconds_against_peak(rows, f"{name}, {heading}", picture):
            written.append(picture)
            timed[name] = picture.name
            text.append(f"![Step time against peak]({picture.name})\n")
    its = "speed" if what == "five-models" else f"speed-{what}"
    documents = {
        directory / f"{stem}.md": "\n".join(text),
        directory / f"{its}_{place}_{date}.md": speed.page(found, heading, timed),
    }
    for document, contents in documents.items():
        try:
            document.write_text(contents)
        except OSError as error:
            raise MeasureError(f"cannot write {str(document)!r}: {error.strerror}") from error
    return [*documents, *written]


EXPLAINED = """Bytes are exact: the peak of one training step beyond what stood before it. Step times are medians of
quotients with Inductor's in the same round, quartiles in brackets; compile seconds are cold. How all of it is taken,
and what counts as a result, is in [the README](../README.md).
"""


def _in_order(strategies: Sequence[Strategy]) -> list[Strategy]:
    """Peers first, then remat; within each the larger budget first. A peer's name goes with the bytes given for it."""
    liked = {s.name: s for s in strategies if s.like}
    return sorted((liked.get(s.name, s) for s in unique(strategies)), key=_place)


def _place(strategy: Strategy) -> tuple[int, bool, bool, float]:
    runner = ("eager", "inductor", "remat").index(strategy.runner)
    fraction = strategy.fraction
    size = float(strategy.nbytes or 0) if fraction is None else fraction
    return runner, strategy.checkpoint, fraction is None, -size


def slug(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
