"""Local search for lower peaks: idle copies are evicted and recomputed later.

A *peak region* is a stretch of the timeline above a target. A copy that is idle over it (``idle_copies.py``) can be
evicted there: that frees its bytes and costs the seconds to recompute it::

        bytes      ╭──╮                      peak region: a stretch of the timeline above the target
            ───────╯  ╰──╮   target ─ ─ ─
               x .........x                  x: reads of a copy that is idle over the peak region

Each round sets a target slightly below the peak and proposes, for each peak region, the idle copies that free the most
bytes for the fewest seconds (``Search._peak_regions``). If taking them all does not lower what lies above the target,
the regions are halved until the ones that do not help are found; their evictions are not proposed again
(``Search._try``). After each step down, what has become free is filled again with values worth saving
(``Search.fill``). The simulator judges every step, so a wrong guess costs only planning time.

So a value can be computed more than once in backward, and a plan can get below what any set of saved values can
reach: a block is recomputed to reach the next one, evicted, and recomputed in parts.

Source: greedy eviction by seconds per byte as in XLA's HloRematerialization and Dynamic Tensor Rematerialization
(Kirisame et al. 2021, arXiv 2006.09616); here ahead of time, from an optimal cut, on all peak regions at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline, recompute_seconds, step_seconds
from rematpass.core.solve.local_search.fill import Headroom
from rematpass.core.solve.local_search.idle_copies import IdleCopies, PricedEviction
from rematpass.core.solve.problem import Eviction, Problem
from rematpass.core.solve.state import State
from rematpass.errors import PlanError


def descend(
    problem: Problem, start: State, plan: Plan | None = None, stride: float = 1.0
) -> Iterator[tuple[State, Plan]]:
    """Plans of falling peak, starting from ``start``; each is filled up with what it leaves free.

    ``plan``: that of ``start``, if it is known already. ``stride``: a factor on the first steps, for a high start.
    """
    search = Search(problem, start, plan or start.plan(problem, "descent"), stride=stride)
    while True:
        lowered = search.lower()
        if lowered:
            yield search.state, search.plan
        filled = search.fill(search.timeline.peak)
        if filled:
            yield search.state, search.plan
        if not lowered and not filled and not search.take_smaller_steps():
            return


@dataclass(eq=False)
class Search:
    """A plan that is lowered and filled step by step. ``stride``: a factor on the size of its steps."""

    problem: Problem
    state: State
    plan: Plan
    stride: float = 1.0
    banned: set[frozenset[Eviction]] = field(default_factory=set)  # evictions that did not help
    trials_left: int = field(init=False)  # each is a simulation
    without_progress: int = 0  # trials since the last one that helped

    def __post_init__(self) -> None:
        self.effort = self.problem.effort
        self.step = self.effort.descent_step * self.stride
        self.trials_left = self.problem.trials(self.effort.descent_trials, self.effort.descent_trials_at_least)
        self.timeline = self.problem.timeline(self.plan)

    @property
    def peak(self) -> int:
        return self.timeline.peak

    @property
    def seconds(self) -> float:
        return self.timeline.step_seconds

    @property
    def may_try(self) -> bool:
        """Whether another trial is allowed."""
        return self.trials_left > 0 and self.without_progress < self.effort.trials_without_progress

    def lower(self) -> bool:
        """Lower the peak by one step; return whether it fell."""
        start, enough = self.timeline.peak, 1 - self.effort.least_progress
        target = int(start * (1 - self.step))
        while self.timeline.peak > target and self.may_try:
            peak_regions = self._peak_regions(target)
            reachable = max(max(lowest for _, lowest in peak_regions), target)
            if reachable >= self.timeline.peak * enough:
                break
            if reachable > target:
                target = reachable
                continue
            groups = [choices for choices, _ in peak_regions]
            if not self._try(groups, target):
                break
        return self.timeline.peak < start * enough

    def lower_to(self, limit: int) -> bool:
        """Lower the peak towards ``limit`` bytes in one stride, as far as it goes; return whether it fell."""
        start, self.trials_left = self.peak, self.effort.stride_trials
        while self.peak > limit and self.may_try:
            peak_regions = self._peak_regions(limit)
            if any(lowest > limit for _, lowest in peak_regions) or not self._try(
                [choices for choices, _ in peak_regions], limit
            ):
                break
        self._drop_idle_copies()  # which are large, and refine keeps its searches
        return self.peak < start

    def _try(self, groups: list[list[PricedEviction]], target: int) -> bool:
        """Take all groups at once; if that does not help, each half by itself. Return whether to go on."""
        evictions = frozenset().union(*(c.evictions for group in groups for c in group))
        if self._try_evicting(evictions, target):
            return True
        if len(groups) > 1 and self.may_try:
            middle = len(groups) // 2
            halves = [self._try(half, target) for half in (groups[:middle], groups[middle:])]
            return any(halves)
        for choice in groups[0]:
            self.banned.add(choice.evictions)
        return True  # other evictions may help

    def _try_evicting(self, evictions: frozenset[Eviction], target: int) -> bool:
        """Continue from the plan with ``evictions`` if it lowers what lies above ``target``; return whether it does."""
        most = self.problem.max_recompute * self.problem.forward_seconds
        allowed = self.effort.excess_kept * _bytes_above(self.timeline, target)
        return self._try_state(
            self.state.evicting(evictions),
            is_fast_enough=lambda plan: recompute_seconds(self.problem.graph, plan, self.problem.costs) <= most,
            is_better=lambda new: _bytes_above(new, target) < allowed,
        )

    def take_smaller_steps(self) -> bool:
        """Halve the steps and allow all evictions again; return whether steps are still useful."""
        self.step /= 2
        self.banned.clear()
        return self.step > 2 * self.effort.least_progress and self.may_try

    def fill(self, limit: int, rounds: int | None = None, exclude: frozenset[int] = frozenset()) -> bool:
        """Save what is recomputed, except ``exclude``, as far as it fits under ``limit`` bytes; return if that helps.

        ``rounds``: how often, at most; by default ``Effort.fill_rounds``.
        """
        start = self.timeline.step_seconds
        for _ in range(self.effort.fill_rounds if rounds is None else rounds):
            headroom = Headroom(self.problem, self.state.saved, self.timeline, limit)
            values = headroom.worth_saving(exclude)
            while values and not self._try_saving(self.state.saving(frozenset(values)), limit):
                values = values[: len(values) // 2]
            if not values:
                break
        return self.timeline.step_seconds < start * (1 - self.effort.least_progress)

    def _try_saving(self, state: State, limit: int) -> bool:
        """Continue from ``state`` if it is faster and stays under ``limit`` bytes; return whether it does."""
        seconds = self.timeline.step_seconds
        return self._try_state(
            state,
            is_fast_enough=lambda plan: step_seconds(self.problem.graph, plan, self.problem.costs) < seconds,
            is_better=lambda new: new.peak <= limit,
        )

    def _try_state(
        self, state: State, is_fast_enough: Callable[[Plan], bool], is_better: Callable[[Timeline], bool]
    ) -> bool:
        """Simulate ``state`` if its plan is fast enough; continue from it if its timeline is better."""
        self.trials_left, self.without_progress = self.trials_left - 1, self.without_progress + 1
        try:
            plan = state.plan(self.problem, "descent")
        except PlanError:  # an op that must run once would run twice
            return False
        if not is_fast_enough(plan):
            return False
        timeline = self.problem.timeline(plan)
        if not is_better(timeline):
            return False
        self.state, self.plan, self.timeline, self.without_progress = state, plan, timeline, 0
        self._drop_idle_copies()
        return True

    def _drop_idle_copies(self) -> None:
        vars(self).pop("_idle_copies", None)

    @cached_property
    def _idle_copies(self) -> IdleCopies:
        """Those of the current plan; kept until the plan changes."""
        copies = self.problem.materialization(self.plan)
        return IdleCopies(self.problem, self.plan, self.timeline, copies, self.banned)

    def _peak_regions(self, target: int) -> list[tuple[list[PricedEviction], int]]:
        """For each stretch above ``target`` bytes: what to evict there, and the lowest reachable peak of the stretch.

        The lowest reachable peak is 0 where the evictions suffice to reach the target.
        """
        live = self.timeline.live
        peak_regions = []
        above = np.flatnonzero(self.timeline.live_array > target).tolist()
        for _, stretch in itertools.groupby(enumerate(above), key=lambda pair: pair[1] - pair[0]):
            top = max((p for _, p in stretch), key=lambda p: live[p])
            taken: list[PricedEviction] = []
            left = live[top]
            for choice in self._idle_copies.at(top):
                taken.append(choice)
                left -= choice.nbytes
                if left <= target:
                    break
            peak_regions.append((taken, left if left > target else 0))
        return peak_regions


def _bytes_above(timeline: Timeline, target: int) -> int:
    """The bytes above ``target``, summed over all positions."""
    return int(np.maximum(timeline.live_array - target, 0).sum())
