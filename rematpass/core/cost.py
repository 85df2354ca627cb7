"""The cost model: the seconds of running an op, and of saving a value.

A roofline: an op with a kernel of its own takes ``max(flops / rate, bytes / bandwidth)``. Pointwise ops, reductions and
copies are fused into kernels, so they cost what they add to one: their arithmetic, and the bytes that they write to
memory (a read is charged to the value that is read). So recomputing an activation function is nearly free, and
recomputing a matrix product is not.

A value is *materialized* if a kernel boundary forces it into memory: its producer does not fuse, a reader does not, or
it is an output. Saving a materialized value costs one read in backward; saving any other value costs the write as well.
Bools take few bytes, but can be expensive: a CPU packs and unpacks them one by one (``Hardware.mask``).

Source: the roofline model, Williams, Waterman and Patterson 2009; free recomputation of fused ops, as in
torch's min-cut partitioner (dev-discuss.pytorch.org, "Min-cut optimal recomputation", 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.graph import JointGraph
from rematpass.core.hardware import FLOPS_PER_ELEMENT, Hardware
from rematpass.core.op import Kind, Op, Value
from rematpass.core.ragged import Floats

# Compiled into fused kernels.
FUSIBLE = frozenset({Kind.POINTWISE, Kind.REDUCTION, Kind.COPY, Kind.CREATE, Kind.INDEXING, Kind.RANDOM, Kind.SEEDED})
# Fused with their neighbours, but not repeated in each reader.
ALWAYS_REALIZED = frozenset({Kind.REDUCTION, Kind.SEEDED})
# No kernel, no bytes, no seconds.
FREE = frozenset({Kind.SYMBOLIC})


@dataclass(frozen=True)
class Costs:
    """Seconds of ops and values, by id."""

    run: tuple[float, ...]  # per op: one run
    keep: tuple[float, ...]  # per value: writing it, unless it is materialized anyway, and reading it in backward

    @cached_property
    def run_array(self) -> Floats:
        """``run`` as an array."""
        return np.array(self.run)

    @property
    def step(self) -> float:
        """The seconds of a training step in which every op runs once."""
        return sum(self.run)


def estimate(graph: JointGraph, hardware: Hardware) -> Costs:
    """The seconds of every op and value of ``graph`` on ``hardware``, by the roofline model."""
    in_memory = materialized(graph)
    run = tuple(_run_seconds(graph, op, hardware, in_memory) for op in graph.ops)
    keep = tuple((1 if v.id in in_memory else 2) * _access_seconds(v, hardware) for v in graph.values)
    return Costs(run=run, keep=keep)


def materialized(graph: JointGraph) -> frozenset[int]:
    """Values that are in memory whatever is saved: written or read by an op that does not fuse, or outputs."""
    found = set(graph.fwd_outputs) | set(graph.bwd_outputs)
    found.update(v.id for v in graph.values if graph.producer[v.id] is None)
    for op in graph.ops:
        if op.kind not in FUSIBLE | FREE:
            found.update(op.reads)
        if op.kind not in (FUSIBLE | FREE) - {Kind.REDUCTION}:
            found.update(op.writes)
    return frozenset(found)


def _access_seconds(value: Value, hardware: Hardware) -> float:
    """The seconds of writing a value to memory once, or of reading it once."""
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
