"""The worker processes of a session, with their caches and logs in one temporary directory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rematpass.lab.benchmark.job import Job
from rematpass.lab.benchmark.spec import Settings
from rematpass.lab.benchmark.worker import Worker
from rematpass.report.measurement import Strategy


class Workers:
    """Starts workers and ends them. ``by_strategy``: those that wait, with a compiled step, to be timed."""

    def __init__(self, target: str, settings: Settings) -> None:
        self.target, self.settings = target, settings
        self.by_strategy: dict[Strategy, Worker] = {}
        self._busy: set[Worker] = set()
        self._ended = False
        self._warming_up = threading.Lock()
        # Compilers that a killed worker has started may still write into it.
        self._directory = TemporaryDirectory(prefix="rematpass_", ignore_cleanup_errors=True)

    @property
    def directory(self) -> Path:
        return Path(self._directory.name)

    @property
    def warm_cache(self) -> Path:
        """The compile cache of which every compiling worker gets a copy."""
        return self.directory / "warm"

    def end(self) -> None:
        """End all workers; what they are measuring is not recorded."""
        self._ended = True
        for worker in (*self.by_strategy.values(), *self._busy):
            worker.close()

    def remove_files(self) -> None:
        self._directory.cleanup()

    def seconds_left(self) -> float:
        """Seconds that a strategy started now may take."""
        return min(self.settings.timeout or math.inf, self.settings.until - time.monotonic())

    def is_over(self) -> bool:
        """Whether the session has ended or its time is over: nothing is started or recorded as failed any more."""
        return self._ended or self.seconds_left() <= 0

    def start(self, log: Path, cache: Path) -> Worker:
        """A new worker. Starting takes seconds; if the session ends meanwhile, the worker is closed at once."""
        worker = Worker(log, cache, self.settings.device)
        self._busy.add(worker)
        if self._ended:
            worker.close()
        return worker

    def close(self, worker: Worker) -> None:
        self._busy.discard(worker)
        worker.close()

    def keep(self, strategy: Strategy, worker: Worker) -> None:
        """Let the worker wait for step times."""
        self.by_strategy[strategy] = worker
        self._busy.discard(worker)

    def new_place(self) -> Path:
        """An empty directory for one worker. A strategy that starts again gets a new one, with nothing compiled."""
        place = Path(mkdtemp(dir=self.directory))
        (place / "cache").mkdir()
        return place

    def warm_up_once(self, warm_up: Callable[[Worker], None]) -> None:
        """Call ``warm_up`` with a worker that fills ``warm_cache``; the first caller does, the others wait for it."""
        with self._warming_up:
            if self.warm_cache.exists():
                return
            self.warm_cache.mkdir()
            worker = self.start(self.directory / "log", self.warm_cache)
            try:
                warm_up(worker)
            finally:
                self.close(worker)

    def job(self, strategy: Strategy) -> Job:
        return Job(self.target, strategy, self.settings.device, self.settings.sizes, self.settings.per_block)

    def request(self, strategy: Strategy) -> dict[str, Any]:
        """The fields of the job, as a worker is sent them."""
        return {
            "target": self.target,
            "strategy": strategy.name,
            "device": self.settings.device,
            "sizes": dict(self.settings.sizes),
            "per_block": self.settings.per_block,
            **{name: str(self.directory / name) for name in ("eager_step", "inductor_gradients")},
        }
