"""Step times of waiting workers, taken in turns, and divided by plain Inductor's time in the same round."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rematpass.lab.benchmark.spec import INDUCTOR, Settings
from rematpass.lab.benchmark.worker import Worker, WorkerDied
from rematpass.lab.measure.memory_and_time import Timing
from rematpass.report.measurement import Measurement, Strategy


@dataclass(frozen=True)
class StepTimes:
    """``ratio``: quartile, median and quartile of the quotients with Inductor's seconds; None without Inductor."""

    timing: Timing
    ratio: tuple[float, float, float] | None

    def fields(self) -> dict[str, Any]:
        """The fields of a Measurement."""
        rounds = len(self.timing.seconds)
        return {"step_seconds": self.timing.median, "step_ratio": self.ratio, "rounds": rounds}


def fields_of(row: Measurement) -> dict[str, Any]:
    """The step times that a row already has, as fields of a Measurement."""
    return {"step_seconds": row.step_seconds, "step_ratio": row.step_ratio, "rounds": row.rounds}


def time_in_turns(
    workers: Mapping[Strategy, Worker], settings: Settings, on_stage: Callable[[Strategy, str], None]
) -> dict[Strategy, StepTimes]:
    """One step of every worker per round, each round starting with another worker. A worker that fails drops out."""
    seconds: dict[Strategy, list[float]] = {strategy: [] for strategy in workers}
    for round_ in range(settings.rounds):
        names = list(seconds)
        start = round_ % max(1, len(names))
        for strategy in names[start:] + names[:start]:
            on_stage(strategy, f"timing, round {round_ + 1} of {settings.rounds}")
            try:
                answer = workers[strategy].ask({"do": "time"}, timeout=settings.timeout or math.inf)
                seconds[strategy].append(answer["seconds"])
            except (WorkerDied, KeyError):
                del seconds[strategy]
    timings = {strategy: Timing(tuple(taken)) for strategy, taken in seconds.items()}
    reference = timings.get(INDUCTOR)
    return {
        strategy: StepTimes(timing, _quartiles(timing.relative_to(reference)) if reference else None)
        for strategy, timing in timings.items()
    }


def _quartiles(timing: Timing) -> tuple[float, float, float]:
    lower, upper = timing.spread
    return lower, statistics.median(timing.seconds), upper
