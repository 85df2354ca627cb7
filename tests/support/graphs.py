"""Tiny joint graphs for tests, with prime sizes so that swapped terms cannot cancel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from rematpass.core import frontier
from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side, Value
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks


def show(graph: JointGraph) -> str:
    """The graph with one line per op, for the message of a failing test."""
    marks = ("must_save", "cannot_save", "mutated", "never_recompute", "must_recompute")

    def marked(thing: Op | Value) -> str:
        return "".join(f" {m}" for m in marks if getattr(thing, m, False))

    def value(v: int) -> str:
        return f"{v}:{graph.values[v].nbytes}{marked(graph.values[v])}"

    given = [f"{v.origin.value} {value(v.id)}" for v in graph.values if v.origin is not Origin.OP]
    lines = [", ".join(given)]
    for op, side in zip(graph.ops, graph.sides, strict=True):
        mutates = f" mutates {[*op.mutates]}" if op.mutates else ""
        written = ", ".join(map(value, op.writes))
        lines.append(f"op{op.id} {op.kind.value} ({side.value}) {[*op.reads]} -> [{written}]{mutates}{marked(op)}")
    held = "" if graph.holds_outputs else " (dropped)"
    lines.append(f"outputs {[*graph.fwd_outputs]}{held}, gradients {[*graph.bwd_outputs]}")
    if graph.calls > 1:
        lines.append(f"{graph.calls} calls, each with its own {[*graph.own_inputs]}")
    return "\n".join(["", *lines])


PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


class Builder:
    """Builds a graph op by op; every method returns value ids."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.values: list[Value] = []

    def input(self, nbytes: int, origin: Origin = Origin.INPUT, **fields: Any) -> int:
        self.values.append(Value(len(self.values), nbytes, origin, name=f"in{len(self.values)}", **fields))
        return len(self.values) - 1

    def op(self, reads: Sequence[int], *sizes: int, kind: Kind = Kind.MATMUL, **fields: Any) -> Any:
        """Append an op that writes one value per size; returns the id, or a tuple of several ids."""
        of_value = {k: fields.pop(k) for k in ("must_save", "cannot_save") if k in fields}
        written = tuple(range(len(self.values), len(self.values) + len(sizes)))
        producer = len(self.ops)
        self.values += [Value(v, n, name=f"v{v}", **of_value) for v, n in zip(written, sizes, strict=True)]
        fields.setdefault("name", f"op{producer}")
        self.ops.append(Op(producer, kind, tuple(reads), written, **fields))
        return written[0] if len(written) == 1 else written

    def build(self, fwd_outputs: Sequence[int], bwd_outputs: Sequence[int], **fields: Any) -> JointGraph:
        return JointGraph(tuple(self.ops), tuple(self.values), tuple(fwd_outputs), tuple(bwd_outputs), **fields)


def chain(n: int, nbytes: int | Sequence[int] = 7, kind: Kind = Kind.MATMUL) -> JointGraph:
    """``n`` layers, each reading the previous one; each gradient reads the input and the output of its layer.

    Values are the input (0), the activations 1 to n, the tangent, and one gradient per layer.
    """
    sizes = [nbytes] * n if isinstance(nbytes, int) else list(nbytes)
    b = Builder()
    x = b.input(sizes[0])
    activations = [x]
    for size in sizes:
        activations.append(b.op([activations[-1]], size, kind=kind, flops=1000))
    gradient = b.input(sizes[-1], Origin.TANGENT)
    for layer in reversed(range(n)):
        gradient = b.op([gradient, activations[layer], activations[layer + 1]], sizes[max(layer - 1, 0)], kind=kind)
    return b.build([activations[-1]], [gradient])


def in_sequence(*ops: tuple[Kind, int]) -> JointGraph:
    """Ops that each read the one before, given as (kind, bytes); backward reads a tangent of 0 bytes only.

    The input has 2 bytes, the gradient 3.
    """
    b = Builder()
    last = b.input(2)
    for kind, nbytes in ops:
        last = b.op([last], nbytes, kind=kind)
    tangent = b.input(0, Origin.TANGENT)
    return b.build([last], [b.op([tangent], 3)])


