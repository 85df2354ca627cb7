"""Where to cut forward into segments, so that backward stays under a limit while it recomputes one segment at a time.

What crosses a boundary is saved, so chains of recomputation never cross it. While backward works through the segment
between boundaries ``a`` and ``b``, three things are alive: what all boundaries up to ``a`` have saved, what backward
still needs of the segment, and backward's own bytes (gradients, temporaries)::

        forward     ├──────────┤ a ├──────────┤ b ├──────────┤
        backward                   ◀── recompute (a, b], use it up from the end

        saved(a)  +  max over moments j of the segment:  need(b, j) - need(a, j) + own(j)   <=   limit
           │                            │
           └ _gain, summed up           └ _transient(a, b)

``need(p, j)`` is the bytes of what forward makes up to boundary ``p`` and backward reads at moment ``j`` or later
(``_need``). Among all sets of boundaries under one limit, ``_path`` finds the one that saves the fewest bytes: a
shortest path over the candidates, where a step from ``a`` to ``b`` costs ``_gain[a, b]`` and is allowed if the segment
fits. ``lowest`` finds the lowest limit with a path, by bisection. Saved bytes shrink while gradients grow, so the
segments are not of equal length; that is the advantage over the square root.

Source: dynamic programming over segments of a chain, Chen et al. 2016 (section 4.3, arXiv 1604.06174) and Rotor
(Beaumont et al. 2019, arXiv 1911.13214); here on any graph, under one limit for the whole timeline.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.op import Side
from rematpass.core.ragged import Floats, Ints
from rematpass.core.simulate import Timeline
from rematpass.core.solve.effort import DEFAULT_EFFORT, Effort
from rematpass.core.solve.segmentation.time_axis import TimeAxis


@dataclass(frozen=True)
class Boundaries:
    """Candidates for boundaries, and the cost of going from one to the next.

    ``save_all``: the timeline of a plan that recomputes next to nothing; backward's own bytes are read off it.
    ``forced``: values that every plan saves.
    """

    axis: TimeAxis
    save_all: Timeline
    forced: frozenset[int]
    effort: Effort = DEFAULT_EFFORT

    @cached_property
    def crossing(self) -> list[list[int]]:
        """For each moment of forward, the values that exist right after it and that forward reads later."""
        graph, made, last = self.axis.graph, self.axis.made, self.axis.last_forward
        alive: list[int] = []
        crossing: list[list[int]] = []
        start: dict[int, list[int]] = {}
        for v in graph.values:
            if made[v.id] >= 0 and last[v.id] > made[v.id]:
                start.setdefault(int(made[v.id]), []).append(v.id)
        for moment in range(self.axis.first_backward):
            alive = [v for v in alive if last[v] > moment] + start.get(moment, [])
            crossing.append(list(alive))
        return crossing

    @cached_property
    def candidates(self) -> list[int]:
        """Moments of forward after which no more bytes cross than after their neighbours; the last moment always.

        If there are too many, the narrowest of each stretch of forward; stretches are equal in the bytes that backward
        needs of them.
        """
        graph, most = self.axis.graph, self.effort.boundary_candidates
        bytes_at = [sum(graph.values[v].nbytes for v in values) for values in self.crossing]
        blocked = [any(self._cannot_save(v) for v in values) for values in self.crossing]
        end = len(bytes_at) - 1
        narrow = [
            p
            for p in range(end)
            if not blocked[p] and bytes_at[p] <= bytes_at[p - 1 if p else p] and bytes_at[p] <= bytes_at[p + 1]
        ]
        narrow = [p for p in narrow if self.crossing[p] != self.crossing[p + 1]]  # of equal neighbours, the last
        narrowest: dict[int, int] = {}
        for p in narrow:
            stretch = int(self._needed_before[p] * most)
            if stretch not in narrowest or bytes_at[p] < bytes_at[narrowest[stretch]]:
                narrowest[stretch] = p
        return [*(narrow if len(narrow) <= most else sorted(narrowest.values())), end]

    @cached_property
    def _needed_before(self) -> Floats:
        """For each moment of forward, the share of the bytes needed by backward that is made up to it: 0 to 1."""
        axis = self.axis
        needed = np.zeros(axis.first_backward)
        for v in axis.in_memory:
            if axis.made[v] >= 0 and axis.last_backward[v] >= 0:
                needed[axis.made[v]] += axis.nbytes[v]
        share: Floats = np.cumsum(needed) / max(1.0, needed.sum() * (1 + 1e-9))
        return share

    def _cannot_save(self, value: int) -> bool:
        producer = self.axis.graph.producer[value]
        marked = producer is not None and self.axis.graph.ops[producer].must_recompute
        return marked or bool(self.axis.graph.values[value].cannot_save)

    @cached_property
    def _need(self) -> Floats:
        """``need(p, j)`` in bytes: row 0 is "before forward", row i + 1 candidate i; columns are backward's moments."""
        axis = self.axis
        first, count = axis.first_backward, axis.count - axis.first_backward
        need = np.zeros((len(self.candidates) + 1, count + 1))
        last = axis.last_backward
        rows = np.searchsorted(self.candidates, axis.made)
        for v in axis.graph.values:
            if axis.made[v.id] >= 0 and last[v.id] >= first and v.id in axis.in_memory and v.id not in self.forced:
                need[rows[v.id] + 1, last[v.id] - first] += axis.nbytes[v.id]
        need = np.cumsum(need, axis=0)
        return np.cumsum(need[:, ::-1], axis=1)[:, ::-1][:, :count]

    @cached_property
    def _transient(self) -> Floats:
        """``transient[a, b]``: the most bytes besides saved ones while backward works through segment (a, b]."""
        axis, n = self.axis, len(self.candidates)
        own = axis.own_bytes(self.save_all)[axis.first_backward :]
        entry = [len(own), *(int(axis.entry[p]) - axis.first_backward for p in self.candidates)]
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
        """``gain[a, b]``: bytes that boundary b saves in addition to boundary a, forced values included."""
        axis, n = self.axis, len(self.candidates)
        gain = np.zeros((n + 1, n + 1))
        moments = np.array([-1, *self.candidates])
        forced = list(self.forced)
        forced_at = np.bincount(axis.made[forced] + 1, axis.nbytes[forced], axis.first_backward + 1)
        forced_up_to = np.cumsum(forced_at)[moments + 1]  # bytes of forced values made up to each candidate
        for b in range(1, n + 1):
            crossing = [v for v in self.crossing[moments[b]] if v not in self.forced] if b < n else []
            made = axis.nbytes[crossing] @ (axis.made[crossing][:, None] > moments[None, :b])
            gain[:b, b] = made + forced_up_to[b] - forced_up_to[:b]
        return gain

    def _path(self, limit: float) -> list[int] | None:
        """Indices of the candidates that save the fewest bytes and keep every segment under ``limit`` bytes.

        None if there are none. The last index is the end of forward.
        """
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
        """Boundaries (moments of forward) with an estimated peak of at most ``limit`` bytes; None if there are none."""
        path = self._path(limit)
        return None if path is None else [self.candidates[b] for b in path[:-1]]

    def lowest(self, ceiling: float) -> float:
        """The lowest limit in bytes under which there are boundaries; accurate to a small share of ``ceiling``."""
        low, high = 0.0, ceiling
        while high - low > ceiling / self.effort.boundary_precision:
            middle = (low + high) / 2
            low, high = (low, middle) if self._path(middle) is not None else (middle, high)
        return high

    def segment_of(self, boundaries: list[int]) -> Ints:
        """For each value, the index of the segment that makes it."""
        return np.searchsorted(boundaries, self.axis.made, side="left")

    def saved_at(self, boundaries: list[int]) -> frozenset[int]:
        """The values that cross the boundaries."""
        return frozenset(v for p in boundaries for v in self.crossing[p])


def forced(axis: TimeAxis) -> frozenset[int]:
    """Values that backward needs and that must be saved, since their op must not run again."""
    graph = axis.graph
    return frozenset(
        v.id
        for v in graph.values
        if (producer := graph.producer[v.id]) is not None
        and graph.sides[producer] is Side.FORWARD
        and (graph.ops[producer].never_recompute or v.must_save)
        and axis.last_backward[v.id] >= 0
    )
