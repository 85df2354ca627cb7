"""What the solvers are held against: every choice there is, tried one by one. For small graphs.

Written from the definitions and not from the solvers: choose which ops run in backward; whatever backward and they
read and none of them makes has to be saved; drop the choices in which that is forbidden.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rematpass.core.graph import JointGraph, Origin, Side
from rematpass.core.schedule import Plan, Run


@dataclass(frozen=True)
class Choice:
    """``again``: ops of forward that run once more in backward; ``saved``: values handed over, inputs included."""

    again: frozenset[int]
    saved: frozenset[int]

    def seconds(self, run: Sequence[int], keep: Sequence[int], graph: JointGraph) -> int:
        """What it costs: nothing for an op of neither side, nor for keeping a parameter or buffer."""
        kept = [v for v in self.saved if graph.values[v].origin is not Origin.STATIC]
        return sum(run[op] for op in self.again) + sum(keep[v] for v in kept)

    def nbytes(self, graph: JointGraph) -> int:
        return sum(v.nbytes for v in graph.values if v.id in self.saved and v.origin is not Origin.STATIC)


def choices(graph: JointGraph) -> Iterator[Choice]:
    """All there are; none when the marks contradict each other."""
    sides = graph.sides
    backward = [op for op in graph.ops if sides[op.id] is Side.BACKWARD]
    made_late = {v for op in backward for v in op.writes} | {v.id for v in graph.values if v.origin is Origin.TANGENT}
    asked_for = ({v for op in backward for v in op.reads} | set(graph.bwd_outputs)) - made_late
    maker = {v: op.id for op in graph.ops for v in op.writes}
    once = {op.id for op in graph.ops if op.never_recompute or any(graph.values[v].must_save for v in op.writes)}
    unsavable = {v.id for v in graph.values if v.cannot_save or (v.mutated and v.id not in maker)}
    unsavable |= {v for op in graph.ops if op.must_recompute for v in op.writes}
    free_to_run = [
        op.id for op in graph.ops if sides[op.id] is Side.EITHER or (sides[op.id] is Side.FORWARD and op.id not in once)
    ]
    for size in range(len(free_to_run) + 1):
        for late in itertools.combinations(free_to_run, size):
            wanted = asked_for.union(*(graph.ops[op].reads for op in late))
            saved = {v for v in wanted if maker.get(v) not in late}
            if saved & unsavable or _runs_twice(graph, saved, once.intersection(late), maker):
                continue
            yield Choice(frozenset(op for op in late if sides[op] is Side.FORWARD), frozenset(saved))


def _runs_twice(graph: JointGraph, saved: set[int], late: set[int], maker: dict[int, int]) -> bool:
    """Whether one of ``late``, which may run only once, has to run in forward too, to make what is saved."""
    before: set[int] = set()
    todo = [maker[v] for v in saved if v in maker] if late else []
    while todo:
        op = todo.pop()
        if op not in before:
            before.add(op)
            todo += [maker[v] for v in graph.ops[op].reads if v in maker]
    return not before.isdisjoint(late)


def choice_of(graph: JointGraph, plan: Plan) -> Choice:
    """What a plan amounts to. What backward only overwrites is handed over too, but nobody's choice."""
    read = {v for step in plan.bwd if isinstance(step, Run) for v in graph.ops[step.op].reads}
    again = (run.op for run in plan.recomputed() if graph.sides[run.op] is Side.FORWARD)
    return Choice(frozenset(again), frozenset(plan.saved) & (read | set(graph.bwd_outputs)))


def hull(points: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners of the lower left boundary, from the smallest first coordinate to the smallest second one."""
    corners: list[tuple[int, int]] = []
    for x, y in sorted(points):
        if corners and y >= corners[-1][1]:
            continue  # beaten in both, or level with it and later
        while len(corners) > 1 and _is_not_below(corners[-1], corners[-2], (x, y)):
            corners.pop()
        corners.append((x, y))
    return corners


def _is_not_below(point: tuple[int, int], left: tuple[int, int], right: tuple[int, int]) -> bool:
    (x, y), (x0, y0), (x1, y1) = point, left, right
    return (y - y0) * (x1 - x0) >= (y1 - y0) * (x - x0)
