"""Boundaries inside segments, for ``max_recompute`` > 1.

Chen's square root saves about sqrt(n) boundaries and has a whole segment of sqrt(n) ops alive at once. With one more
forward of recomputation, a segment gets boundaries of its own: when backward enters the segment, what crosses them is
recomputed and kept, and each part between them is recomputed when backward reaches it. Every further forward adds a
level. At depth d, a chain of n ops takes about d n^(1/(d+1)) values, down to log(n)::

        depth 1   |-----------|-----------|-----------|      saved at |
        depth 2   |---:---:---|---:---:---|---:---:---|      kept at : while backward works through their segment

``_Nested._boundaries`` chooses the boundaries of one stretch, ``_Nested._divide`` evicts what lies between them.

Source: Chen et al. 2016, arXiv 1604.06174, section 4.4 ("recursive"); on a chain, Griewank's treeverse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from rematpass.core.schedule import Plan
from rematpass.core.solve.baselines import crossing_values, fewest_bytes, timed_forward_ops
from rematpass.core.solve.problem import Eviction, Problem
from rematpass.core.solve.segmentation.time_axis import TimeAxis
from rematpass.core.solve.state import State
from rematpass.errors import PlanError


def nested(problem: Problem) -> tuple[Plan, ...]:
    """One plan per depth, up to as many levels as ``problem.max_recompute`` allows. Depth 1 is not nested."""
    return tuple(plan for _, plan in states(problem, 1))


def states(problem: Problem, shallowest: int = 2) -> Iterator[tuple[State, Plan]]:
    """Decisions for these plans, each with its plan, from depth ``shallowest`` on; none if max_recompute is lower."""
    deepest = int(min(problem.effort.nested_depth, max(1.0, problem.max_recompute)))
    for depth in range(shallowest, deepest + 1):
        state = _Nested(problem, depth).state
        try:
            yield state, state.plan(problem, "nested")
        except PlanError:  # an op that must run once would run twice, as it would at any greater depth
            return


class _Nested:
    """The plan of one depth, as ``state``."""

    def __init__(self, problem: Problem, depth: int) -> None:
        graph = problem.graph
        self.axis = TimeAxis(graph, problem.fuse, problem.effort)
        self.forward = timed_forward_ops(problem)
        self.crossing = crossing_values(problem)
        self.weight = {op: sum(graph.values[v].nbytes for v in self.crossing[op]) for op in self.forward}
        once = graph.runs_once
        self.made: list[list[int]] = [[v for v in graph.ops[op].writes if op not in once] for op in self.forward]
        self.evicted: set[Eviction] = set()
        top = self._boundaries(0, len(self.forward), depth)
        saved = set(fewest_bytes(problem).saved).union(*(self._crossing(p) for p in top))
        for first, end in self._parts(0, len(self.forward), top):
            self._divide(first, end, depth - 1, frozenset(saved))
        self.state = State(frozenset(saved), frozenset(self.evicted))

    def _boundaries(self, first: int, end: int, depth: int) -> list[int]:
        """About the (depth + 1)th root of the number of ops, each moved to where the fewest bytes cross.

        Here and below, a stretch from ``first`` to before ``end`` and its boundaries are indices into ``forward``.
        """
        parts = max(1, round((end - first) ** (1 / (depth + 1))))
        width = max(1, math.ceil((end - first) / parts))
        starts = range(first, end - width, width)
        return [min(range(s, s + width), key=lambda p: (self.weight[self.forward[p]], -p)) for s in starts]

    def _crossing(self, boundary: int) -> list[int]:
        return self.crossing[self.forward[boundary]]

    @staticmethod
    def _parts(first: int, end: int, boundaries: list[int]) -> list[tuple[int, int]]:
        """The parts (first, end) between boundaries; a boundary's op belongs to the part before it."""
        edges = [first, *(p + 1 for p in boundaries), end]
        return [(a, b) for a, b in itertools.pairwise(edges) if a < b]

    def _divide(self, first: int, end: int, depth: int, kept: frozenset[int]) -> None:
        """Divide one stretch: once backward has entered it, all parts but the last are evicted, except boundaries."""
        if depth < 1 or end - first < 3:
            return
        boundaries = self._boundaries(first, end, depth)
        kept = kept.union(*(self._crossing(p) for p in boundaries))
        entry = self._entry(end)
        for a, b in self._parts(first, end, boundaries):
            if b != end:
                self.evicted.update((v, entry) for made in self.made[a:b] for v in made if v not in kept)
            self._divide(a, b, depth - 1, kept)

    def _entry(self, end: int) -> int:
        """The index of backward's own op at which backward enters the stretch that ends before ``end``.

        The stretch at the end of forward is entered at the first one.
        """
        if end >= len(self.forward):
            return 0
        moment = self.axis.moment_of[self.forward[end - 1]]
        return int(self.axis.entry[moment]) - self.axis.first_backward
