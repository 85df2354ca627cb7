"""Well-known strategies as solvers: the planner is compared with them, and starts its search from them."""

from __future__ import annotations

import math

from rematpass.core.op import Origin, Side
from rematpass.core.schedule import Plan
from rematpass.core.solve.mincut import Cut
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late

_TIE_BREAK = 1e-6  # bytes that one recomputed op weighs: of cuts with equal bytes, the one that recomputes fewer ops


def save_all(problem: Problem) -> tuple[Plan, ...]:
    """Recompute nothing that can be saved, as eager mode does."""
    cut = problem.network.solve([1.0] * len(problem.graph.ops), [0.0] * len(problem.graph.values))
    return (schedule_late(problem.graph, cut.saved, "save_all"),)


def recompute_all(problem: Problem) -> tuple[Plan, ...]:
    """Save the fewest bytes from which backward can be computed."""
    return (schedule_late(problem.graph, fewest_bytes(problem).saved, "recompute_all"),)


def chen_sqrt(problem: Problem) -> tuple[Plan, ...]:
    """Save what crosses about sqrt(n) boundaries of forward; recompute each segment when backward enters it.

    n is the number of forward's ops that take time. Each boundary moves within its segment to where the fewest bytes
    cross it.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, section 4.
    """
    graph = problem.graph
    forward = timed_forward_ops(problem)
    segments = max(1, round(math.sqrt(len(forward))))
    width = max(1, math.ceil(len(forward) / segments))
    crossing = crossing_values(problem)
    weight = {op: sum(graph.values[v].nbytes for v in crossing[op]) for op in forward}
    saved = set(fewest_bytes(problem).saved)
    for first in range(0, len(forward) - width, width):
        boundary = min(forward[first : first + width], key=lambda op: (weight[op], -op))
        saved.update(crossing[boundary])
    return (schedule_late(graph, saved, "chen_sqrt"),)


def timed_forward_ops(problem: Problem) -> list[int]:
    """Ids of forward's own ops that take time, in their order: the ones that segments are counted in."""
    graph, costs = problem.graph, problem.costs
    return [op.id for op in graph.ops if graph.sides[op.id] is Side.FORWARD and costs.run[op.id] > 0]


def fewest_bytes(problem: Problem) -> Cut:
    """The cut that saves the fewest bytes from which backward can be computed."""
    values = problem.graph.values
    keep = [0.0 if v.origin is Origin.STATIC else float(v.nbytes) for v in values]
    return problem.network.solve([_TIE_BREAK] * len(problem.graph.ops), keep)


def crossing_values(problem: Problem) -> dict[int, list[int]]:
    """For each op of forward, the savable values that exist right after it and that forward reads later."""
    graph = problem.graph
    last = {
        v.id: max((r for r in graph.readers[v.id] if graph.sides[r] is Side.FORWARD), default=-1) for v in graph.values
    }
    alive: set[int] = set()
    crossing: dict[int, list[int]] = {}
    for op in graph.ops:
        if graph.sides[op.id] is not Side.FORWARD:
            continue
        alive.update(
            v for v in op.writes if last[v] > op.id and not graph.values[v].cannot_save and not op.must_recompute
        )
        alive = {v for v in alive if last[v] > op.id}
        crossing[op.id] = sorted(alive)
    return crossing
