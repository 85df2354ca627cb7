"""What the plan does with each value, and why: saved, recomputed or freed, with the cost of the alternative.

The cost of recomputing a saved value is that of the ops that would have to run again for it, starting from the other
saved values and without ops that the plan recomputes anyway. It is a marginal cost: it assumes that only this value is
no longer saved.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Origin, Side, Value
from rematpass.core.schedule import Plan, Run
from rematpass.core.simulate import Timeline
from rematpass.units import format_bytes, format_seconds


class Fate(str, Enum):
    """What a plan does with a value."""

    SAVED = "saved"
    RECOMPUTED = "recomputed"
    LATE = "made in backward"
    FREED = "freed"
    OUTPUT = "output"
    GRADIENT = "gradient"
    TEMPORARY = "temporary"


@dataclass(frozen=True)
class Account:
    """One value. ``seconds``: what recomputing it costs, or would cost; 0.0 if it cannot be recomputed.

    ``in_memory``: whether a copy of it takes bytes, instead of being computed inside the kernels that read it;
    ``at_peak``: whether it is in memory at the peak.
    """

    value: int
    fate: Fate
    reason: str
    seconds: float
    in_memory: bool
    at_peak: bool


def accounts(graph: JointGraph, plan: Plan, timeline: Timeline, costs: Costs) -> list[Account]:
    """The fate of every value that takes bytes, largest first.

    Parameters and buffers are left out, and so are inputs that are not saved.
    """
    accountant = _Accountant(graph, plan, timeline, costs)
    shown = [
        v
        for v in graph.values
        if v.nbytes
        and (v.origin in (Origin.OP, Origin.TANGENT) or (v.origin is Origin.INPUT and v.id in accountant.saved))
    ]
    return [accountant.account(v) for v in sorted(shown, key=lambda v: (-v.nbytes, v.id))]


class _Accountant:
    def __init__(self, graph: JointGraph, plan: Plan, timeline: Timeline, costs: Costs) -> None:
        self.graph, self.costs = graph, costs
        self.saved = frozenset(plan.saved)
        self.times = Counter(run.op for run in plan.recomputed())
        self.in_forward = {step.op for step in plan.fwd if isinstance(step, Run)}
        self.ran = {run.op for run in timeline.runs}
        self.in_memory = {t.value for t in timeline.intervals}
        self.again_in_memory = {t.value for t in timeline.intervals if t.copy}
        self.peak = {t.value for t in timeline.at_peak()}
        self.outputs, self.gradients = set(graph.fwd_outputs), set(graph.bwd_outputs)

    def account(self, value: Value) -> Account:
        fate, reason, seconds = self._fate(value)
        in_memory = value.origin is Origin.INPUT or value.id in self.in_memory
        return Account(value.id, fate, reason, seconds, in_memory, value.id in self.peak)

    def _fate(self, value: Value) -> tuple[Fate, str, float]:
        producer = self.graph.producer[value.id]
        if value.origin is Origin.INPUT:
            return Fate.SAVED, "an input: it exists before the step", 0.0
        if producer is None:
            return Fate.TEMPORARY, "a tangent: an argument of backward", 0.0
        op = self.graph.ops[producer]
        if self.graph.sides[op.id] is Side.BACKWARD:
            return self._in_backward(value)
        if value.id in self.saved:
            return self._saved(value, op)
        if self.times[op.id]:
            return self._recomputed(value, op)
        if op.id in self.ran and op.id not in self.in_forward:
            return Fate.LATE, "made in backward: forward does not read it", 0.0
        if value.id in self.outputs:
            return Fate.OUTPUT, "an output of forward that backward does not read", 0.0
        if value.id in self.graph.backward_reads and op.id not in self.ran:
            return Fate.FREED, "never computed: nothing that runs reads it", 0.0
        return Fate.FREED, "freed after its last use: backward does not read it", 0.0

    def _in_backward(self, value: Value) -> tuple[Fate, str, float]:
        if value.id in self.gradients:
            return Fate.GRADIENT, "returned by backward", 0.0
        return Fate.TEMPORARY, "an intermediate gradient", 0.0

    def _saved(self, value: Value, op: Op) -> tuple[Fate, str, float]:
        if value.must_save:
            return Fate.SAVED, "saved: an annotation requires it", 0.0
        if value.id in self.outputs:
            return Fate.SAVED, "saved: an output of forward, which exists anyway", 0.0
        others = self.saved - {value.id}
        again = [self.graph.ops[o] for o in self.graph.ancestors([value.id], stop=others)]
        blocked = next((o for o in reversed(again) if o.never_recompute), None)
        if blocked is not None:
            which = "it" if blocked is op else f"it needs {blocked.name}, which"
            return Fate.SAVED, f"saved: {which} must not run again: {blocked.never_recompute}", 0.0
        again = [o for o in again if not self.times[o.id]]
        seconds = sum(self.costs.run[o.id] for o in again)
        through = f" through {len(again)} ops" if len(again) > 1 else ""
        return (
            Fate.SAVED,
            f"saved: recomputing costs {format_seconds(seconds)}{through} for {format_bytes(value.nbytes)}",
            seconds,
        )

    def _recomputed(self, value: Value, op: Op) -> tuple[Fate, str, float]:
        times = self.times[op.id]
        seconds = self.costs.run[op.id] * times
        often = "" if times == 1 else " twice" if times == 2 else f" {times} times"
        reason = f"recomputed{often}: costs {format_seconds(seconds)} instead of {format_bytes(value.nbytes)}"
        if value.cannot_save:
            reason = f"recomputed{often}: it cannot be saved: {value.cannot_save}"
        elif op.must_recompute:
            reason = f"recomputed{often}: an annotation requires it; costs {format_seconds(seconds)}"
        if value.id not in self.again_in_memory:
            reason += "; fused into the kernels that read it, so it takes no memory"
        return Fate.RECOMPUTED, reason, seconds
