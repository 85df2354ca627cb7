"""``REMAT_COST=measure``: the seconds of expensive ops, measured on this device instead of estimated.

An op that runs as a kernel of its own (a matrix product, a convolution, attention, a sort, a scatter) is timed once per
shape, with sample arguments; the median of a few calls replaces the roofline estimate. Ops that Inductor fuses keep
their estimate, since run alone they would pay for reads and writes that fusion removes. So do ops that draw random
numbers, communicate, overwrite, or are opaque.

Measured seconds are stored beside Inductor's cache, under the names of the device and the torch version, so an op is
timed once per machine. Ranks of a distributed run must choose the same plans, so all take the seconds of rank 0; every
rank compiles the same graphs in the same order, as distributed training requires.

Source: Checkmate (Jain et al., MLSys 2020) and Inductor (``config.benchmark_kernel``) measure instead of modelling too.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from rematpass.compiler import _torch, devices
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.ops.sample_call import SampleCall, sample_call_of
from rematpass.core.cost import Costs
from rematpass.core.op import LIBRARY_KINDS, Kind
from rematpass.errors import RematError
from rematpass.report.atomic import write_text

log = logging.getLogger("rematpass")

TIMED = LIBRARY_KINDS | {Kind.KERNEL, Kind.SCATTER}
_CALLS = 5  # timed calls per op, after one that is not timed
_ENOUGH = 0.25  # seconds after which a slow op is not called again


def measured(captured: Captured, costs: Costs, device: torch.device) -> Costs:
    """``costs`` with the seconds per run measured on ``device``, for each op that can be timed.

    An op that cannot be called, for example for lack of memory, keeps its estimate.
    """
    calls = timed_calls(captured)
    keys = {op: call.key for op, call in calls.items()}
    seconds = _of_rank_0(lambda: _table({call.key: call for call in calls.values()}, device))
    run = [seconds.get(keys.get(op, ""), estimate) for op, estimate in enumerate(costs.run)]
    return dataclasses.replace(costs, run=tuple(run))


def timed_calls(captured: Captured) -> dict[int, SampleCall]:
    """The calls of ops that can be timed, by op. Calls with the same ``key`` take the same time."""
    last, nodes = captured.channels_last, captured.op_node
    timed = (op.id for op in captured.graph.ops if op.kind in TIMED)
    return {op: call for op in timed if (call := sample_call_of(nodes[op], channels_last=last))}


def _table(calls: dict[str, SampleCall], device: torch.device) -> dict[str, float]:
    """Seconds by key: the stored ones, and the rest measured now."""
    path = _path(device)
    known = _read(path)
    missing = {key: call for key, call in calls.items() if key not in known}
    for key, call in missing.items():
        try:
            known[key] = seconds_of_call(call, device)
        except Exception as error:  # the op keeps its estimate
            log.debug("%s could not be timed: %s", key, error)
    if missing:
        _write(path, known)
    return {key: known[key] for key in calls if key in known}


def seconds_of_call(call: SampleCall, device: torch.device) -> float:
    """Seconds of one call with sample arguments: the median of a few calls."""
    draw = torch.Generator(device)
    draw.manual_seed(0)
    with _torch.without_modes(), torch.no_grad():
        run, kind = call.prepare(draw), devices.of(device)
        taken: list[float] = []
        begun = time.perf_counter()
        kind.call_seconds(device, run)
        while len(taken) < _CALLS and (not taken or time.perf_counter() - begun < _ENOUGH):
            taken.append(kind.call_seconds(device, run))
    return statistics.median(taken)


def _of_rank_0(table: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The table of this process, or of rank 0 in a distributed run."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return table()
    found = [table() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found, src=0)
    return found[0] or {}


def _path(device: torch.device) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", f"{devices.of(device).label(device)} {torch.__version__}".lower())
    return Path(_torch.cache_directory()) / "rematpass" / f"seconds_{name}.json"


def _read(path: Path) -> dict[str, float]:
    try:
        return {str(key): float(seconds) for key, seconds in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}


def _write(path: Path, table: dict[str, float]) -> None:
    """Write the table atomically, since other processes may use it; log an error and continue."""
    try:
        write_text(path, json.dumps(table, indent=0, sort_keys=True))
    except RematError as error:
        log.debug("the measured seconds of ops could not be stored: %s", error)
