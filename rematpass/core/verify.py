"""The judge: replays a schedule and rejects it if it breaks a rule. It trusts nothing that made the schedule.

It shares no code with the solvers, nor with ``liveness``. A plan passes if

- every run has its arguments, and reads no input whose bytes have been overwritten (``run``);
- every op of forward runs exactly once in forward, and every op of backward exactly once (``completed``), with effects,
  mutations, collectives and random draws in the program's order (``in_order``);
- no op runs twice that must not (``may_repeat``), no value is saved that must not be (``hand_over``), and no value that
  the user wants saved is recomputed (``may_repeat``);
- forward ends with its outputs and the saved values alive, and backward with the gradients (``outputs``).

Source: the ``Verifier`` in executorch's ``exir/memory_planning.py``; Checkmate and cubed check their plans likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side
from rematpass.core.schedule import Drop, Plan, Step
from rematpass.errors import PlanError


def verify(graph: JointGraph, plan: Plan) -> int:
    """Check ``plan``, and return its peak in bytes without fusion and without reuse of memory in place.

    If a step calls the graph several times, the peak includes what the other calls have saved.

    Raises:
        PlanError: the first rule that is broken, with the step that breaks it.
    """
    judge = _Judge(graph, plan)
    judge.forward()
    judge.hand_over()
    judge.backward()
    return judge.peak + (graph.calls - 1) * judge.saved_bytes


class _Judge:
    """The state of the replay: ``alive`` copies as (value, copy), and the bytes that they take."""

    def __init__(self, graph: JointGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.alive: set[tuple[int, int]] = set()
        self.living_copies = [0] * len(graph.values)  # per value: how many copies are alive
        self.overwritten: set[int] = set()  # values whose bytes a mutation has overwritten
        self.times_run: dict[int, int] = {}  # by op
        self.bytes = self.peak = 0
        self.saved_bytes = 0  # bytes that each call of the graph saves
        self.phase, self.position = "before forward", -1
        self.counted = [0 if v.origin in (Origin.STATIC, Origin.INPUT) else v.nbytes for v in graph.values]

    def refuse(self, why: str, op: Op | None = None) -> NoReturn:
        step = f"step {self.position} of " if self.position >= 0 else ""
        subject = f"op {op.id} ({op.name}) " if op else ""
        raise PlanError(f"the plan of {self.plan.solver} is not valid, at {step}{self.phase}: {subject}{why}")

    def add(self, value: int, copy: int) -> None:
        if (value, copy) in self.alive:
            self.refuse(f"copy {copy} of value {value} is alive already")
        self.alive.add((value, copy))
        self.living_copies[value] += 1
        self.bytes += self.counted[value]

    def remove(self, value: int, copy: int) -> None:
        if (value, copy) not in self.alive:
            self.refuse(f"copy {copy} of value {value} is dropped, but it is not alive")
        self.alive.remove((value, copy))
        self.living_copies[value] -= 1
        self.bytes -= self.counted[value]

    def walk(self, steps: Sequence[Step], side: Side) -> None:
        self.phase = side.value
        for self.position, step in enumerate(steps):
            if isinstance(step, Drop):
                self.remove(step.value, step.copy)
            else:
                self.run(step.op, step.copy, side)
        self.position = -1

    def run(self, id: int, copy: int, side: Side) -> None:
        if not 0 <= id < len(self.graph.ops):
            self.refuse(f"there is no op {id}")
        op, times, living_copies = self.graph.ops[id], self.times_run.get(id, 0), self.living_copies
        belongs_to = self.graph.sides[id]
        is_recomputation = side is Side.BACKWARD and times > 0
        if belongs_to is not side and belongs_to is not Side.EITHER and not is_recomputation:
            self.refuse(f"belongs to {belongs_to.value}", op)
        if copy != times:
            self.refuse(f"runs as copy {copy}, but it has run {times} times", op)
        if times:
            self.may_repeat(op, side)
        for v in op.reads:
            if not living_copies[v]:
                self.refuse(f"reads value {v}, which is not alive", op)
            if v in self.overwritten:
                self.refuse(f"reads value {v} after its bytes were overwritten", op)
        for v in op.mutates:
            if not living_copies[v]:
                self.refuse(f"overwrites value {v}, which is not alive", op)
            self.overwritten.add(v)
        for v in op.writes:
            self.add(v, copy)
        self.times_run[id] = times + 1
        if self.bytes > self.peak:
            self.peak = self.bytes

    def may_repeat(self, op: Op, side: Side) -> None:
        """Refuse a second run of an op that must run once."""
        if side is Side.FORWARD:
            self.refuse("runs a second time in forward", op)
        if op.never_recompute:
            self.refuse(f"runs again, but must not: {op.never_recompute}", op)
        if any(self.graph.values[v].must_save for v in op.writes):
            self.refuse("runs again, but the user wants its value saved", op)
        if op.mutates or self.graph.sides[op.id] is Side.BACKWARD:
            self.refuse("runs a second time", op)

    def forward(self) -> None:
        for v in self.graph.values:
            if v.origin in (Origin.STATIC, Origin.INPUT):
                self.add(v.id, 0)
        self.walk(self.plan.fwd, Side.FORWARD)
        self.end(Side.FORWARD, self.graph.fwd_outputs)

    def hand_over(self) -> None:
        """Keep the saved values, add the tangents, and free all other bytes except outputs that the caller holds."""
        self.overwritten.update(v.id for v in self.graph.values if v.mutated)
        if list(self.plan.saved) != sorted(set(self.plan.saved)):
            self.refuse("the saved values are not in ascending order, each once")
        for v in self.plan.saved:
            if (v, 0) not in self.alive:
                self.refuse(f"value {v} is saved, but it is not alive")
            value, producer = self.graph.values[v], self.graph.producer[v]
            if value.cannot_save:
                self.refuse(f"value {v} is saved, but it cannot be: {value.cannot_save}")
            if producer is not None and self.graph.ops[producer].must_recompute:
                self.refuse(f"value {v} is saved, but the user wants it recomputed")
            if producer is not None or v in self.graph.own_inputs:
                self.saved_bytes += value.nbytes
        held_unsaved = set(self.graph.held_outputs) - set(self.plan.saved)
        self.alive = {(v, 0) for v in self.plan.saved}
        self.living_copies = [0] * len(self.graph.values)
        for v in self.plan.saved:
            self.living_copies[v] = 1
        self.bytes = sum(self.counted[v] for v in {*held_unsaved, *self.plan.saved})
        for tangent in self.graph.values:
            if tangent.origin is Origin.TANGENT:
                self.add(tangent.id, 0)

    def backward(self) -> None:
        held = {v for v in self.graph.held_outputs if v in self.plan.saved}
        steps = self.plan.bwd
        if any(isinstance(s, Drop) and s.value in held and s.copy == 0 for s in steps):
            self.phase = "backward"
            self.refuse("an output of forward is dropped, but the caller holds it")
        self.walk(steps, Side.BACKWARD)
        self.end(Side.BACKWARD, self.graph.bwd_outputs)

    def end(self, side: Side, outputs: Sequence[int]) -> None:
        self.phase = f"the end of {side.value}"
        self.completed(side)
        self.in_order(side)
        self.outputs(outputs)

    def completed(self, side: Side) -> None:
        missing = [op.id for op in self.graph.ops if self.graph.sides[op.id] is side and op.id not in self.times_run]
        if missing:
            self.refuse(f"op {missing[0]} ({self.graph.ops[missing[0]].name}) has not run")

    def in_order(self, side: Side) -> None:
        steps = self.plan.fwd if side is Side.FORWARD else self.plan.bwd
        pinned = [s.op for s in steps if not isinstance(s, Drop) and self.graph.ops[s.op].pinned is side]
        draws = [op for op in pinned if self.graph.ops[op].kind is Kind.RANDOM]
        effects = [op for op in pinned if self.graph.ops[op].kind in (Kind.EFFECT, Kind.MUTATION, Kind.COLLECTIVE)]
        if effects != sorted(effects):
            self.refuse("effects, mutations or collectives are not in the program's order")
        if draws != sorted(draws):
            self.refuse("random draws are not in the program's order")

    def outputs(self, values: Sequence[int]) -> None:
        if dead := [v for v in values if not self.living_copies[v]]:
            self.refuse(f"output value {dead[0]} is not alive")
