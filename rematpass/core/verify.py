"""The judge: replays any schedule and trusts nothing that made it.

It shares no code with the solvers, nor with ``liveness``. A plan passes when

- every step has its inputs, each in its right version: a copy made from the same versions that forward used, and never
  an input whose bytes forward has overwritten;
- every op of forward runs there exactly once, every op of backward exactly once, effects and mutations in their order;
- nothing runs twice that must not, nothing is saved that must not be, and what the user wants saved is not recomputed;
- forward ends with its outputs and the saved values alive, backward with the gradients.

Source: executorch ``exir/memory_planning.py`` has such a ``Verifier``; Checkmate and cubed check their plans likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side
from rematpass.core.schedule import Drop, Plan, Step
from rematpass.errors import PlanError


def verify(graph: JointGraph, plan: Plan) -> int:
    """Check ``plan``; returns its peak in bytes when nothing is fused, nor anything overwritten in place. Where a step
    calls the graph several times, that is with what the other calls have saved.

    Raises:
        PlanError: the first rule that is broken, with the step that breaks it.
    """
    judge = _Judge(graph, plan)
    judge.forward()
    judge.hand_over()
    judge.backward()
    return judge.peak + (graph.calls - 1) * judge.kept


class _Judge:
    def __init__(self, graph: JointGraph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.alive: set[tuple[int, int]] = set()  # (value, copy)
        self.copies = [0] * len(graph.values)  # how many of each are alive
        self.overwritten: set[int] = set()
        self.count: dict[int, int] = {}
        self.bytes = self.peak = self.kept = 0
        self.where, self.position = "before forward", -1
        self.weight = [0 if v.origin in (Origin.STATIC, Origin.INPUT) else v.nbytes for v in graph.values]

    def refuse(self, why: str, op: Op | None = None) -> None:
        step = f"step {self.position} of " if self.position >= 0 else ""
        who = f"op {op.id} ({op.name}) " if op else ""
        raise PlanError(f"the plan of {self.plan.solver} is not valid, at {step}{self.where}: {who}{why}")

    def add(self, value: int, copy: int) -> None:
        if (value, copy) in self.alive:
            self.refuse(f"copy {copy} of value {value} is alive already")
        self.alive.add((value, copy))
        self.copies[value] += 1
        self.bytes += self.weight[value]

    def remove(self, value: int, copy: int) -> None:
        if (value, copy) not in self.alive:
            self.refuse(f"copy {copy} of value {value} is dropped, but it is not alive")
        self.alive.remove((value, copy))
        self.copies[value] -= 1
        self.bytes -= self.weight[value]

    def has(self, value: int) -> bool:
        return self.copies[value] > 0

    def walk(self, steps: Sequence[Step], side: Side) -> None:
        self.where = side.value
        for self.position, step in enumerate(steps):
            if isinstance(step, Drop):
                self.remove(step.value, step.copy)
            else:
                self.run(step.op, step.copy, side)
        self.position = -1

    def run(self, id: int, copy: int, side: Side) -> None:
        if not 0 <= id < len(self.graph.ops):
            self.refuse(f"there is no op {id}")
        op, times, copies = self.graph.ops[id], self.count.get(id, 0), self.copies
        its_side = self.graph.sides[id]
        if its_side is not side and its_side is not Side.EITHER and not (side is Side.BACKWARD and times):
            self.refuse(f"belongs to {its_side.value}", op)
        if copy != times:
            self.refuse(f"runs as copy {copy}, but it has run {times} times", op)
        if times:
            self.may_repeat(op, side)
        for v in op.reads:
            if not copies[v]:
                self.refuse(f"reads value {v}, which is not alive", op)
            if v in self.overwritten:
                self.refuse(f"reads value {v} after its bytes were overwritten", op)
        for v in op.mutates:
            if not copies[v]:
                self.refuse(f"overwrites value {v}, which is not alive", op)
            self.overwritten.add(v)
        for v in op.writes:
            self.add(v, copy)
        self.count[id] = times + 1
        if self.bytes > self.peak:
            self.peak = self.bytes

    def may_repeat(self, op: Op, side: Side) -> None:
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
        self.where = "the end of forward"
        self.completed(Side.FORWARD)
        self.outputs(self.graph.fwd_outputs)

    def hand_over(self) -> None:
        """Only what is saved crosses, and forward's outputs where the caller holds them to the end."""
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
                self.kept += value.nbytes
        held = sum(self.weight[v] for v in set(self.graph.held_outputs) - set(self.plan.saved))
        self.alive = {(v, 0) for v in self.plan.saved}
        self.copies = [0] * len(self.graph.values)
        for v in self.plan.saved:
            self.copies[v] = 1
        self.bytes = held + sum(self.weight[v] for v, _ in self.alive)
        for tangent in self.graph.values:
            if tangent.origin is Origin.TANGENT:
                self.add(tangent.id, 0)

    def backward(self) -> None:
        outputs = {v for v in self.graph.held_outputs if v in self.plan.saved}
        steps = self.plan.bwd
        if any(isinstance(s, Drop) and s.value in outputs and s.copy == 0 for s in steps):
            self.where = "backward"
            self.refuse("an output of forward is dropped, but the caller holds it")
        self.walk(steps, Side.BACKWARD)
        self.where = "the end of backward"
        self.completed(Side.BACKWARD)
        self.outputs(self.graph.bwd_outputs)

    def outputs(self, values: Sequence[int]) -> None:
        if dead := [v for v in values if not self.has(v)]:
            self.refuse(f"output value {dead[0]} is not alive")

    def completed(self, side: Side) -> None:
        missing = [op.id for op in self.graph.ops if self.graph.sides[op.id] is side and op.id not in self.count]
        if missing:
            self.refuse(f"op {missing[0]} ({self.graph.ops[missing[0]].name}) has not run")
        ordered = (Kind.EFFECT, Kind.MUTATION, Kind.COLLECTIVE)
        steps = self.plan.fwd if side is Side.FORWARD else self.plan.bwd
        pinned = [s.op for s in steps if not isinstance(s, Drop) and self.graph.ops[s.op].pinned is side]
        draws = [op for op in pinned if self.graph.ops[op].kind is Kind.RANDOM]
        pinned = [op for op in pinned if self.graph.ops[op].kind in ordered]
        if pinned != sorted(pinned):
            self.refuse("effects, mutations or collectives run in another order than the program's")
        if draws != sorted(draws):
            self.refuse("random numbers are drawn in another order than the program's")
