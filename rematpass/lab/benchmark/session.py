"""Strategies side by side on one model: bytes by as many jobs as there are, each in a process; seconds in turns.

What is in the store already is not measured again, and of strategies that come to the same plan only the first is, at
the same time too. When the planner was changed, it is asked for its plans anew, and those that are as they were are not
measured again.

The peak that a peer needed can be given to remat as its budget: at the same peak, who is faster? While step times are
taken nothing else runs, and each is divided by plain Inductor's in the same round. So Inductor always takes part.

What waits for what: compiled strategies for the cache that is warmed up once; where the model draws random numbers,
for plain Inductor's gradients; remat at a peer's bytes for that peer, and for the other remat strategies, whose plans
it may come to. Eager ones wait for nothing, so they run beside the warming up::

        job 1   Inductor: warming up, measuring ──────▶ remat 0 ─────▶ ...   remat at eager's bytes ──▶ ...
        job 2   eager ─▶ eager + checkpoint ─▶ remat 1 ────────▶ ...         remat at Inductor's ─────▶ ...
"""

from __future__ import annotations

import math
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import TracebackType
from typing import Any

from rematpass.errors import MeasureError
from rematpass.lab.benchmark import trial
from rematpass.lab.benchmark.duplicate_plans import DuplicatePlans
from rematpass.lab.benchmark.spec import Settings, Wanted
from rematpass.lab.benchmark.store import Store
from rematpass.lab.benchmark.worker import Worker, WorkerDied
from rematpass.lab.measure.memory_and_time import Timing
from rematpass.report.measurement import FAILED, MEASURED, Measurement, Strategy, unique

INDUCTOR = Strategy("inductor")


