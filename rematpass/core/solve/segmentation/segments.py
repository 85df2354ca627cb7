"""The planner under a peak: boundaries, then the cut inside each segment, then as much saving as the limit allows.

What must stay low is not the sum of what is saved but the most bytes at one moment. For each of a range of limits:

1. ``boundaries`` cuts forward into segments such that backward, recomputing one of them at a time, stays under the
   limit. What crosses a boundary is saved, so nothing that happens inside one segment changes another's cost.
2. Inside a segment the parametric cut gives its *levels*: from "save what is cheapest in bytes" to "as fast as can
   be". One cut over the whole graph gives a level of every segment at once, since they do not touch (``_levels``).
3. Starting from the lowest, levels are raised where a byte buys most seconds, as long as every moment stays under the
   limit (``_fill``). What a segment saves lies in memory until backward enters it, so early segments are dear and the
   last ones cheap; equal layers get different levels, and the frontier has no holes.

Source: Chen et al. 2016 (arXiv 1604.06174) for segments; the greedy filling is the one of a knapsack by density, with
one capacity per moment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rematpass.core.schedule import Plan
from rematpass.core.solve.baselines import save_all
from rematpass.core.solve.mincut import breakpoints
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.segmentation.boundaries import Boundaries, forced
from rematpass.core.solve.segmentation.time_axis import TimeAxis

_LIMITS = 12  # limits tried between the lowest and the ceiling
_LEVELS = 8  # at most, of each segment

Floats = NDArray[np.float64]


def segments(problem: Problem) -> tuple[Plan, ...]:
    """Plans for a range of limits from the lowest peak to the ceiling."""
    moments = TimeAxis(problem.graph, problem.fuse)
    everything = problem.timeline(save_all(problem)[0])
    boundaries = Boundaries(moments, everything, forced(moments))
    if not moments.first_backward or not everything.peak:
        return ()  # nothing to cut
    lowest = boundaries.lowest(everything.peak)
    limits = np.geomspace(lowest, everything.peak, problem.trials(_LIMITS) + 1)[:-1]
    finest = tuple(boundaries.under(lowest) or ())
    plans: dict[Plan, None] = {}
    layouts: dict[tuple[int, ...], _Layout] = {}
    for limit in limits:
        for positions in dict.fromkeys((finest, tuple(boundaries.under(limit) or ()))):
            if positions not in layouts:
                layouts[positions] = _Layout(problem, boundaries, positions)
            plans.update(dict.fromkeys(layouts[positions].plans(limit)))
    return tuple(plans)


@dataclass(frozen=True)
class _Level:
    """One way to treat a segment: what it saves, and its seconds of recomputing and keeping."""

    saved: frozenset[int]
    seconds: float
    nbytes: float


class _Layout:
    """One set of boundaries, with the levels of its segments and what is alive when each is at its lowest."""

    def __init__(self, problem: Problem, boundaries: Boundaries, positions: tuple[int, ...]) -> None:
        self.problem, self.moments = problem, boundaries.moments
        self.crossing = boundaries.saved_at(list(positions)) | boundaries.forced
        self.segment_of = boundaries.segment_of(list(positions))
        self.count = len(positions) + 1
        self.entry = [*(int(self.moments.entry[p]) for p in positions), self.moments.first_backward]
        self.levels = self._levels()
        self.lowest = self._plan([0] * self.count)
        self.live = self.moments.live(problem.timeline(self.lowest))

    def plans(self, limit: float) -> tuple[Plan, Plan]:
        """The lowest plan, and the one that fills up to ``limit`` what it leaves free."""
        return self.lowest, self._plan(self._fill(limit))

    def _plan(self, chosen: list[int]) -> Plan:
        inside = (self.levels[segment][level].saved for segment, level in enumerate(chosen))
        return self.problem.plan("segments", self.crossing.union(*inside))

    def _levels(self) -> list[list[_Level]]:
        """For each segment its levels, fewest bytes first, each of more bytes and fewer seconds than the one before."""
        levels: list[list[_Level]] = [[] for _ in range(self.count)]
        vertices = breakpoints(self.problem.network, self.problem.costs, _LEVELS, self.crossing)
        for vertex in reversed(vertices):
            saved: list[set[int]] = [set() for _ in range(self.count)]
            seconds = [0.0] * self.count
            for v in vertex.cut.saved:
                if self.moments.made[v] >= 0 and v not in self.crossing:
                    saved[self.segment_of[v]].add(v)
                    seconds[self.segment_of[v]] += self.problem.costs.keep[v]
            for op in vertex.cut.again:
                writes = self.problem.graph.ops[op].writes
                if writes:
                    seconds[self.segment_of[writes[0]]] += self.problem.costs.run[op]
            for segment in range(self.count):
                nbytes = float(sum(self.moments.nbytes[v] for v in saved[segment]))
                known = levels[segment]
                if not known or (seconds[segment] < known[-1].seconds and nbytes > known[-1].nbytes):
                    known.append(_Level(frozenset(saved[segment]), seconds[segment], nbytes))
        return levels

    def _fill(self, limit: float) -> list[int]:
        """The level of each segment: raised by seconds per byte while every moment stays under ``limit``."""
        chosen = [0] * self.count
        free = limit - self.live
        steps = sorted(
            (
                (low.seconds - high.seconds) / (high.nbytes - low.nbytes),
                segment,
                level + 1,
            )
            for segment, levels in enumerate(self.levels)
            for level, (low, high) in enumerate(itertools.pairwise(levels))
        )
        for _, segment, level in reversed(steps):
            if level <= chosen[segment]:
                continue
            taken = self._taken(segment, level) - self._taken(segment, chosen[segment])
            if (taken <= np.maximum(free, 0.0)).all():
                chosen[segment] = level
                free = free - taken
        return chosen

    def _taken(self, segment: int, level: int) -> Floats:
        """Bytes that a level's saved values take at each moment, until backward enters their segment."""
        taken = np.zeros(self.moments.count + 1)
        for v in self.levels[segment][level].saved:
            taken[self.moments.last_forward[v] + 1] += self.moments.nbytes[v]
            taken[self.entry[segment]] -= self.moments.nbytes[v]
        return np.cumsum(taken)[:-1]