def no_costs(graph: JointGraph) -> Costs:
    """No seconds for anything."""
    return Costs((0.0,) * len(graph.ops), (0.0,) * len(graph.values))


def three_layers(**fields: Any) -> JointGraph:
    """Three ops forward, four backward, all sizes prime; ``op1={"must_recompute": True}`` sets fields of an op.

    ::

        input 0 (3) ─▶ op0 ─▶ 2 (7) ─▶ op1 ─▶ 3 (11) ─▶ op2 ─▶ 4 (13), the output
        parameter 1 (5) ─▲──────────────────────────────▲
        tangent 5 (13), op3: 5, 1 ─▶ 6 (17), op4: 5, 3 ─▶ 7 (19), op5: 6, 2 ─▶ 8 (23), op6: 8, 0 ─▶ 9 (29)

    The gradients are 7 and 9, so op4 runs before op3. Backward reads 0, 1, 2 and 3 of the values of forward.
    """
    b = Builder()
    x, w = b.input(3), b.input(5, Origin.STATIC)
    h = b.op([x, w], 7, **fields.get("op0", {}))
    a = b.op([h], 11, **fields.get("op1", {}))
    y = b.op([a, w], 13, **fields.get("op2", {}))
    tangent = b.input(13, Origin.TANGENT)
    da = b.op([tangent, w], 17, **fields.get("op3", {}))
    dw = b.op([tangent, a], 19, **fields.get("op4", {}))
    dh = b.op([da, h], 23, **fields.get("op5", {}))
    return b.build([y], [dw, b.op([dh, x], 29, **fields.get("op6", {}))])


def pinned_forward(b: Builder, reads: Sequence[int], mutates: Sequence[int]) -> None:
    """Append a mutation that stays in forward."""
    b.op(reads, kind=Kind.MUTATION, mutates=tuple(mutates), pinned=Side.FORWARD, never_recompute="it overwrites")


def pinned_backward(b: Builder, reads: Sequence[int], mutates: Sequence[int]) -> None:
    """Append a mutation that stays in backward."""
    b.op(reads, kind=Kind.MUTATION, mutates=tuple(mutates), pinned=Side.BACKWARD, never_recompute="it overwrites")


def effect(b: Builder, reads: Sequence[int], side: Side) -> None:
    """Append an op that runs for its effect and writes nothing."""
    b.op(reads, kind=Kind.EFFECT, pinned=side, never_recompute="it prints")


def overwritten_input(b: Builder, nbytes: int, origin: Origin = Origin.INPUT) -> tuple[int, int]:
    """An input that forward overwrites, and the clone of its old version that all other ops read, as capture does.

    The caller appends the mutation at the end of forward.
    """
    x = b.input(nbytes, origin, mutated=True)
    old = b.op([x], nbytes, kind=Kind.COPY, never_recompute="its argument is overwritten after it has run")
    return x, old


COMPUTES = (Kind.MATMUL, Kind.POINTWISE, Kind.POINTWISE, Kind.REDUCTION, Kind.KERNEL, Kind.COPY, Kind.SYMBOLIC)

# Marks of an op and of the values that it writes.
BINDING: tuple[dict[str, Any], ...] = (
    {"never_recompute": "it draws random numbers", "kind": Kind.RANDOM},
    {"must_recompute": True},
    {"must_save": True},
    {"cannot_save": "SymBool is not a tensor"},
)
CONTRADICTORY: tuple[dict[str, Any], ...] = (
    {"never_recompute": "it draws random numbers", "must_recompute": True},
    {"must_save": True, "must_recompute": True},
    {"must_save": True, "cannot_save": "SymBool is not a tensor"},
)
MARKS = (*[{}] * 8, *BINDING)  # most ops have none


