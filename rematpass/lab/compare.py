"""``rematpass compare``: strategies side by side on one model, as a table, a picture and JSON.

Everything that can be refused is refused before anything is measured. A strategy that fails is a row that says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rematpass.compiler import devices
from rematpass.errors import MeasureError
from rematpass.lab.benchmark.session import Session
from rematpass.lab.benchmark.spec import INDUCTOR, Settings, Wanted
from rematpass.lab.benchmark.store import Store
from rematpass.lab.models.catalog import MODELS
from rematpass.lab.models.names import check_model, parse_sizes
from rematpass.report import pictures
from rematpass.report.comparison import OF_BLOCKS, same_peak, table, title
from rematpass.report.measurement import FAILED, Measurement, Strategy, parse_list, resolve

PEERS = "eager,eager+checkpoint,inductor,inductor+checkpoint,inductor@0.5,inductor@0.2"
BUDGETS = "1,0"
WIDEST = 160  # columns of a table that goes to a file


@dataclass(frozen=True)
class Request:
    """The command's arguments. ``jobs``: None for two at a time on a CPU with several cores, else one; ``picture`` and
    ``json``: None for none.
    """

    model: str
    peers: str = PEERS
    budgets: str = BUDGETS
    sizes: Sequence[str] = ()
    device: str = "cpu"
    per_block: bool = False
    rounds: int = 5
    jobs: int | None = None
    timeout: float | None = 600.0
    picture: Path | None = None
    json: Path | None = None


def run(request: Request, console: Console) -> int:
    """Measure and print; the exit code is 1 if every strategy failed.

    Raises:
        MeasureError: the model, a strategy, the device or a file is not as it should be.
        ConfigError: a setting in the environment is not accepted.
    """
    device = devices.usable(request.device)
    # What a peer takes is of the whole step; bytes that are given to blocks are of the blocks alone.
    like_peers = not request.per_block
    wanted = Wanted(parse_list(request.peers), parse_list(request.budgets, "remat"), like_peers=like_peers)
    if not wanted.given:
        raise MeasureError("there is nothing to compare: both --peers and --budgets are none")
    check_model(request.model, MODELS)
    if request.picture:
        pictures.check(request.picture)
    for file in filter(None, (request.picture, request.json)):
        check_writable(file)
    store = Store()
    sizes = parse_sizes(request.sizes)
    if sizes and ":" in request.model:
        raise MeasureError("--size is for models of the catalog; your own function decides on its sizes itself")
    several = devices.of(device).processes_are_isolated and (os.cpu_count() or 1) > 1
    jobs = request.jobs or (2 if several else 1)
    settings = Settings(
        request.device, sizes, request.per_block, rounds=request.rounds, jobs=jobs, timeout=request.timeout
    )
    with progress_bar(console) as progress:
        watcher = Watcher(progress, request.model, expected(wanted))
        with Session(request.model, store, settings, watcher.on_stage) as session:
            strategies = session.run(wanted)
            rows = {row.strategy: row for row in resolve(session.rows([INDUCTOR, *strategies]))}
            parameters, name = session.parameters, session.model
    heading = f"{name}, {parameters / 1e6:.1f} million parameters, {devices.of(device).label(device)}"
    show(console, strategies, rows, heading)
    if request.per_block:
        console.print(OF_BLOCKS, highlight=False)
    if jobs > 1:
        note = f"Compile and planning seconds: {jobs} strategies at a time; steps one at a time."
        console.print(note, highlight=False)
    if request.json:
        _write(request.json, as_json(name, strategies, rows))
    if request.picture:
        drawn = pictures.seconds_against_peak(list(rows.values()), heading, request.picture)
        console.print(
            f"Step time against peak: {request.picture}" if drawn else "No step times, so no picture is drawn."
        )
    return 1 if all(row.status == FAILED for row in rows.values()) else 0


def show(console: Console, strategies: Sequence[Strategy], rows: dict[str, Measurement], heading: str) -> None:
    """The table, what failed, and who is faster at the same peak."""
    if not console.is_terminal:
        console.width = max(console.width, WIDEST)
    made, notes = table(strategies, rows)
    console.print(f"A training step of {heading}. Memory beyond what stood before the step:", highlight=False)
    console.print(made)
    for note in [*notes, *same_peak(strategies, rows)]:
        console.print(note, highlight=False, markup=False)


def as_json(model: str, strategies: Sequence[Strategy], rows: dict[str, Measurement]) -> str:
    """{"model": ..., "rows": [...]}: each row a Measurement's fields and the peer whose bytes it was given."""
    found = []
    for strategy in strategies:
        row = rows.get(strategy.name)
        fields = {"strategy": strategy.name} if row is None else json.loads(row.to_json())
        found.append({**fields, **({"like": strategy.like} if strategy.like else {})})
    return json.dumps({"model": model, "rows": found}, indent=1) + "\n"


def expected(wanted: Wanted) -> int:
    """How many strategies there will be at most."""
    return len({INDUCTOR, *wanted.given}) + (len(wanted.peers) if wanted.like_peers else 0) + wanted.between


class Watcher:
    """Moves a progress bar along; ``on_stage`` may be called from several threads."""

    def __init__(self, progress: Progress, name: str, total: int) -> None:
        self.progress, self.name = progress, name
        self.task = progress.add_task(name, total=total)

    def on_stage(self, strategy: Strategy, stage: str) -> None:
        if stage == "done":
            self.progress.advance(self.task)
        else:
            what = f"{title(strategy)} {strategy.budget if not strategy.like else ''}".strip()
            self.progress.update(self.task, description=f"{self.name}: {what}: {stage}")


def progress_bar(console: Console) -> Progress:
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True)


def check_writable(path: Path) -> None:
    """Raise now what writing would raise later, and leave no file behind that was not there.

    Raises:
        MeasureError: the file cannot be written.
    """
    existed = path.exists()
    try:
        with path.open("a"):
            pass
    except OSError as error:
        raise MeasureError(f"cannot write {str(path)!r}: {error.strerror}") from error
    if not existed:
        path.unlink()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise MeasureError(f"cannot write {str(path)!r}: {error.strerror}") from error
