"""Where to cut forward into segments, so that backward fits a limit while it recomputes one segment at a time.

A boundary is a position of forward. What crosses it is saved, so chains of recomputation never cross it. While
backward works through the segment between boundaries ``a`` and ``b``, alive are: what all boundaries up to ``a`` have
saved, what backward needs of the segment and has not used up yet, and backward's own bytes (gradients, temporaries)::

        saved(a)  +  max over moments j of the segment:  need(b, j) - need(a, j) + own(j)   <=   limit

``need(p, j)``: bytes of what forward makes up to position ``p`` and backward reads at moment ``j`` or later. The
least ``saved`` with which each boundary can be reached is a shortest path over the candidates (``_path``); the lowest
limit with a path, a bisection (``lowest``). Since what is saved shrinks while gradients grow, the segments it finds are
not of equal length: that is what it gains over the square root.

Source: dynamic programming over segments of a chain, Chen et al. 2016 (section 4.3, arXiv 1604.06174) and Rotor
(Beaumont et al. 2019, arXiv 1911.13214); here over any graph, under one limit for the whole timeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rematpass.core.op import Side
from rematpass.core.simulate import Timeline
from rematpass.core.solve.segmentation.time_axis import TimeAxis

_MOST_CANDIDATES = 160
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Boundaries:
    """Candidates for boundaries, with what it costs to go from one to the next.

    ``save_all``: the timeline of a plan that recomputes next to nothing, for backward's own bytes; ``forced``: values
    that are saved whatever happens.
    """

    moments: TimeAxis
    save_all: Timeline
    forced: frozenset[int]

    @cached_property
    def crossing(self) -> list[list[int]]:
        """For each position, the values made no later that forward reads after it."""
        graph, made, last = self.moments.graph, self.moments.made, self.moments.last_forward
        alive: list[int] = []
        crossing: list[list[int]] = []
        start: dict[int, list[int]] = {}
        for v in graph.values:
            if made[v.id] >= 0 and last[v.id] > made[v.id]:
                start.setdefault(int(made[v.id]), []).append(v.id)
        for position in range(self.moments.first_backward):
            alive = [v for v in alive if last[v] > position] + start.get(position, [])
            crossing.append(list(alive))
        return crossing

    @cached_property
    def candidates(self) -> list[int]:
        """Positions where no more bytes cross than at their neighbours; the last position of forward always.

        When there are too many, the narrowest of each stretch of forward, stretches being equal in what backward needs.
        """
        graph = self.moments.graph
        bytes_at = [sum(graph.values[v].nbytes for v in values) for values in self.crossing]
        blocked = [any(self._cannot_save(v) for v in values) for values in self.crossing]
        end = len(bytes_at) - 1
        low = [
            p
            for p in range(end)
            if not blocked[p] and bytes_at[p] <= bytes_at[p - 1 if p else p] and bytes_at[p] <= bytes_at[p + 1]
        ]
        low = [p for p in low if self.crossing[p] != self.crossing[p + 1]]  # of equal ones, the last
        narrowest: dict[int, int] = {}
        for p in low:
            stretch = int(self._needed_before[p] * _MOST_CANDIDATES)
            if stretch not in narrowest or bytes_at[p] < bytes_at[narrowest[stretch]]:
                narrowest[stretch] = p
        return [*(low if len(low) <= _MOST_CANDIDATES else sorted(narrowest.values())), end]

    @cached_property
    def _needed_before(self) -> Floats:
        """For each position, the share of what backward needs that is made up to it: from 0 to 1."""
        m = self.moments
        needed = np.zeros(m.first_backward)
        for v in m.in_memory:
            if m.made[v] >= 0 and m.needed[1][v] >= 0:
                needed[m.made[v]] += m.nbytes[v]
        share: Floats = np.cumsum(needed) / max(1.0, needed.sum() * (1 + 1e-9))
        return share

    def _cannot_save(self, value: int) -> bool:
        producer = self.moments.graph.producer[value]
        marked = producer is not None and self.moments.graph.ops[producer].must_recompute
        return marked or bool(self.moments.graph.values[value].cannot_save)

    @cached_property
    def _need(self) -> Floats:
        """``need(p, j)``, for p in the candidates (preceded by "before everything") and every moment j of backward."""
        m = self.moments
        first, count = m.first_backward, m.count - m.first_backward
        need = np.zeros((len(self.candidates) + 1, count + 1))
        _, last = m.needed
        rows = np.searchsorted(self.candidates, m.made)
        for v in m.graph.values:
            if m.made[v.id] >= 0 and last[v.id] >= first and v.id in m.in_memory and v.id not in self.forced:
                need[rows[v.id] + 1, last[v.id] - first] += m.nbytes[v.id]
        need = np.cumsum(need, axis=0)
        return np.cumsum(need[:, ::-1], axis=1)[:, ::-1][:, :count]

    @cached_property
    def _transient(self) -> Floats:
        """``transient[a, b]``: the most bytes besides what is saved while backward works through segment (a, b]."""
        m, n = self.moments, len(self.candidates)
        own = m.own_bytes(self.save_all)[m.first_backward :]
        entry = [len(own), *(int(m.entry[p]) - m.first_backward for p in self.candidates)]
        transient = np.full((n + 1, n + 1), np.inf)
        for a in range(n + 1):
            for b in range(a + 1, n + 1):
                begin, end = entry[b], entry[a]
                if end <= begin:
                    transient[a, b] = 0.0
                else:
                    transient[a, b] = (self._need[b, begin:end] - self._need[a, begin:end] + own[begin:end]).max()
        return transient

    @cached_property
    def _gain(self) -> Floats:
        """``gain[a, b]``: bytes that boundary b saves beyond those that boundary a has saved, forced ones included."""
        m, n = self.moments, len(self.candidates)
        gain = np.zeros((n + 1, n + 1))
        positions = np.array([-1, *self.candidates])
        by_force = np.bincount(m.made[list(self.forced)] + 1, m.nbytes[list(self.forced)], m.first_backward + 1)
        forced_to = np.cumsum(by_force)[positions + 1]  # bytes of what is forced and made up to each candidate
        for b in range(1, n + 1):
            crossing = [v for v in self.crossing[positions[b]] if v not in self.forced] if b < n else []
            made = m.nbytes[crossing] @ (m.made[crossing][:, None] > positions[None, :b])
            gain[:b, b] = made + forced_to[b] - forced_to[:b]
        return gain

    def _path(self, limit: float) -> list[int] | None:
        """The boundaries (indices of candidates) that save least and keep every segment under ``limit``."""
        n = len(self.candidates)
        saved = np.full(n + 1, np.inf)
        saved[0] = 0.0
        came_from = [-1] * (n + 1)
        for b in range(1, n + 1):
            total = saved[:b] + self._gain[:b, b]
            fits = total + self._transient[:b, b] - self._gain[:b, b] * (b < n) <= limit
            total = np.where(fits, total, np.inf)
            best = int(np.argmin(total))
            if np.isfinite(total[best]):
                saved[b], came_from[b] = total[best], best
        if not np.isfinite(saved[n]):
            return None
        path = [n]
        while came_from[path[-1]] > 0:
            path.append(came_from[path[-1]])
        return [b - 1 for b in reversed(path)]

    def under(self, limit: float) -> list[int] | None:
        """Positions of the boundaries that keep the estimated peak under ``limit``; None when there are none."""
        path = self._path(limit)
        return None if path is None else [self.candidates[b] for b in path[:-1]]

    def lowest(self, ceiling: float) -> float:
        """The lowest limit, to 1/256 of ``ceiling``, under which there are boundaries."""
        low, high = 0.0, ceiling
        while high - low > ceiling / 256:
            middle = (low + high) / 2
            low, high = (low, middle) if self._path(middle) is not None else (middle, high)
        return high

    def segment_of(self, positions: list[int]) -> NDArray[np.int64]:
        """For each value, the index of the segment that makes it."""
        return np.searchsorted(positions, self.moments.made, side="left")

    def saved_at(self, positions: list[int]) -> frozenset[int]:
        """What crosses the boundaries."""
        return frozenset(v for p in positions for v in self.crossing[p])


def forced(moments: TimeAxis) -> frozenset[int]:
    """Values that backward needs and that must be saved: their op must not run again."""
    graph = moments.graph
    return frozenset(
        v.id
        for v in graph.values
        if (producer := graph.producer[v.id]) is not None
        and graph.sides[producer] is Side.FORWARD
        and (graph.ops[producer].never_recompute or v.must_save)
        and moments.needed[1][v.id] >= 0
    )
