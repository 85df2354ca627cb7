"""Measure strategies side by side on one model: bytes in parallel jobs, one process each; step times in turns.

A strategy that the store has is not measured again, and of strategies with equal plans only the first is measured. When
the planner has changed, it plans again, and only plans that differ are measured again.

remat can be given the measured peak of each peer as its budget, which compares speed at the same peak. While step times
are taken nothing else runs, and each time is divided by plain Inductor's in the same round, so Inductor always takes
part.

Compiled strategies wait for the cache that is warmed up once and, if the model draws random numbers, for plain
Inductor's gradients. remat at a peer's bytes waits for that peer and for the other remat strategies, whose plans it may
equal. Eager strategies wait for nothing, so they run beside the warm-up::

        job 1   Inductor: warming up, measuring ──────▶ remat 0 ─────▶ ...   remat at eager's bytes ──▶ ...
        job 2   eager ─▶ eager + checkpoint ─▶ remat 1 ────────▶ ...         remat at Inductor's ─────▶ ...
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from types import TracebackType
from typing import Any

from rematpass.errors import MeasureError
from rematpass.lab.benchmark.duplicate_plans import DuplicatePlans
from rematpass.lab.benchmark.job import blank
from rematpass.lab.benchmark.known_plans import known_plans, with_figures_of
from rematpass.lab.benchmark.spec import INDUCTOR, Settings, Wanted
from rematpass.lab.benchmark.step_times import fields_of, time_in_turns
from rematpass.lab.benchmark.store import Store
from rematpass.lab.benchmark.worker import Worker, WorkerDied
from rematpass.lab.benchmark.workers import Workers
from rematpass.report.measurement import FAILED, MEASURED, Measurement, Strategy, unique


class Session:
    """Measures one model. A context manager: on exit all workers end and their files are removed.

    ``on_stage(strategy, stage)`` is called when a strategy reaches a stage ("compiling"), ``on_row(strategy, row)``
    when it is measured except for its step times. Both are called from several threads if there are several jobs.
    """

    def __init__(
        self,
        target: str,
        store: Store,
        settings: Settings,
        on_stage: Callable[[Strategy, str], None] = lambda *_: None,
        on_row: Callable[[Strategy, Measurement], None] = lambda *_: None,
    ) -> None:
        self.store, self.settings, self.on_stage, self.on_row = store, settings, on_stage, on_row
        self.parameters = 0
        self._workers = Workers(target, settings)
        self._to_retime: set[Strategy] = set()
        self._draws_random = True  # until the warm-up finds out
        self._has_inductor_gradients = threading.Event()
        self._duplicates = DuplicatePlans()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.end()
        self._workers.remove_files()

    @property
    def model(self) -> str:
        """The model's name in the store: the target, its sizes, and whether its blocks are compiled one by one."""
        return self.blank(INDUCTOR).model

    def blank(self, strategy: Strategy) -> Measurement:
        """The strategy's measurement with its key and no figures."""
        return blank(self._workers.job(strategy))

    def rows(self, strategies: Iterable[Strategy]) -> list[Measurement]:
        """The rows of these strategies in the store."""
        found = (self.store.get(self.blank(strategy)) for strategy in strategies)
        return [row for row in found if row is not None]

    def is_pending(self, strategy: Strategy) -> bool:
        """Whether bytes or step times of the strategy are still to be measured."""
        row = self.store.get(self.blank(strategy))
        if row is None or (row.status == FAILED and self.settings.retry):
            return True
        untimed = (row.step_seconds is None or strategy in self._to_retime) and not row.same_plan_as
        return row.status == MEASURED and untimed and self.settings.rounds > 0

    def run(self, wanted: Wanted) -> list[Strategy]:
        """Measure what is pending, and return all strategies, remat at a peer's bytes after that peer.

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
                while (ready := self._ready(wanted, begun, set(running.values()))) or running:
                    free = min(self.settings.jobs, most - len(self._workers.by_strategy)) - len(running)
                    for strategy in ready[: max(0, free)]:
                        begun.add(strategy)
                        running[pool.submit(self._measure, strategy)] = strategy
                    if not running:
                        self._time_and_release()
                    for done in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[done]
                        done.result()
                    begun -= self._settle_duplicates()
            except BaseException:
                self._workers.end()  # otherwise leaving the pool waits for the running measurements
                raise
        self._time_and_release()
        return self.listed(wanted)

    def _ready(self, wanted: Wanted, begun: set[Strategy], running: set[Strategy]) -> list[Strategy]:
        """Pending strategies that can start now: Inductor first; those at a peer's bytes once no other remat runs."""
        eager = [s for s in wanted.peers if s.runner == "eager"]
        candidates = unique([INDUCTOR, *eager, *wanted.budgets, *wanted.peers])
        if begun.issuperset(s for s in wanted.budgets if self.is_pending(s)) and running.isdisjoint(wanted.budgets):
            candidates = unique([*candidates, *wanted.derived(self.rows(wanted.given))])
        found = [s for s in candidates if s not in begun and s != INDUCTOR and self.is_pending(s)]
        is_given = INDUCTOR in wanted.given and self.is_pending(INDUCTOR)
        is_due = INDUCTOR not in begun and INDUCTOR not in self._workers.by_strategy and (found or is_given)
        return [INDUCTOR, *found] if is_due else found

    def listed(self, wanted: Wanted) -> list[Strategy]:
        """All wanted strategies, including those that follow from the store's rows."""
        derived = wanted.derived(self.rows(wanted.given))
        like = {s.like: s for s in derived if s.like}
        paired = [s for peer in wanted.given for s in (peer, like.get(peer.name)) if s is not None]
        return unique([*paired, *derived])

    def _warm_up(self, worker: Worker) -> None:
        """Check that the model trains, and find out whether it draws random numbers.

        Raises:
            MeasureError: the model cannot be built or does not train.
        """
        self.on_stage(INDUCTOR, "trying model and compiler")
        request = {**self._workers.request(INDUCTOR), "do": "warm up"}
        try:
            answer = worker.ask(request, timeout=self._workers.seconds_left())
        except WorkerDied:
            return  # each strategy's row will record its own failure
        _parsed(answer, self.blank(INDUCTOR))
        self._draws_random = answer.get("draws_random", True)

    def _measure(self, strategy: Strategy) -> None:
        """Measure bytes, FLOPs, gradients and compile seconds in a new worker, which is kept for the step times."""
        try:
            if (worker := self._start(strategy)) is not None:
                self._measure_in(worker, strategy)
        finally:
            self._duplicates.end(strategy)
            if strategy == INDUCTOR:
                self._has_inductor_gradients.set()

    def _start(self, strategy: Strategy) -> Worker | None:
        """A worker for the strategy, once what it waits for is available; None if the session is over by then."""
        if self._workers.is_over():
            return None
        place = self._workers.new_place()
        if strategy.runner != "eager":
            self._workers.warm_up_once(self._warm_up)
            if self._draws_random and strategy != INDUCTOR:
                self._has_inductor_gradients.wait()
            shutil.copytree(self._workers.warm_cache, place / "cache", dirs_exist_ok=True)
        if self._workers.is_over():
            return None
        self.on_stage(strategy, "starting")
        return self._workers.start(place / "log", place / "cache")

    def _measure_in(self, worker: Worker, strategy: Strategy) -> None:
        empty = self.blank(strategy)
        try:
            answer = worker.ask(
                {**self._workers.request(strategy), "do": "measure"},
                on_stage=lambda stage: self.on_stage(strategy, stage),
                is_known=lambda plan: self._is_known(strategy, plan),
                timeout=self._workers.seconds_left(),
            )
            found = _parsed(answer, empty)
        except WorkerDied as error:
            if self._workers.is_over():
                self._workers.close(worker)
                return
            found = replace(empty, status=FAILED, error=str(error))
        except BaseException:
            self._workers.close(worker)
            raise
        else:
            self.parameters = answer.get("parameters", self.parameters)
        is_duplicate = found.status == MEASURED and found.peak is None
        if found.status == MEASURED and not is_duplicate:
            self._workers.keep(strategy, worker)
        else:
            self._workers.close(worker)
        if is_duplicate:
            self._duplicates.wait(strategy, found)
        else:
            self._add(strategy, found)

    def _add(self, strategy: Strategy, found: Measurement) -> None:
        before = self.store.get(found)
        if before is None or before.status == FAILED or found.status == MEASURED:
            times = {} if before is None else fields_of(before)
            self.store.add(replace(found, **times))
        self.on_row(strategy, found)

    def _is_known(self, strategy: Strategy, plan: str) -> bool:
        """Whether the plan is measured, or a strategy that runs now has the same plan."""
        known = known_plans(self.store, self.blank(strategy), self.settings)
        return plan in known or self._duplicates.is_of_another(plan, strategy)

    def _settle_duplicates(self) -> set[Strategy]:
        """Add the rows of duplicates whose first strategy is measured; return those whose first failed, to restart."""
        restart = set()
        for strategy, found in self._duplicates.ready().items():
            if (first := known_plans(self.store, found, self.settings).get(found.plan_hash)) is not None:
                self._add(strategy, with_figures_of(first, found))
            else:
                self._duplicates.begin_again(strategy)
                restart.add(strategy)
        return restart

    def _time_and_release(self) -> None:
        """Take the step times of all waiting workers in turns; then end all workers except Inductor's."""
        workers = self._workers.by_strategy
        others = [s for s in workers if s != INDUCTOR]
        if self.settings.rounds and workers and (others or self.is_pending(INDUCTOR)):
            for strategy, times in time_in_turns(workers, self.settings, self.on_stage).items():
                row = self.store.get(self.blank(strategy))
                again = strategy != INDUCTOR or strategy in self._to_retime
                self._to_retime.discard(strategy)
                if row is not None and (again or row.step_seconds is None):
                    self.store.add(replace(row, **times.fields()))
        for strategy in others:
            workers.pop(strategy).close()


class _RemoteTraceback(Exception):
    """The traceback of another process, which --debug shows."""


def _parsed(answer: dict[str, Any], empty: Measurement) -> Measurement:
    if "error" in answer:
        raise MeasureError(answer["error"]) from _RemoteTraceback(answer.get("traceback", ""))
    if "failed" in answer:
        return replace(empty, status=FAILED, error=answer["failed"])
    return Measurement.from_json(answer["found"]) if "found" in answer else empty
