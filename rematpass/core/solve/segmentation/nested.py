"""Boundaries inside of boundaries, for who allows more than one forward of recomputation.

Chen's square root saves about sqrt(n) boundaries and has a whole segment of sqrt(n) ops alive at once. With one more
forward to spend, a segment is recomputed only as far as *its* boundaries go, those are kept, and each of its parts is
recomputed when backward gets there; and so on, one level for each forward. n ops then take about d n^(1/(d+1)) values
at depth d, down to log(n)::

        depth 1   |-----------|-----------|-----------|      saved at |
        depth 2   |---:---:---|---:---:---|---:---:---|      kept at : while backward works through their segment

Source: Chen et al. 2016, arXiv 1604.06174, section 4.4 ("recursive"); on a chain, Griewank's treeverse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from rematpass.core.schedule import Plan
from rematpass.core.solve.baselines import crossing_values, fewest_bytes, worth_a_boundary
from rematpass.core.solve.problem import Eviction, Problem
from rematpass.core.solve.segmentation.time_axis import TimeAxis
from rematpass.core.solve.state import State
from rematpass.errors import PlanError

_DEEPEST = 8


def nested(problem: Problem) -> tuple[Plan, ...]:
    """The plans of all depths up to as many forwards as may be recomputed. Depth 1 has no boundaries inside others."""
    return tuple(plan for _, plan in states(problem, 1))


def states(problem: Problem, shallowest: int = 2) -> Iterator[tuple[State, Plan]]:
    """The same as decisions, each with its plan; none where fewer forwards than ``shallowest`` may be recomputed."""
    for depth in range(shallowest, int(min(_DEEPEST, max(1.0, problem.max_recompute))) + 1):
        state = _Nested(problem, depth).state
        try:
            yield state, state.plan(problem, "nested")
        except PlanError:  # something that must not run twice would have to
            return


class _Nested:
    """One depth: ``state`` is what is saved, and what is let go when."""

    def __init__(self, problem: Problem, depth: int) -> None:
        graph = problem.graph
        self.moments = TimeAxis(graph, problem.fuse)
        self.forward = worth_a_boundary(problem)
        self.crossing = crossing_values(problem)
        self.weight = {op: sum(graph.values[v].nbytes for v in self.crossing[op]) for op in self.forward}
        self.once = graph.runs_once
        self.made: list[list[int]] = [[v for v in graph.ops[op].writes if op not in self.once] for op in self.forward]
        self.evicted: set[Eviction] = set()
        top = self._boundaries(0, len(self.forward), depth)
        saved = set(fewest_bytes(problem).saved).union(*(self._crossing(p) for p in top))
        for first, end in self._parts(0, len(self.forward), top):
            self._inside(first, end, depth - 1, frozenset(saved))
        self.state = State(frozenset(saved), frozenset(self.evicted))

    def _boundaries(self, first: int, end: int, depth: int) -> list[int]:
        """About the (depth + 1)th root of the number of ops, each moved to where the fewest bytes cross."""
        parts = max(1, round((end - first) ** (1 / (depth + 1))))
        width = max(1, math.ceil((end - first) / parts))
        starts = range(first, end - width, width)
        return [min(range(s, s + width), key=lambda p: (self.weight[self.forward[p]], -p)) for s in starts]

    def _crossing(self, position: int) -> list[int]:
        return self.crossing[self.forward[position]]

    @staticmethod
    def _parts(first: int, end: int, boundaries: list[int]) -> list[tuple[int, int]]:
        """The stretches of ops between boundaries, which belong to what comes before them."""
        edges = [first, *(p + 1 for p in boundaries), end]
        return [(a, b) for a, b in itertools.pairwise(edges) if a < b]

    def _inside(self, first: int, end: int, depth: int, kept: frozenset[int]) -> None:
        """Cut one stretch further: when backward enters it, all but the last part is let go, boundaries excepted."""
        if depth < 1 or end - first < 3:
            return
        boundaries = self._boundaries(first, end, depth)
        kept = kept.union(*(self._crossing(p) for p in boundaries))
        parts = self._parts(first, end, boundaries)
        moment = self._entry(end)
        for a, b in parts:
            if b != end:
                self.evicted.update((v, moment) for made in self.made[a:b] for v in made if v not in kept)
            self._inside(a, b, depth - 1, kept)

    def _entry(self, end: int) -> int:
        """Which of its own ops backward is at when it first reads what is made before position ``end`` and not after.

        Behind the last op of forward that is the first.
        """
        if end >= len(self.forward):
            return 0
        position = self.moments.of_op[self.forward[end - 1]]
        return int(self.moments.entry[position]) - self.moments.first_backward
