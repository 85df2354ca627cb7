"""Plans under a peak: boundaries, then the parametric cut inside each segment, then as much saving as the limit allows.

A peak limits the bytes at one moment, not the sum of saved bytes. For each of a range of limits:

1. ``Boundaries.under`` cuts forward into segments such that backward, recomputing one segment at a time, stays under
   the limit. What crosses a boundary is saved, so decisions inside one segment do not change the cost of another.
2. Inside a segment, the parametric cut gives *levels*, from "save the fewest bytes" to "as fast as possible". Segments
   do not interact, so each cut of the whole graph gives one level of every segment (``_Layout._levels``).
3. All segments start at their lowest level. Levels are raised where a byte buys the most seconds, as long as every
   moment stays under the limit (``_Layout._fill``)::

        bytes   limit ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─
                  ╭───────────────╮             what segment 0 saves lies in memory until backward enters segment 0,
                  │  ╭─────────╮  │             that is almost to the end; what the last segment saves is gone soon
                  0  1  2 │ 2' 1' 0'

   So early segments are expensive to raise and late ones cheap: equal layers end at different levels, and the ladder
   has no large gaps.

Source: Chen et al. 2016 (arXiv 1604.06174) for segments; the greedy filling is that of a knapsack by density, with one
capacity per moment.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from rematpass.core.ragged import Floats
from rematpass.core.schedule import Plan
from rematpass.core.solve.baselines import save_all
from rematpass.core.solve.mincut import breakpoints
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.segmentation.boundaries import Boundaries, forced
from rematpass.core.solve.segmentation.time_axis import TimeAxis


def segments(problem: Problem) -> tuple[Plan, ...]:
    """Plans for a range of limits from the lowest reachable peak to the ceiling; none if there is nothing to cut."""
    axis = TimeAxis(problem.graph, problem.fuse, problem.effort)
    ceiling = problem.timeline(save_all(problem)[0])
    boundaries = Boundaries(axis, ceiling, forced(axis), problem.effort)
    if not axis.first_backward or not ceiling.peak:
        return ()
    lowest = boundaries.lowest(ceiling.peak)
    limits = np.geomspace(lowest, ceiling.peak, problem.trials(problem.effort.segment_limits) + 1)[:-1]
    finest = tuple(boundaries.under(lowest) or ())
    plans: dict[Plan, None] = {}
    layouts: dict[tuple[int, ...], _Layout] = {}
    for limit in limits:
        for chosen in dict.fromkeys((finest, tuple(boundaries.under(limit) or ()))):
            if chosen not in layouts:
                layouts[chosen] = _Layout(problem, boundaries, chosen)
            plans.update(dict.fromkeys(layouts[chosen].plans(limit)))
    return tuple(plans)


@dataclass(frozen=True)
class _Level:
    """One way to treat a segment: what it saves, in ``nbytes``, and its ``seconds`` of recomputing and keeping."""

    saved: frozenset[int]
    seconds: float
    nbytes: float


class _Layout:
    """One set of boundaries: the levels of its segments, and the bytes alive while each is at its lowest level."""

    def __init__(self, problem: Problem, boundaries: Boundaries, chosen: tuple[int, ...]) -> None:
        self.problem, self.axis = problem, boundaries.axis
        self.crossing = boundaries.saved_at(list(chosen)) | boundaries.forced
        self.segment_of = boundaries.segment_of(list(chosen))
        self.count = len(chosen) + 1
        self.entry = [*(int(self.axis.entry[p]) for p in chosen), self.axis.first_backward]
        self.levels = self._levels()
        self.lowest = self._plan([0] * self.count)
        self.live = self.axis.live(problem.timeline(self.lowest))

    def plans(self, limit: float) -> tuple[Plan, Plan]:
        """The lowest plan, and the plan that fills what the lowest leaves free under ``limit`` bytes."""
        return self.lowest, self._plan(self._fill(limit))

    def _plan(self, chosen: list[int]) -> Plan:
        inside = (self.levels[segment][level].saved for segment, level in enumerate(chosen))
        return self.problem.plan("segments", self.crossing.union(*inside))

    def _levels(self) -> list[list[_Level]]:
        """The levels of each segment, by rising bytes and falling seconds."""
        levels: list[list[_Level]] = [[] for _ in range(self.count)]
        problem = self.problem
        vertices = breakpoints(problem.network, problem.costs, problem.effort.segment_levels, self.crossing)
        for vertex in reversed(vertices):
            saved: list[set[int]] = [set() for _ in range(self.count)]
            seconds = [0.0] * self.count
            for v in vertex.cut.saved:
                if self.axis.made[v] >= 0 and v not in self.crossing:
                    saved[self.segment_of[v]].add(v)
                    seconds[self.segment_of[v]] += problem.costs.keep[v]
            for op in vertex.cut.recomputed:
                writes = problem.graph.ops[op].writes
                if writes:
                    seconds[self.segment_of[writes[0]]] += problem.costs.run[op]
            for segment in range(self.count):
                nbytes = float(sum(self.axis.nbytes[v] for v in saved[segment]))
                known = levels[segment]
                if not known or (seconds[segment] < known[-1].seconds and nbytes > known[-1].nbytes):
                    known.append(_Level(frozenset(saved[segment]), seconds[segment], nbytes))
        return levels

    def _fill(self, limit: float) -> list[int]:
        """The level of each segment: raised by seconds per byte while every moment stays under ``limit`` bytes."""
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
        """Bytes that the saved values of a level take at each moment, until backward enters the segment."""
        taken = np.zeros(self.axis.count + 1)
        for v in self.levels[segment][level].saved:
            taken[self.axis.last_forward[v] + 1] += self.axis.nbytes[v]
            taken[self.entry[segment]] -= self.axis.nbytes[v]
        return np.cumsum(taken)[:-1]
