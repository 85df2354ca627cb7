"""A job: one strategy on one model; and the key under which its measurement is filed.

The key holds the model with its sizes, the strategy, the device, torch's version and, for remat, two hashes of the
package's sources and settings. ``source`` covers everything that influences a plan. ``carrier`` leaves out the sources
that only choose a plan, so that the measurement of an equal plan from an earlier planner remains valid.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from rematpass.compiler import devices
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.source_hash import behavior_hash
from rematpass.config import Config
from rematpass.report.measurement import PER_BLOCK, Measurement, Strategy

_ONLY_CHOOSE = ("core/solve/", "core/frontier.py", "core/hardware.py")  # these sources do not affect emitted code


@dataclass(frozen=True)
class Job:
    """What to measure.

    ``target``: a model of the catalog, or package.module:function. ``sizes``: sizes of a catalog model.
    ``per_block``: compile each block by itself and nothing else of the model.
    ``eager_step``: the file in which ``subject.save_eager_step`` shares a catalog model's eager step between processes.
    ``inductor_gradients``: the file to which plain Inductor writes its gradients and from which the other compiled
    strategies read them.
    """

    target: str
    strategy: Strategy
    device: str = "cpu"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    per_block: bool = False
    eager_step: str = ""
    inductor_gradients: str = ""


def blank(job: Job) -> Measurement:
    """The job's measurement with its key and no figures."""
    device = devices.usable(job.device)
    name = job.target + "".join(f",{k}={v}" for k, v in sorted(job.sizes.items())) + PER_BLOCK * job.per_block
    source, carrier = ("", "") if job.strategy.is_peer else (source_hash(device), carrier_hash(device))
    return Measurement(
        model=name,
        strategy=job.strategy.name,
        device=devices.of(device).label(device),
        torch=str(torch.__version__),
        source=source,
        carrier=carrier,
        budget_nbytes=job.strategy.nbytes,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def source_hash(device: torch.device) -> str:
    """A hash of everything that influences a plan: the sources, torch, and the settings except the budget."""
    return RematPartitioner(Config.read({"memory_budget": 1}), device=device).key(behavior_hash()).hex()[:12]


def carrier_hash(device: torch.device) -> str:
    """A hash of what turns a plan into code: as ``source_hash``, without the sources that only choose a plan."""
    said = [behavior_hash(but=_ONLY_CHOOSE), Config.read({"memory_budget": 1}).key()]
    said += devices.of(device).library_settings()
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]
