"""Ops to seconds: what running one again costs, and what keeping a value costs.

A roofline: an op that materializes takes ``max(flops / rate, bytes / bandwidth)``. Pointwise ops, reductions and
copies are compiled into fused kernels, so they cost what they add to one: their arithmetic, and the bytes of what
they write to memory (the reads are charged to the values they end at). That is why a recomputed activation function
is nearly free and a recomputed matmul is not.

A value is *materialized* when some kernel boundary forces it into memory: its producer is not fusible, or a reader is
not, or it is an output. Saving a materialized value costs one read in backward; saving another one costs the write as
well. Truth values are few bytes and not always cheap: a CPU packs and unpacks them one by one.

Source: the roofline model, Williams, Waterman and Patterson 2009; recomputing what fuses for free, the design of
torch's min-cut partitioner (dev-discuss.pytorch.org, "Min-cut optimal recomputation", 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rematpass.core.graph import JointGraph
from rematpass.core.hardware import FLOPS_PER_ELEMENT, Hardware
from rematpass.core.op import Kind, Op, Value

FUSIBLE = frozenset({Kind.POINTWISE, Kind.REDUCTION, Kind.COPY, Kind.CREATE, Kind.INDEXING, Kind.RANDOM, Kind.SEEDED})
ALWAYS_REALIZED = frozenset(
    {Kind.REDUCTION, Kind.SEEDED}
)  # fused with their neighbours, but not run again in each reader
FREE = frozenset({Kind.SYMBOLIC})


@dataclass(frozen=True)
class Costs:
    """Seconds, by id. ``run``: one run of each op; ``keep``: writing (if need be) and reading back each value."""

    run: tuple[float, ...]
    keep: tuple[float, ...]

    @cached_property
    def run_array(self) -> NDArray[np.float64]:
        """``run``, to reckon with."""
        return np.array(self.run)

    @property
    def step(self) -> float:
        """Seconds of one training step in which every op runs once."""
        return sum(self.run)


def estimate(graph: JointGraph, hardware: Hardware) -> Costs:
    """The roofline estimate of every op and value of ``graph`` on ``hardware``."""
    in_memory = materialized(graph)
    run = tuple(_run_seconds(graph, op, hardware, in_memory) for op in graph.ops)
    keep = tuple((1 if v.id in in_memory else 2) * _access_seconds(v, hardware) for v in graph.values)
    return Costs(run=run, keep=keep)


def materialized(graph: JointGraph) -> frozenset[int]:
    """Values that stand in memory whatever is saved: made or read by an op that does not fuse, or an output."""
    found = set(graph.fwd_outputs) | set(graph.bwd_outputs)
    found.update(v.id for v in graph.values if graph.producer[v.id] is None)
    for op in graph.ops:
        if op.kind not in FUSIBLE | FREE:
            found.update(op.reads)
        if op.kind not in (FUSIBLE | FREE) - {Kind.REDUCTION}:
            found.update(op.writes)
    return frozenset(found)


def _access_seconds(value: Value, hardware: Hardware) -> float:
    """Of one write of a value to memory, or one read."""
    packing = value.nbytes * hardware.mask / hardware.vector_flops if value.dtype == "bool" else 0.0
    return value.nbytes / hardware.bandwidth + packing


def _run_seconds(graph: JointGraph, op: Op, hardware: Hardware, in_memory: frozenset[int]) -> float:
    written = sum(graph.values[v].nbytes for v in op.writes)
    if op.kind in FREE:
        return 0.0
    if op.kind in FUSIBLE:
        elements = max(written, op.nbytes_read) / 4
        to_memory = sum(_access_seconds(graph.values[v], hardware) for v in op.writes if v in in_memory)
        flops = elements * (hardware.draw if op.kind is Kind.SEEDED else FLOPS_PER_ELEMENT)
        return flops / hardware.vector_flops + 2 * to_memory
    moved = op.nbytes_read + 2 * written
    rate = hardware.matrix_rate(op.dtype) * (hardware.attention if op.kind is Kind.ATTENTION else 1.0)
    return hardware.launch_seconds + max(op.flops / rate, moved / hardware.bandwidth)