class Session:
    """Workers for one model, and where they keep their caches and logs; a context manager, which ends them.

    ``on_stage(strategy, stage)`` is told of what is being done, from several threads if there are several jobs.
    """

    def __init__(
        self,
        target: str,
        store: Store,
        settings: Settings,
        on_stage: Callable[[Strategy, str], None] = lambda *_: None,
    ) -> None:
        self.target, self.store, self.settings, self.on_stage = target, store, settings, on_stage
        self.parameters = 0
        self._workers: dict[Strategy, Worker] = {}
        self._measuring: set[Worker] = set()
        self._ended = False
        self._to_retime: set[Strategy] = set()
        self._warming_up = threading.Lock()
        self._draws_random = True  # as long as that is not known
        self._has_inductors = threading.Event()  # gradients
        self._duplicates = DuplicatePlans()
        # Compilers that a killed worker has started may still write into it.
        self._scratch = TemporaryDirectory(prefix="rematpass_", ignore_cleanup_errors=True)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._scratch.cleanup()

    def _end(self) -> None:
        """End all workers; what they were at is not recorded."""
        self._ended = True
        for worker in (*self._workers.values(), *self._measuring):
            worker.close()

    @property
    def model(self) -> str:
        """The model's name in the store: the target, its sizes, and whether its blocks are compiled one by one."""
        return self.blank(INDUCTOR).model

    def blank(self, strategy: Strategy) -> Measurement:
        return trial.blank(self._job(strategy))

    def rows(self, strategies: Iterable[Strategy]) -> list[Measurement]:
        """What the store has of these strategies."""
        found = (self.store.get(self.blank(strategy)) for strategy in strategies)
        return [row for row in found if row is not None]

    def is_pending(self, strategy: Strategy) -> bool:
        """Whether something of it is still to be measured."""
        row = self.store.get(self.blank(strategy))
        if row is None or (row.status == FAILED and self.settings.retry):
            return True
        untimed = (row.step_seconds is None or strategy in self._to_retime) and not row.same_plan_as
        return row.status == MEASURED and untimed and self.settings.rounds > 0

    def run(self, wanted: Wanted) -> list[Strategy]:
        """Measure what is pending, and return all strategies, those at a peer's bytes behind it.

        Raises:
            MeasureError: the model cannot be built or does not train; the store cannot be written.
        """
        if self.settings.retime:
            self._to_retime = {INDUCTOR, *wanted.given, *wanted.derived(self.rows(wanted.given))}
        begun: set[Strategy] = set()
        running: dict[Future[None], Strategy] = {}
        most = max(1, self.settings.alive - 1) + 1  # workers at once, Inductor's included
        with ThreadPoolExecutor(self.settings.jobs) as pool:
            try:
                while (waiting := self._waiting(wanted, begun, set(running.values()))) or running:
                    free = min(self.settings.jobs, most - len(self._workers)) - len(running)
                    for strategy in waiting[: max(0, free)]:
                        begun.add(strategy)
                        running[pool.submit(self._measure, strategy)] = strategy
                    if not running:
                        self._time_and_release()
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[done]
                        done.result()
                    begun -= self._settle()
            except BaseException:
                self._end()  # else the pool would wait for what is being measured
                raise
        self._time_and_release()
        return self.listed(wanted)

    def _waiting(self, wanted: Wanted, begun: set[Strategy], running: set[Strategy]) -> list[Strategy]:
        """What is pending and could begin: Inductor first, those at a peer's bytes when no other remat is under way."""
        eager = [s for s in wanted.peers if s.runner == "eager"]
        waiting = unique([INDUCTOR, *eager, *wanted.budgets, *wanted.peers])
        if begun.issuperset(s for s in wanted.budgets if self.is_pending(s)) and running.isdisjoint(wanted.budgets):
            waiting = unique([*waiting, *wanted.derived(self.rows(wanted.given))])
        found = [s for s in waiting if s not in begun and s != INDUCTOR and self.is_pending(s)]
        wanted_itself = INDUCTOR in wanted.given and self.is_pending(INDUCTOR)
        is_due = INDUCTOR not in begun and INDUCTOR not in self._workers and (found or wanted_itself)
        return [INDUCTOR, *found] if is_due else found

    def listed(self, wanted: Wanted) -> list[Strategy]:
        """All strategies that are wanted, as far as they follow from what is in the store."""
        derived = wanted.derived(self.rows(wanted.given))
        liked = {s.like: s for s in derived if s.like}
        beside = [s for peer in wanted.given for s in (peer, liked.get(peer.name)) if s is not None]
        return unique([*beside, *derived])

    def _left(self) -> float:
        """Seconds that a strategy may take from now on."""
        return min(self.settings.timeout or math.inf, self.settings.until - time.monotonic())

    def _is_over(self) -> bool:
        """Whether nothing is to be begun any more, nor to be recorded as a failure."""
        return self._ended or self._left() <= 0

    @property
    def _warm_cache(self) -> Path:
        return Path(self._scratch.name) / "warm"

    def _warm_up(self) -> None:
        """Once: see that the model trains, and fill the cache that every worker gets a copy of.

        Raises:
            MeasureError: the model cannot be built or does not train.
        """
        with self._warming_up:
            if self._warm_cache.exists():
                return
            self._warm_cache.mkdir()
            self.on_stage(INDUCTOR, "trying model and compiler")
            worker = self._begin(Path(self._scratch.name) / "log", self._warm_cache)
            try:
                answer = worker.ask({**self._request(INDUCTOR), "do": "warm up"}, timeout=self._left())
                _found(answer, self.blank(INDUCTOR))
                self._draws_random = answer.get("draws_random", True)
            except WorkerDied:
                pass  # each row will say so
            finally:
                self._measuring.discard(worker)
                worker.close()

    def _begin(self, log: Path, cache: Path) -> Worker:
        """A worker that ends with the session, be that while it starts, which takes seconds."""
        worker = Worker(log, cache, self.settings.device)
        self._measuring.add(worker)
        if self._ended:
            worker.close()
        return worker

    def _request(self, strategy: Strategy) -> dict[str, Any]:
        return {
            "target": self.target,
            "strategy": strategy.name,
            "device": self.settings.device,
            "sizes": dict(self.settings.sizes),
            "per_block": self.settings.per_block,
            **{name: str(Path(self._scratch.name) / name) for name in ("eager_step", "inductor_gradients")},
        }

    def _job(self, strategy: Strategy) -> trial.Job:
        return trial.Job(self.target, strategy, self.settings.device, self.settings.sizes, self.settings.per_block)

    def _measure(self, strategy: Strategy) -> None:
        """Bytes, FLOPs, gradients and compile seconds, in a new worker, which is kept for its seconds."""
        try:
            self._measure_in_turn(strategy)
        finally:
            self._duplicates.end(strategy)
            if strategy == INDUCTOR:
                self._has_inductors.set()

    def _measure_in_turn(self, strategy: Strategy) -> None:
        if self._is_over():
            return
        place = Path(mkdtemp(dir=self._scratch.name))  # what is begun again finds nothing compiled either
        (place / "cache").mkdir()
        if strategy.runner != "eager":
            self._warm_up()
            if self._draws_random and strategy != INDUCTOR:
                self._has_inductors.wait()
            shutil.copytree(self._warm_cache, place / "cache", dirs_exist_ok=True)
        if self._is_over():
            return
        self.on_stage(strategy, "starting")
        worker = self._begin(place / "log", place / "cache")
        blank = self.blank(strategy)
        try:
            answer = worker.ask(
                {**self._request(strategy), "do": "measure"},
                on_stage=lambda stage: self.on_stage(strategy, stage),
                is_known=lambda plan: self._is_known(strategy, plan),
                timeout=self._left(),
            )
            found = _found(answer, blank)
        except WorkerDied as error:
            if self._is_over():
                worker.close()
                return
            found = replace(blank, status=FAILED, error=str(error))
        except BaseException:
            worker.close()
            raise
        else:
            self.parameters = answer.get("parameters", self.parameters)
        finally:
            self._measuring.discard(worker)
        is_duplicate = found.status == MEASURED and found.peak is None
        if found.status == MEASURED and not is_duplicate:
            self._workers[strategy] = worker
        else:
            worker.close()
        if is_duplicate:
            self._duplicates.wait(strategy, found)
        else:
            self._add(strategy, found)

    def _add(self, strategy: Strategy, found: Measurement) -> None:
        before = self.store.get(found)
        if before is None or before.status == FAILED or found.status == MEASURED:
            times = {} if before is None else _times_of(before)
            self.store.add(replace(found, **times))
        self.on_stage(strategy, "done")

    def _is_known(self, strategy: Strategy, plan: str) -> bool:
        """Whether a plan was measured, or another of those under way came to it before."""
        return plan in self._known(self.blank(strategy)) or self._duplicates.is_of_another(plan, strategy)

    def _settle(self) -> set[Strategy]:
        """Add the rows of twins whose first is measured; return those that waited in vain, to be begun again."""
        again = set()
        for strategy, found in self._duplicates.ready().items():
            if (first := self._known(found).get(found.plan_hash)) is not None:
                self._add(strategy, _with_plan_of(first, found))
            else:
                self._duplicates.begin_again(strategy)
                again.add(strategy)
        return again

    def _known(self, blank: Measurement) -> dict[str, Measurement]:
        """By its hash each plan that is not to be measured again, and who was measured with it.

        That is another strategy of this planner or, unless times are taken again, any of an earlier one, timed where
        that is asked for, that was carried out by the same code.
        """
        known: dict[str, Measurement] = {}
        for row in self.store.rows(blank.model, blank.device, blank.torch):
            its_own = row.strategy == blank.strategy
            if row.source == blank.source:
                is_known = not its_own  # which may be taken again
            else:
                is_timed = row.step_seconds is not None or not self.settings.rounds
                is_known = row.carrier == blank.carrier and is_timed and not self.settings.retime
            if is_known and row.peak is not None and row.plan_hash and (its_own or row.plan_hash not in known):
                known[row.plan_hash] = row
        return known

    def _time_and_release(self) -> None:
        """Step seconds of all workers that wait, in turns; then all but Inductor's end."""
        others = [s for s in self._workers if s != INDUCTOR]
        if self.settings.rounds and self._workers and (others or self.is_pending(INDUCTOR)):
            for strategy, timing, ratio in self._timings():
                row = self.store.get(self.blank(strategy))
                again = strategy != INDUCTOR or strategy in self._to_retime
                self._to_retime.discard(strategy)
                if row is not None and (again or row.step_seconds is None):
                    self.store.add(
                        replace(row, step_seconds=timing.median, step_ratio=ratio, rounds=len(timing.seconds))
                    )
        for strategy in others:
            self._workers.pop(strategy).close()

    def _timings(self) -> list[tuple[Strategy, Timing, tuple[float, float, float] | None]]:
        seconds: dict[Strategy, list[float]] = {s: [] for s in self._workers}
        for round_ in range(self.settings.rounds):
            names = list(seconds)
            start = round_ % max(1, len(names))
            for strategy in names[start:] + names[:start]:
                self.on_stage(strategy, f"timing, round {round_ + 1} of {self.settings.rounds}")
                try:
                    answer = self._workers[strategy].ask({"do": "time"}, timeout=self.settings.timeout or math.inf)
                    seconds[strategy].append(answer["seconds"])
                except (WorkerDied, KeyError):
                    del seconds[strategy]
        timings = {s: Timing(tuple(found)) for s, found in seconds.items()}
        reference = timings.get(INDUCTOR)
        return [
            (s, timing, _quartiles(timing.relative_to(reference)) if reference else None)
            for s, timing in timings.items()
        ]


def _with_plan_of(known: Measurement, found: Measurement) -> Measurement:
    """What was ``found`` of a strategy that has the plan of a ``known`` row; where that is its own, what it says."""
    if known.strategy != found.strategy:
        return replace(found, same_plan_as=known.strategy)
    return replace(known, source=found.source, floor=found.floor, ceiling=found.ceiling)


def _times_of(row: Measurement) -> dict[str, Any]:
    return {"step_seconds": row.step_seconds, "step_ratio": row.step_ratio, "rounds": row.rounds}


def _quartiles(timing: Timing) -> tuple[float, float, float]:
    lower, upper = timing.spread
    return lower, statistics.median(timing.seconds), upper


class _Remote(Exception):
    """A traceback of another process, for --debug."""


def _found(answer: dict[str, Any], blank: Measurement) -> Measurement:
    if "error" in answer:
        raise MeasureError(answer["error"]) from _Remote(answer.get("traceback", ""))
    if "failed" in answer:
        return replace(blank, status=FAILED, error=answer["failed"])
    return Measurement.from_json(answer["found"]) if "found" in answer else blank
