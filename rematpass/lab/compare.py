"""``rematpass compare``: strategies side by side on one model, as a table, a picture and JSON.

All arguments are checked before anything is measured. A strategy that fails has a row that says so.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from rematpass.compiler import devices
from rematpass.errors import MeasureError
from rematpass.lab.benchmark.session import Session
from rematpass.lab.benchmark.spec import INDUCTOR, Settings, Wanted
from rematpass.lab.benchmark.store import Store
from rematpass.lab.models.catalog import MODELS
from rematpass.lab.models.names import check_model, parse_sizes
from rematpass.lab.progress import Watcher, progress_bar
from rematpass.report import pictures
from rematpass.report.atomic import write_text
from rematpass.report.comparison import OF_BLOCKS, same_peak
from rematpass.report.comparison_table import gradients_note, tables
from rematpass.report.measurement import FAILED, Measurement, Strategy, parse_list, resolve

WIDTH = 100  # columns of a table that goes to a file or a pipe
COMPILING, STEP = 35, 0.3  # seconds of one strategy and of one step, for llama-small on two cores


@dataclass(frozen=True)
class Defaults:
    """What is measured if nothing else is asked for. ``like_peers``: remat also at the measured peak of each peer."""

    peers: str
    budgets: str
    like_peers: bool
    rounds: int


FULL = Defaults("eager,eager+checkpoint,inductor,inductor+checkpoint,inductor@0.5,inductor@0.2", "1,0", True, 5)
QUICK = Defaults("eager,inductor", "1,0", False, 0)


@dataclass(frozen=True)
class Request:
    """The command's arguments.

    ``jobs``: None for two at a time where processes do not share memory, otherwise one. ``picture``, ``json``: None for
    no such file.
    """

    model: str
    peers: str = FULL.peers
    budgets: str = FULL.budgets
    like_peers: bool = FULL.like_peers
    sizes: Sequence[str] = ()
    device: str = "cpu"
    per_block: bool = False
    rounds: int = FULL.rounds
    jobs: int | None = None
    timeout: float | None = 600.0
    picture: Path | None = None
    json: Path | None = None


def run(request: Request, console: Console) -> int:
    """Measure and print. The exit code is 1 if every strategy failed, otherwise 0.

    Raises:
        MeasureError: the model, a strategy, the device or a file cannot be used.
        ReportError: a file cannot be written.
        ConfigError: a setting in the environment is invalid.
    """
    device = devices.usable(request.device)
    wanted, settings = _checked(request, device)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    console.print(estimate(wanted, settings), highlight=False)
    with progress_bar(console) as bar:
        watcher = Watcher(console, bar, request.model, most_strategies(wanted))
        with Session(request.model, Store(), settings, watcher.on_stage, watcher.on_row) as session:
            strategies = session.run(wanted)
            rows = {row.strategy: row for row in resolve(session.rows([INDUCTOR, *strategies]))}
            parameters, name = session.parameters, session.model
    heading = f"{name}, {parameters / 1e6:.1f} million parameters, {devices.of(device).label(device)}"
    show(console, strategies, rows, heading)
    if request.per_block:
        console.print(OF_BLOCKS, highlight=False)
    if settings.jobs > 1:
        steps = "; steps one at a time" if settings.rounds else ""
        console.print(f"Compile and planning seconds: {settings.jobs} strategies at a time{steps}.", highlight=False)
    if request.json:
        write_text(request.json, as_json(name, strategies, rows))
    if request.picture:
        drawn = pictures.seconds_against_peak(list(rows.values()), heading, request.picture)
        console.print(
            f"Step time against peak: {request.picture}" if drawn else "No step times, so no picture is drawn."
        )
    return 1 if all(row.status == FAILED for row in rows.values()) else 0


def _checked(request: Request, device: torch.device) -> tuple[Wanted, Settings]:
    # A peer's peak covers the whole step, and with per_block a budget covers only a block.
    like_peers = request.like_peers and not request.per_block
    wanted = Wanted(parse_list(request.peers), parse_list(request.budgets, "remat"), like_peers=like_peers)
    if not wanted.given:
        raise MeasureError("there is nothing to compare: both --peers and --budgets are none")
    check_model(request.model, MODELS)
    if request.picture:
        pictures.check(request.picture)
    for file in filter(None, (request.picture, request.json)):
        check_writable(file)
    sizes = parse_sizes(request.sizes)
    if sizes and ":" in request.model:
        raise MeasureError("--size is for models of the catalog; a function of your own decides its sizes itself")
    several = devices.of(device).processes_are_isolated and (os.cpu_count() or 1) > 1
    jobs = request.jobs or (2 if several else 1)
    return wanted, Settings(
        request.device, sizes, request.per_block, rounds=request.rounds, jobs=jobs, timeout=request.timeout
    )


def estimate(wanted: Wanted, settings: Settings) -> str:
    """How long the comparison takes, in one sentence, and what the estimate rests on."""
    most = most_strategies(wanted)
    eager = sum(strategy.runner == "eager" for strategy in wanted.peers)
    compiled = most - eager + 1  # one more for the warm-up
    seconds = COMPILING * -(-compiled // settings.jobs) + 2 * STEP * settings.rounds * most
    rounds = f", then {settings.rounds} rounds of step times" if settings.rounds else ", no step times"
    about = "about a minute" if seconds <= 75 else f"about {round(seconds / 60)} minutes"
    return (
        f"{most} strategies at most, {settings.jobs} at a time{rounds}: {about} for a model such as llama-small on two "
        f"cores ({COMPILING} s to compile and measure a strategy, {STEP} s for a step). Larger models take longer."
    )


def most_strategies(wanted: Wanted) -> int:
    """The most strategies that a session measures."""
    return len({INDUCTOR, *wanted.given}) + (len(wanted.peers) if wanted.like_peers else 0) + wanted.between


def show(console: Console, strategies: Sequence[Strategy], rows: dict[str, Measurement], heading: str) -> None:
    """Print the table, the failures, and which is faster at the same peak."""
    made, notes = tables(strategies, rows, console.width)
    console.print(f"A training step of {heading}. Bytes beyond those allocated before the step:", highlight=False)
    for table in made:
        console.print(table)
    for note in [gradients_note(rows), *notes, *same_peak(strategies, rows)]:
        if note:
            console.print(note, highlight=False, markup=False)


def as_json(model: str, strategies: Sequence[Strategy], rows: dict[str, Measurement]) -> str:
    """``{"model": ..., "rows": [...]}``; each row has a Measurement's fields and, in "like", the peer of its budget."""
    found = []
    for strategy in strategies:
        row = rows.get(strategy.name)
        fields = {"strategy": strategy.name} if row is None else json.loads(row.to_json())
        found.append({**fields, **({"like": strategy.like} if strategy.like else {})})
    return json.dumps({"model": model, "rows": found}, indent=1) + "\n"


def check_writable(path: Path) -> None:
    """Find out before anything is measured whether the file can be written; a file that is new is removed again.

    Raises:
        MeasureError: the file cannot be written.
    """
    existed = path.exists()
    try:
        with path.open("a"):
            pass
        if path.is_file():  # it will be replaced by a temporary file beside it
            with tempfile.TemporaryFile(dir=path.resolve().parent):
                pass
    except OSError as error:
        raise MeasureError(f"cannot write {str(path)!r}: {error.strerror}") from error
    if not existed:
        path.unlink()
