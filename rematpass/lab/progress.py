"""Progress of a session: a bar on a terminal; elsewhere one line for each strategy when it is done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rematpass.report.comparison import budget_text, title
from rematpass.report.measurement import FAILED, INFEASIBLE, Measurement, Strategy
from rematpass.units import format_bytes, format_seconds


class Watcher:
    """Shows the progress of one session. ``on_stage`` and ``on_row`` may be called from several threads.

    ``total``: the most strategies that there will be.
    """

    def __init__(self, console: Console, bar: Progress | None, name: str, total: int) -> None:
        self.console, self.bar, self.name, self.total = console, bar, name, total
        self._task = bar.add_task(name, total=total) if bar else None
        self._done = 0
        self._begun = time.monotonic()
        self._says_timing = False
        self._lock = threading.Lock()

    def on_stage(self, strategy: Strategy, stage: str) -> None:
        """A strategy has reached a stage."""
        if self.bar is not None and self._task is not None:
            what = title(strategy) if strategy.like else label(strategy)
            self.bar.update(self._task, description=f"{self.name}: {what}: {stage}")
        elif stage.startswith("timing") and not self._says_timing:
            self._says_timing = True
            self._print("taking step times in turns")

    def on_row(self, strategy: Strategy, row: Measurement) -> None:
        """A strategy is measured, except for its step times."""
        with self._lock:
            self._done += 1
            self._says_timing = False
            count = f"{self._done} of {'at most ' * (self._done < self.total)}{max(self.total, self._done)}"
        if self.bar is not None and self._task is not None:
            self.bar.advance(self._task)
        else:
            self._print(f"{count}: {label(strategy)}: {outcome(row)}")

    def end(self) -> None:
        """The session has ended."""
        if self.bar is not None and self._task is not None:
            self.bar.update(self._task, completed=self.total, description=f"{self.name}: done")

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self._begun
        self.console.print(f"{self.name}, {seconds:.0f} s, {text}", highlight=False, markup=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console) -> Iterator[Progress | None]:
    """A progress bar while the ``with`` runs; None if the console is not a terminal."""
    if not console.is_terminal:
        yield None
        return
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        yield bar


def label(strategy: Strategy) -> str:
    """The strategy and its budget, for a line of text."""
    if strategy.like:
        return f"remat in the {budget_text(strategy)} of {label(Strategy.parse(strategy.like))}"
    return f"{title(strategy)} {budget_text(strategy)}".strip()


def outcome(row: Measurement) -> str:
    """What was measured, in a few words."""
    if row.status == FAILED:
        return f"failed: {row.error}"
    if row.status == INFEASIBLE:
        return f"no plan: {row.error}"
    if row.same_plan_as:
        return f"the same plan as {label(Strategy.parse(row.same_plan_as))}"
    compiled = f", compiled in {format_seconds(row.compile_seconds)}" if row.compile_seconds is not None else ""
    return f"peak {format_bytes(row.peak or 0)}{compiled}"
