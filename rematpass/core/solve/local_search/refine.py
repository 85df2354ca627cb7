"""Between the plans that are there: what fits is filled in, and where the ladder has a hole, plans are sought for it.

A ladder's plans lie above their own lower convex hull, and where layers are alike most of what lies on the hull can be
had, by treating some layers as one plan does and the others as another. So the hole worth a search is where the steps
of the ladder enclose most area with the hull, bytes taken as ratios::

        seconds   ┌───                     ───  the fastest plan under so many bytes
              ●┐  :                        ●    plans
               └──●───┐                    \\    their hull
                 \\    └───●                the first step is tried before the second: it encloses less
                   bytes

Into the middle of the hole plans that lie above are brought down in one stride: all that is cheapest to let go over all
peak_regions at once, which a way down by small steps (``evict.py``) does not come by, since it pays at each step for what
stands in the way of that step only. Two begin: the fastest a little above, and the fastest far above.

On thirteen graphs the seconds of a step are 0.0 to 0.9% lower for it on average over all limits, 6% at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from rematpass.core.schedule import Plan
from rematpass.core.solve.local_search.evict import Search
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.state import State

_REACHES = (1.1, 2.0)  # times a limit: how high a plan may lie that is brought down to it; for large graphs the first
_NARROW = 1.004  # a step from one peak to the next that holds no other
_WORTH = 4e-4  # of a step's seconds, on average over all limits, that filling a hole has to promise


class Point(Protocol):
    """What a plan takes."""

    @property
    def peak(self) -> int: ...

    @property
    def seconds(self) -> float: ...


P = TypeVar("P", bound=Point)


def pareto(points: Iterable[P]) -> tuple[P, ...]:
    """Those that no other beats in both seconds and peak, from the fastest on."""
    best: list[P] = []
    for point in sorted(points, key=lambda p: (p.seconds, p.peak)):
        if not best or point.peak < best[-1].peak:
            best.append(point)
    return tuple(best)


def fill_up(
    problem: Problem, found: Iterable[tuple[State, Plan]], limits: Iterable[int]
) -> Iterator[tuple[State, Plan]]:
    """Under each of ``limits`` the fastest plan so far, of ``found`` and these, with what fits beside it saved."""
    pool = [Search(problem, state, plan) for state, plan in found]
    for limit in limits:
        fastest = _fastest_under(limit, pool)
        if fastest is None:
            continue
        search = Search(problem, fastest.state, fastest.plan)
        if search.fill(limit, rounds=1, but=_unsplittable(problem)):
            pool.append(search)
            yield search.state, search.plan


def refine(problem: Problem, found: Iterable[tuple[State, Plan]], trials: int) -> Iterator[tuple[State, Plan]]:
    """Plans for the largest holes between ``found`` and these, one hole for each of ``trials``."""
    pool = [Search(problem, state, plan) for state, plan in found]
    tried: set[tuple[int, int]] = set()
    reaches = _REACHES[: problem.trials(2 * len(_REACHES))]
    for _ in range(trials):
        hole = largest_ladder_gap(pareto(pool), tried)
        if hole is None:
            return
        tried.add(hole)
        limit = math.isqrt(hole[0] * hole[1])
        for start in dict.fromkeys(_fastest_under(reach * limit, pool) for reach in reaches):
            if start is None or start.peak <= limit:
                continue
            search = Search(problem, start.state, start.plan)
            if search.lower_to(limit):
                search.fill(max(limit, search.peak), rounds=1, but=_unsplittable(problem))
                pool.append(search)
                yield search.state, search.plan


def largest_ladder_gap(ladder: Sequence[Point], but: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The two neighbouring peaks of ``ladder``, the lower first, whose step encloses most area with the convex hull.

    ``but``: pairs that are left out; None where no others are there that are worth a search.
    """
    points = [(p.peak, p.seconds) for p in reversed(ladder)]
    if not points or not points[0][0]:
        return None
    least = _WORTH * points[-1][1] * math.log(points[-1][0] / points[0][0])
    corners = hull(points)
    peaks, seconds = [p for p, _ in corners], [s for _, s in corners]
    sizes: list[tuple[float, tuple[int, int]]] = []
    for (low, slower), (high, _) in itertools.pairwise(points):
        if high > low * _NARROW and (low, high) not in but:
            above = slower - float(np.interp(math.sqrt(low * high), peaks, seconds))
            sizes.append((above * math.log(high / low), (low, high)))
    size, hole = max(sizes, default=(0.0, None))
    return hole if size > least else None


def hull(points: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The corners of the lower convex hull of (bytes, seconds), given and returned by rising bytes.

    Source: Andrew 1979, "Another efficient algorithm for convex hulls in two dimensions".
    """
    hull: list[tuple[int, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (x1 - x0) * (y - y0) > (y1 - y0) * (x - x0):
                break
            hull.pop()
        hull.append((x, y))
    return hull


def _fastest_under(limit: float, pool: Iterable[Search]) -> Search | None:
    under = (search for search in pool if search.peak <= limit)
    return min(under, key=lambda search: (search.seconds, search.peak), default=None)


def _unsplittable(problem: Problem) -> frozenset[int]:
    """What is not filled in: forward's outputs where the caller lets go of them.

    A saved one is not overwritten, as a copy of backward's is. So it takes more than there seems to be free, and all
    that is tried together with it fails.
    """
    return frozenset(() if problem.graph.holds_outputs else problem.graph.fwd_outputs)