@st.composite
def joint_graphs(draw: st.DrawFn, max_ops: int = 7, marks: Sequence[dict[str, Any]] = MARKS) -> JointGraph:
    """Any joint graph that capture could make, with at most ``max_ops`` + 3 ops that a cut can move.

    Among them are ops with one or two results, ops of neither side, parameters and inputs, an input that forward
    overwrites, effects and mutations on both sides, several outputs (held by the caller or not), gradients that depend
    on no tangent, tangents that no op reads, and several calls in a step. ``marks``: each op gets one of them; without
    any, no op is restricted.
    """
    b = Builder()
    size = st.sampled_from((*PRIMES[:8], 0))
    rarely = st.sampled_from((False, False, False, True))

    def some(values: Sequence[int], at_least: int, at_most: int) -> list[int]:
        return draw(st.lists(st.sampled_from(values), min_size=at_least, max_size=at_most, unique=True))

    inputs = [
        b.input(draw(size), draw(st.sampled_from((Origin.INPUT, Origin.STATIC))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    early = list(inputs)
    overwritten = None
    if draw(rarely):
        overwritten, old = overwritten_input(b, draw(size), draw(st.sampled_from((Origin.INPUT, Origin.STATIC))))
        early.append(old)
    if marks and draw(rarely):
        early.append(b.input(0, cannot_save="Generator is not a tensor"))
    made: list[int] = []
    for _ in range(draw(st.integers(1, max_ops))):
        fields = {"kind": draw(st.sampled_from(COMPUTES)), **(draw(st.sampled_from(marks)) if marks else {})}
        sizes = [draw(size), draw(size)] if draw(rarely) else [draw(size)]
        b.op(some(early, 0, 3), *sizes, **fields)
        made += b.ops[-1].writes
        early += b.ops[-1].writes
    if draw(rarely):
        effect(b, some(early, 1, 1), Side.FORWARD)
    if overwritten is not None:
        pinned_forward(b, some(made, 1, 1), [overwritten])
    outputs = some(made + inputs, 1, 2)

    late = [b.input(b.values[v].nbytes, Origin.TANGENT) for v in outputs]
    for _ in range(draw(st.integers(1, 4))):
        reads = some(late, 1, 2) + some(early, 0, 3)
        b.op(reads, *[draw(size)] * draw(st.sampled_from((1, 1, 1, 2))), kind=draw(st.sampled_from(COMPUTES)))
        late += b.ops[-1].writes
    if draw(rarely):
        effect(b, some(early + late, 1, 1), Side.BACKWARD)
    if draw(rarely):
        targets = some(inputs, 1, 2)
        for target in targets:
            pinned_backward(b, some([v for v in early + late if v not in targets], 1, 2), [target])
    tangent_free = some(early, 1, 2) if draw(rarely) else []
    gradients = [*some(late, 1, 3), *tangent_free]
    if not draw(rarely):
        return b.build(outputs, gradients, holds_outputs=draw(st.booleans()))
    own = [v for v in inputs if b.values[v].origin is Origin.INPUT and draw(st.booleans())]
    return b.build(outputs, gradients, holds_outputs=draw(st.booleans()), calls=3, own_inputs=tuple(own))


@st.composite
def integer_costs(draw: st.DrawFn, graph: JointGraph, most: int = 19) -> Costs:
    """Whole seconds, zero included, for every op and value of ``graph``, so that sums are exact."""
    seconds = st.integers(0, most)
    return Costs(
        run=tuple(draw(st.lists(seconds, min_size=len(graph.ops), max_size=len(graph.ops)))),
        keep=tuple(draw(st.lists(seconds, min_size=len(graph.values), max_size=len(graph.values)))),
    )


def drawn_ladder(data: st.DataObject, **sizes: int) -> tuple[Problem, frontier.Ladder] | None:
    """A random problem with whole seconds, without fusion or a limit on recomputation, and its ladder.

    None if the user's marks allow no plan.
    """
    graph = data.draw(joint_graphs(**sizes))
    problem = Problem(graph, data.draw(integer_costs(graph)), fuse=False, max_recompute=math.inf)
    try:
        ladder = frontier.build(problem)
    except ContradictoryMarks:
        return None
    for rung in ladder.rungs:
        verify(graph, rung.plan)
    return problem, ladder
