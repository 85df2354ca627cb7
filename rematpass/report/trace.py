"""The timeline as a trace for ui.perfetto.dev and chrome://tracing: ops, memory by role, and lifetimes of values.

Times are those of the cost model, in microseconds: each op starts when the previous one ends. Bytes are counters.

Source: the Trace Event Format ("X" complete events, "C" counters, "b" and "e" asynchronous events, "M" metadata).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from rematpass.report.layers import clean
from rematpass.report.occupancy import ROLES, Occupant
from rematpass.report.report import Report

_STEP, _MEMORY = 1, 2  # the trace's two processes
_FORWARD, _BACKWARD, _RECOMPUTE = 1, 2, 3  # threads of the step
_MOST_LIVES = 500

Event = dict[str, Any]


def to_trace(report: Report) -> str:
    """The trace as a JSON document, with the report's origin as its metadata."""
    events = [*_names(report), *_ops(report), *_counters(report), *_lives(report)]
    origin = {"model": report.provenance.model, "date": report.provenance.date, **dict(report.provenance.versions)}
    document = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": origin}
    return json.dumps(document, separators=(",", ":"))


def _starts(report: Report) -> list[float]:
    """The start of each run and the end of the last one, in microseconds."""
    return list(itertools.accumulate((s * 1e6 for s in report.seconds), initial=0.0))


def _names(report: Report) -> Iterator[Event]:
    processes = {_STEP: f"{report.summary.graph}, planned for {report.hardware}", _MEMORY: "memory, bytes"}
    for pid, name in processes.items():
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    for tid, name in ((_FORWARD, "forward"), (_BACKWARD, "backward"), (_RECOMPUTE, "recomputed in backward")):
        yield {"ph": "M", "name": "thread_name", "pid": _STEP, "tid": tid, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", "pid": _STEP, "tid": tid, "args": {"sort_index": tid}}


def _ops(report: Report) -> Iterator[Event]:
    starts, graph = _starts(report), report.graph
    for position, run in enumerate(report.timeline.runs):
        op = graph.ops[run.op]
        in_forward = position < report.timeline.first_backward
        yield {
            "ph": "X",
            "pid": _STEP,
            "tid": _FORWARD if in_forward else _RECOMPUTE if run.copy else _BACKWARD,
            "name": op.name,
            "cat": op.kind.value,
            "ts": starts[position],
            "dur": starts[position + 1] - starts[position],
            "args": {
                "module": clean(op.module),
                "source": op.source,
                "flops": op.flops,
                "bytes written": sum(graph.values[v].nbytes for v in op.writes),
                "bytes alive": report.timeline.live[position],
            },
        }


def _counters(report: Report) -> Iterator[Event]:
    starts = _starts(report)
    for position, sizes in enumerate(zip(*report.occupancy.by_role, strict=True)):
        roles = {role.value: nbytes for role, nbytes in zip(ROLES, sizes, strict=True)}
        yield {"ph": "C", "pid": _MEMORY, "name": "bytes alive", "ts": starts[position], "args": roles}


def _lives(report: Report) -> Iterator[Event]:
    """The lifetimes of the largest values."""
    starts = _starts(report)

    def of_size(occupant: Occupant) -> tuple[int, int, int]:
        return -occupant.nbytes, occupant.value, occupant.copy

    for id, o in enumerate(sorted(report.occupancy.occupants, key=of_size)[:_MOST_LIVES]):
        value = report.graph.values[o.value]
        name = f"{value.name} {value.dtype}[{', '.join(value.shape)}]"
        same: Event = {"pid": _MEMORY, "cat": o.role.value, "id": id, "name": name}
        yield {**same, "ph": "b", "ts": starts[o.born], "args": {"bytes": o.nbytes, "copy": o.copy}}
        yield {**same, "ph": "e", "ts": starts[o.end + 1]}
