"""What was planned in this process: records, listeners, the log line, reports, and a warning about shared budgets."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from rematpass.budget import Budget
from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.schedule import Plan
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.report.files import write
from rematpass.report.report import Provenance, Report, explain
from rematpass.report.summary import Summary

log = logging.getLogger("rematpass")


class Decision(NamedTuple):
    """The ladder that a rung was chosen from, and the summary of the choice."""

    ladder: Ladder
    summary: Summary


@dataclass(frozen=True)
class Record:
    """One planned graph: the decision, and all that is needed to explain it.

    ``hardware``: the preset behind the estimated seconds. ``decide``: makes the ladder and the summary; it is called
    when they are needed first, since without a limit the modules do not depend on them. ``saved_by_torch``: what
    torch's own partitioner would save, if known.
    """

    problem: Problem
    rung: Rung
    hardware: str
    decide: Callable[[], Decision] = dataclasses.field(repr=False, compare=False)
    saved_by_torch: frozenset[int] | None = None

    def __post_init__(self) -> None:
        # Without its cached intermediate results, which are large.
        object.__setattr__(self, "problem", dataclasses.replace(self.problem))

    @functools.cached_property
    def _decision(self) -> Decision:
        return self.decide()

    @property
    def is_decided(self) -> bool:
        """Whether the ladder and the summary have been made."""
        return "_decision" in vars(self)

    @property
    def ladder(self) -> Ladder:
        return self._decision.ladder

    @property
    def summary(self) -> Summary:
        return self._decision.summary

    @property
    def graph(self) -> JointGraph:
        return self.problem.graph

    @property
    def plan(self) -> Plan:
        return self.rung.plan

    @property
    def peak_of_one_call(self) -> int:
        """The planned peak in bytes, without what other calls of the graph in the same step have saved."""
        return self.summary.planned_peak - self.summary.nbytes_of_others

    def report(self, model: str = "") -> Report:
        """The full report on the graph. ``model``: its name; empty: the class of the module being called, if any."""
        running = compile_context.running_modules()
        model = model or (type(running[-1]).__name__ if running else "")
        return explain(
            dataclasses.replace(self.problem),
            self.ladder,
            self.rung,
            self.summary,
            hardware=self.hardware,
            saved_by_torch=self.saved_by_torch,
            provenance=Provenance.now(model, torch.__version__),
        )


@dataclass(frozen=True)
class _Compilation:
    """The graphs that one compilation of a frame has planned: several if it has regions, or is split for DDP."""

    token: object
    records: tuple[Record, ...]


_lock = threading.Lock()  # several threads may compile
_last: dict[object, _Compilation] = {}  # by frame; outside of Dynamo by the graph's name
_listeners: list[Callable[[Record], None]] = []


def records() -> list[Record]:
    """The last record of each graph planned in this process, oldest first."""
    with _lock:
        return [record for compilation in _last.values() for record in compilation.records]


def plans(clear: bool = False) -> list[Summary]:
    """The last summary of each graph planned in this process, oldest first.

    If a graph is compiled again, for other sizes or after ``torch._dynamo.reset()``, its new summary takes the place
    of the old one. Graphs from a compile cache are not planned, so they have none. ``clear``: forget all of them.
    """
    with _lock:
        found = [record for compilation in _last.values() for record in compilation.records]
        if clear:
            _last.clear()
    return [record.summary for record in found]


@contextlib.contextmanager
def listening(callback: Callable[[Record], None]) -> Iterator[None]:
    """Inside the ``with``, call ``callback`` with each planned graph, on any thread, before the graph is compiled.

    The callback may raise to end the compilation.
    """
    _listeners.append(callback)
    try:
        yield
    finally:
        _listeners.remove(callback)


def publish(record: Record, *, always: bool, report_dir: str = "") -> None:
    """Keep the record, log its summary, write its report if a directory is given, and call the listeners."""
    _keep(record)
    if is_told(always):
        tell(record.summary, always=always)
    if report_dir:
        _write_report(record, Path(report_dir))
    for listener in list(_listeners):
        listener(record)


def _keep(record: Record) -> None:
    """Keep ``record`` in place of those of earlier compilations of its frame."""
    frame, token = compile_context.frame_id(), compile_context.compilation()
    key = record.graph.name if frame is None else frame
    with _lock:
        earlier = _last.pop(key, None)
        same = earlier is not None and token is not None and earlier.token == token
        _last[key] = _Compilation(token, (*(earlier.records if earlier and same else ()), record))


def is_told(always: bool) -> bool:
    """Whether ``tell`` has any effect."""
    return always or log.isEnabledFor(logging.INFO) or _torch.traces_structured()


def tell(summary: Summary, *, always: bool, cached: bool = False) -> None:
    """Log the summary as one line, at INFO level, or as a warning if ``always`` and the log does not show INFO.

    ``cached``: another process has made the plan, and the compiled graph comes from the compile cache.
    """
    level = logging.INFO if log.isEnabledFor(logging.INFO) or not always else logging.WARNING
    log.log(level, "%s%s", summary.line(), ", from the compile cache" if cached else "")
    _torch.trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "rematpass_plan", "encoding": "json"},
        payload_fn=lambda: json.dumps(dataclasses.asdict(summary)),
    )


def _write_report(record: Record, directory: Path) -> None:
    """Write the report; a failure is logged and does not stop training."""
    try:
        paths = write(record.report(), directory)
    except Exception as error:
        log.warning("no report of %s: %s: %s", record.graph.name, type(error).__name__, error)
    else:
        log.info("report of %s: %s", record.graph.name, paths["html"])


class SharedBudgetWarning:
    """Warns once per budget if several frames are planned under a budget in bytes, which holds for each by itself.

    It can warn again after ``torch._dynamo.reset()``, which clears Dynamo's set of the warnings that it has given.
    """

    _MARK = "rematpass has planned a frame under a budget in bytes"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: int | None = None
        self._warned_of = ""

    def check(self, budget: Budget) -> None:
        """Call this for each graph that is planned under a budget in bytes, while it is being compiled."""
        frame = compile_context.frame_id()
        with self._lock:
            if self._MARK not in _torch.warn_once_cache:
                _torch.warn_once_cache.add(self._MARK)
                self._first, self._warned_of = frame, ""
            if frame == self._first or self._warned_of == str(budget):
                return
            self._warned_of = str(budget)
        log.warning(
            "more than one graph is trained under the memory budget of %s: it holds for each of them by itself, "
            "not for their sum. Compile the model as one graph, or lower the budget",
            budget,
        )


shared_budget_warning = SharedBudgetWarning()
