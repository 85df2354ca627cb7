"""Down from a plan to plans of lower peak: what lies idle is let go and made again later.

A copy lies idle at a moment when it has been read before and is read again only after it. Eviction it go there frees its
bytes and costs one more run of what it is made of, from what is alive by then::

        bytes      ╭──╮                      peak_region: a stretch of the timeline above the target
            ───────╯  ╰──╮   target ─ ─ ─
               x .........x                  x: read, idle over the peak_region, read again

Each round takes every peak_region above a target a little below the peak, and on each peak_region the idle copies that free the most
bytes for the fewest seconds. A round that does not lower what stands above the target is taken peak_region by peak_region; what does
not help even so is not tried again. All is judged by the simulator, so a wrong guess costs time and nothing else.

This is where values come to be computed more than once in backward, and where a plan gets below what one set of saved
values can reach: a block is recomputed to reach the next one, let go, and recomputed in parts.

Source: greedy eviction by seconds per byte is what XLA's HloRematerialization and Dynamic Tensor Rematerialization
(Kirisame et al. 2021, arXiv 2006.09616) do; here it starts from an optimal cut, ahead of time, on all peak_regions at once.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rematpass.core.schedule import Plan
from rematpass.core.simulate import LiveInterval, Materialization, Timeline, recompute_seconds, step_seconds
from rematpass.core.solve.local_search.fill import Room
from rematpass.core.solve.problem import Eviction, Problem
from rematpass.core.solve.state import State
from rematpass.errors import PlanError

_STEP = 0.04  # a target lies this far below the peak
_LEAST = 0.002  # progress in the peak that is worth going on for
_MOST_TRIALS = 80  # simulations of one descent
_MOST_IN_VAIN = 24  # of them one after another that bring it no further
_MOST_OF_A_STRIDE = 3  # simulations of one
_MOST_FILLS = 3  # rounds of filling up what one level leaves free


@dataclass(frozen=True)
class _Choice:
    """Eviction go of one copy over one peak_region. A moment of -1: it is not saved at all."""

    evictions: frozenset[Eviction]
    nbytes: int
    seconds: float


def descend(
    problem: Problem, start: State, plan: Plan | None = None, stride: float = 1.0
) -> Iterator[tuple[State, Plan]]:
    """Plans of falling peak, from ``start`` on; each as fast as what it leaves free allows.

    ``plan``: of ``start``, where it is known already; ``stride``: how much larger than usual the first steps are, for a
    start that lies high.
    """
    search = Search(problem, start, plan or start.plan(problem, "descent"), step=_STEP * stride)
    while True:
        lowered = search.lower()
        if lowered:
            yield search.state, search.plan
        filled = search.fill(search.timeline.peak)
        if filled:
            yield search.state, search.plan
        if not lowered and not filled and not search.finer():
            return


@dataclass(eq=False)
class Search:
    """A plan, and what it becomes while it is lowered and filled."""

    problem: Problem
    state: State
    plan: Plan
    banned: set[frozenset[Eviction]] = field(default_factory=set)
    left: int = field(init=False)  # trials, each a simulation
    in_vain: int = 0  # since the last that helped
    step: float = _STEP

    def __post_init__(self) -> None:
        self.left = self.problem.trials(_MOST_TRIALS, least=4)
        self.timeline = self.problem.timeline(self.plan)

    @property
    def peak(self) -> int:
        return self.timeline.peak

    @property
    def seconds(self) -> float:
        return self.timeline.step_seconds

    @property
    def may_try(self) -> bool:
        return self.left > 0 and self.in_vain < _MOST_IN_VAIN

    def lower(self) -> bool:
        """Bring the peak down by one step; whether that was possible."""
        start = self.timeline.peak
        target = int(start * (1 - self.step))
        while self.timeline.peak > target and self.may_try:
            peak_regions = self._peak_regions(target)
            reach = max(max(lowest for _, lowest in peak_regions), target)
            if reach >= self.timeline.peak * (1 - _LEAST):
                break
            if reach > target:
                target = reach
                continue
            groups = [choices for choices, _ in peak_regions]
            if not self._try(groups, target):
                break
        return self.timeline.peak < start * (1 - _LEAST)

    def lower_to(self, limit: int) -> bool:
        """Bring the peak down to ``limit`` in one stride, or as far as that goes; whether it went anywhere."""
        start, self.left = self.peak, _MOST_OF_A_STRIDE
        while self.peak > limit and self.may_try:
            peak_regions = self._peak_regions(limit)
            if any(lowest > limit for _, lowest in peak_regions) or not self._try(
                [choices for choices, _ in peak_regions], limit
            ):
                break
        self._forget_idle()  # which is large, and searches are kept
        return self.peak < start

    def _try(self, groups: list[list[_Choice]], target: int) -> bool:
        """Take all of the groups at once or, where that does not lower what stands above the target, each by itself."""
        evictions = frozenset().union(*(c.evictions for group in groups for c in group))
        if self._accept(evictions, target):
            return True
        if len(groups) > 1 and self.may_try:
            middle = len(groups) // 2
            halves = [self._try(half, target) for half in (groups[:middle], groups[middle:])]
            return any(halves)
        for choice in groups[0]:
            self.banned.add(choice.evictions)
        return True  # there may be others

    def _accept(self, evictions: frozenset[Eviction], target: int) -> bool:
        most = self.problem.max_recompute * self.problem.forward_seconds
        above = 0.98 * _above(self.timeline, target)
        return self._go_on(
            self.state.evicting(evictions),
            is_fast_enough=lambda plan: recompute_seconds(self.problem.graph, plan, self.problem.costs) <= most,
            is_better=lambda new: _above(new, target) < above,
        )

    def finer(self) -> bool:
        """Go on with smaller steps, and with what did not help further up; whether they are worth going."""
        self.step /= 2
        self.banned.clear()
        return self.step > 2 * _LEAST and self.may_try

    def fill(self, limit: int, rounds: int = _MOST_FILLS, but: frozenset[int] = frozenset()) -> bool:
        """Save what is recomputed ``but`` these, as far as it fits under ``limit``; whether anything was gained."""
        start = self.timeline.step_seconds
        for _ in range(rounds):
            room = Room(self.problem, self.state.saved, self.timeline, limit)
            values = room.worth_saving(but)
            while values and not self._takes(self.state.saving(frozenset(values)), limit):
                values = values[: len(values) // 2]
            if not values:
                break
        return self.timeline.step_seconds < start * (1 - _LEAST)

    def _takes(self, state: State, limit: int) -> bool:
        """Go on from ``state`` if it is faster and stays under ``limit``."""
        seconds = self.timeline.step_seconds
        return self._go_on(
            state,
            is_fast_enough=lambda plan: step_seconds(self.problem.graph, plan, self.problem.costs) < seconds,
            is_better=lambda new: new.peak <= limit,
        )

    def _go_on(
        self, state: State, is_fast_enough: Callable[[Plan], bool], is_better: Callable[[Timeline], bool]
    ) -> bool:
        """Simulate ``state`` if its plan is fast enough, and go on from it if it is better."""
        self.left, self.in_vain = self.left - 1, self.in_vain + 1
        try:
            plan = state.plan(self.problem, "descent")
        except PlanError:  # something that must not run twice would have to
            return False
        if not is_fast_enough(plan):
            return False
        timeline = self.problem.timeline(plan)
        if not is_better(timeline):
            return False
        self.state, self.plan, self.timeline, self.in_vain = state, plan, timeline, 0
        self._forget_idle()
        return True

    def _forget_idle(self) -> None:
        vars(self).pop("_idle", None)

    @cached_property
    def _idle(self) -> _Idle:
        """Of the plan that the search stands at, which it often asks more than once."""
        return _Idle(self.problem, self.plan, self.timeline, self.problem.materialization(self.plan), self.banned)

    def _peak_regions(self, target: int) -> list[tuple[list[_Choice], int]]:
        """For each stretch above ``target``: what to let go there, and the lowest that its top can come to."""
        live, idle = self.timeline.live, self._idle
        peak_regions = []
        above = np.flatnonzero(self.timeline.live_array > target).tolist()
        for _, stretch in itertools.groupby(enumerate(above), key=lambda pair: pair[1] - pair[0]):
            top = max((p for _, p in stretch), key=lambda p: live[p])
            taken: list[_Choice] = []
            left = live[top]
            for choice in idle.at(top):
                taken.append(choice)
                left -= choice.nbytes
                if left <= target:
                    break
            peak_regions.append((taken, left if left > target else 0))
        return peak_regions


def _above(timeline: Timeline, target: int) -> int:
    return int(np.maximum(timeline.live_array - target, 0).sum())


class _Idle:
    """The idle copies of one plan, by position."""

    def __init__(
        self, problem: Problem, plan: Plan, timeline: Timeline, there: Materialization, banned: set[frozenset[Eviction]]
    ) -> None:
        self.problem, self.timeline, self.banned = problem, timeline, banned
        self.lives, self.saved = there.lives, frozenset(plan.saved)
        graph, first = problem.graph, timeline.first_backward
        own = graph.is_backward[self.lives.op[first:]].astype(np.int64)
        self.moment: list[int] = (np.cumsum(own) - own).tolist()  # for each run of backward, whose op it is for
        intervals = sorted(timeline.intervals, key=lambda t: t.born)
        self.intervals = [t for t in intervals if t.nbytes and not t.outlives and self._can_be_made_again(t.value)]
        made_by = (graph.producer[t.value] for t in self.intervals)
        seconds = [0.0 if op is None else problem.costs.run[op] for op in made_by]
        of_others = graph.nbytes_of_others[[t.value for t in self.intervals]].tolist()
        self.least = [s / (t.nbytes + more) for s, t, more in zip(seconds, self.intervals, of_others, strict=True)]
        self.choices: dict[tuple[int, int], _Choice | None] = {}  # by interval, and which of its reads comes next
        self.born = np.array([t.born for t in self.intervals], np.int64)
        self.end = np.array([t.end for t in self.intervals], np.int64)
        self.values, self.born_at = self.lives.value.tolist(), self.lives.born.tolist()
        self.last_read = np.where(self.lives.outlives, len(timeline.runs), self.lives.last_read).tolist()
        numbers = self.lives.number.tolist()
        made_from: dict[int, list[int]] = {}
        for copy, sources in there.made_of.items():
            if self.last_read[copy] > first:  # others are over when backward lets go of anything
                for s in sources:
                    made_from.setdefault(s, []).append(copy)
        # (value, copy) in memory -> virtual copies made of it
        self.made_from = {(self.values[s], numbers[s]): copies for s, copies in made_from.items()}

    def _can_be_made_again(self, value: int) -> bool:
        producer = self.problem.graph.producer[value]
        return producer is not None and producer not in self.problem.graph.runs_once

    def at(self, position: int) -> Iterator[_Choice]:
        """What could be let go at ``position``, the cheapest per byte first.

        No copy is made again for less than its own op, so it is priced in full only when that would be the cheapest.
        """
        there = np.flatnonzero((self.born < position) & (position <= self.end)).tolist()
        queue: list[tuple[float, int, int, _Choice | None]] = [
            (self.least[i], -self.intervals[i].nbytes, i, None) for i in there
        ]
        heapq.heapify(queue)
        while queue:
            _, fewest, i, choice = heapq.heappop(queue)
            if choice is not None:
                yield choice
                continue
            choice = self._choice(i, position)
            if choice is not None and choice.evictions not in self.banned:
                heapq.heappush(queue, (choice.seconds / choice.nbytes, fewest, i, choice))

    def _choice(self, i: int, position: int) -> _Choice | None:
        t = self.intervals[i]
        later = bisect_left(t.reads, position)
        if later == len(t.reads) or t.reads[later] == position or t.made >= position:
            return None  # in use, or read no more
        if (i, later) not in self.choices:  # many peak_regions lie between one read and the next
            self.choices[i, later] = self._between_reads(t, later)
        return self.choices[i, later]

    def _between_reads(self, t: LiveInterval, later: int) -> _Choice | None:
        """Eviction go of ``t`` before its read number ``later``."""
        first = self.timeline.first_backward
        before, after = (t.reads[later - 1] if later else t.made), t.reads[later]
        if after < first or (before < first and t.value not in self.saved):
            return None
        if before < first:  # backward has not read it yet
            return self._priced({(t.value, -1)}, t, after)
        last, again = self.moment[before - first], self.moment[after - first]
        if last == again:
            return None
        of_it = self.made_from.get((t.value, t.copy), ())
        fused = [self.values[c] for c in of_it if self.born_at[c] <= before < self.last_read[c]]
        if any(self._is_backwards(v) for v in fused):
            return None  # runs once, and asks for this copy
        return self._priced({(v, last) for v in (t.value, *fused)}, t, after)

    def _is_backwards(self, value: int) -> bool:
        producer = self.problem.graph.producer[value]
        return producer is not None and bool(self.problem.graph.is_backward[producer])

    def _priced(self, evictions: set[Eviction], t: LiveInterval, after: int) -> _Choice | None:
        graph = self.problem.graph
        gone = {v for v, _ in evictions}
        chain = graph.ancestors([t.value], _Alive(self.copies_of, after, gone))
        if not graph.runs_once.isdisjoint(chain) or self._asks_for_the_lost(chain):
            return None
        again = self.moment[after - self.timeline.first_backward]
        for v in (v for op in chain for v in graph.ops[op].writes if v not in gone):
            last = self._last_read(v, after)
            if last is not None and last < again:
                evictions.add((v, last))  # it is over by then: making t again must not keep it alive
        nbytes = t.nbytes
        if any(moment < 0 for _, moment in evictions):
            nbytes += int(graph.nbytes_of_others[t.value])
        return _Choice(frozenset(evictions), nbytes, sum(self.problem.costs.run[op] for op in chain))

    def _asks_for_the_lost(self, chain: list[int]) -> bool:
        """Whether one of the ops reads an input that backward cannot have."""
        graph = self.problem.graph
        inputs = {v for op in chain for v in graph.ops[op].reads if graph.producer[v] is None}
        return not inputs <= graph.kept_inputs

    def _last_read(self, value: int, before: int) -> int | None:
        """The own op at which backward has made or read ``value`` for the last time before a position."""
        positions, start = self._touched
        first = self.timeline.first_backward
        index = bisect_left(positions, before - first, start[value], start[value + 1])
        return self.moment[positions[index - 1]] if index > start[value] else None

    @cached_property
    def _touched(self) -> tuple[list[int], list[int]]:
        """For each value the runs of backward that make or read it, ascending, and where those of each start."""
        graph, ops = self.problem.graph, self.lives.op[self.timeline.first_backward :]
        reads, writes = graph.touched_rows.take(ops), graph.written_rows.take(ops)
        positions, values = (np.append(r, w) for r, w in zip(reads, writes, strict=True))
        order = np.lexsort((positions, values))
        start = np.searchsorted(values[order], np.arange(len(graph.values) + 1))
        return positions[order].tolist(), start.tolist()

    @cached_property
    def copies_of(self) -> dict[object, list[tuple[int, int]]]:
        """For each value its copies that backward can read: where each is made, and where it is read last."""
        always = (-1, len(self.timeline.runs))
        found: dict[object, list[tuple[int, int]]] = {v: [always] for v in self.problem.graph.kept_inputs}
        first = self.timeline.first_backward
        for value, born, last in zip(self.values, self.born_at, self.last_read, strict=True):
            if born >= first or value in self.saved:
                found.setdefault(value, []).append((born, last))
        return found


@dataclass(frozen=True)
class _Alive:
    """The values that can be read at ``position`` of backward, those in ``gone`` left out."""

    copies: Mapping[object, Sequence[tuple[int, int]]]
    position: int
    gone: set[int]

    def __contains__(self, value: object) -> bool:
        if value in self.gone:
            return False
        for born, last in self.copies.get(value, ()):  # noqa: SIM110  (any() takes twice as long)
            if born < self.position < last:
                return True
        return False
