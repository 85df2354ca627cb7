"""The ladder: every plan worth having between the floor and the ceiling. A budget selects one of them.

The planner computes the same ladder for every budget, simulates each plan, and drops a plan that another one beats in
both seconds and peak. The remaining rungs fall in peak as they rise in seconds, so a lower budget never takes more
memory. The judge (``verify``) checks only the rungs that are selected: one or a few of dozens.

``select`` goes by the peaks that its caller reports, which can differ from the simulated ones: under Inductor, a dry
run gives the exact peak of a rung, and takes seconds. One or two dry runs usually settle a budget, and at most six,
unless the floor is not as low as simulated.

One rung is not the planner's: the *default*, which is what the compiler does without a planner. It is the choice where
nothing limits, so a budget never costs anything that it need not cost. Under a limit it is asked like any other rung,
unless the bytes that it certainly takes (``Default.at_least``) already settle the matter::

        the asked peak of our rung is at most at_least              ours; the default is not asked
        the default takes less, or it is faster and fits            the default
        otherwise                                                   ours
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rematpass.budget import Budget, BudgetKind
from rematpass.core.hardware import device_facts
from rematpass.core.solve.ladder import SOLVERS, Rung
from rematpass.core.solve.local_search.refine import pareto
from rematpass.core.solve.problem import Problem

FITS_NO_BUDGET = sys.maxsize  # the peak, in bytes, of a candidate that must not be taken under a limit
_MOST_PROBES = 4  # rungs asked, before the floor and the default
_MOST_IN_DOUBT = 8  # rungs asked if not even the floor is as low as simulated
_WORTH_A_PROBE = 0.99  # a faster rung is asked for if it takes at most this part of the seconds of the one at hand


def peak_allowed(budget: int, device: str) -> int:
    """The highest planned peak that fits a budget on a device ("cpu", or a GPU's name); both in bytes."""
    parts = device_facts(device).budget_parts
    return budget * parts // (parts + 1)


def least_budget(peak: int, device: str) -> int:
    """The lowest budget that a planned peak fits on a device ("cpu", or a GPU's name); both in bytes."""
    parts = device_facts(device).budget_parts
    return -(-peak * (parts + 1) // parts)


@dataclass(frozen=True)
class Default:
    """What the compiler would save without a planner, as a rung.

    The compiler runs it in an order of its own, so the simulated peak is only a guess. ``at_least``: bytes that are
    alive when backward begins, whatever the order.
    """

    rung: Rung
    at_least: int

    @property
    def peak(self) -> int:
        """The simulated peak, but at least what is certain, in bytes."""
        return max(self.rung.peak, self.at_least)


@dataclass(frozen=True)
class Ladder:
    """Rungs from the fastest (the ceiling) to the one with the lowest peak (the floor), and the default, if known."""

    rungs: tuple[Rung, ...]
    default: Default | None = None

    @property
    def ceiling(self) -> int:
        """The simulated peak of the fastest rung, in bytes; that of the default if it is lower."""
        fastest = self.rungs[0].peak
        return fastest if self.default is None else max(self.floor, min(fastest, self.default.peak))

    @property
    def floor(self) -> int:
        """The lowest simulated peak, in bytes."""
        return self.rungs[-1].peak

    @property
    def unlimited(self) -> Rung:
        """The rung to take where nothing limits."""
        return self.default.rung if self.default else self.rungs[0]

    def limit(self, fraction: float) -> int:
        """The bytes that a fraction stands for: floor + fraction x (ceiling - floor)."""
        return self.floor + int(fraction * (self.ceiling - self.floor))

    def fastest_under(self, nbytes: int) -> Rung | None:
        """The fastest rung whose simulated peak is at most ``nbytes``; None if there is none."""
        return next((rung for rung in self.rungs if rung.peak <= nbytes), None)


def build(problem: Problem, solver: str = "ladder", default: Default | None = None) -> Ladder:
    """Solve, simulate, and keep the plans that no other plan beats; ``default`` is put beside them.

    Plans that recompute more than ``problem.max_recompute`` forwards are left out, unless there are no others.

    Raises:
        ContradictoryMarks: no plan exists.
        PlanError: a solver made a plan that runs an op without its inputs.
    """
    with without_collection():
        rungs = [Rung(plan, problem.timeline(plan)) for plan in dict.fromkeys(SOLVERS[solver](problem))]
    # Slightly above the limit: rounding must not exclude a plan that recomputes exactly one forward.
    allowed = problem.max_recompute * problem.forward_seconds * (1 + 1e-9)
    within = [rung for rung in rungs if rung.timeline.recompute_seconds <= allowed]
    kept = pareto(within or [min(rungs, key=lambda r: r.timeline.recompute_seconds)])
    return Ladder(tuple(_with_realized(rung) for rung in kept), default)


def _with_realized(rung: Rung) -> Rung:
    """``rung`` with the copies in its plan that the simulator takes for realized, so that ``emit`` realizes them."""
    return Rung(dataclasses.replace(rung.plan, realized=rung.timeline.realized), rung.timeline)


class Candidate(Protocol):
    """A rung with the peak to go by, in bytes. A ``Rung`` is one itself, with the simulated peak."""

    @property
    def rung(self) -> Rung: ...
    @property
    def peak(self) -> int: ...


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True)
class Selection(Generic[C]):
    """The candidate that a budget selects.

    ``limit``: the budget in bytes, None for no limit; ``fits``: False if the budget is in bytes and no candidate stays
    under it; the candidate is then the lowest. ``floor``, ``ceiling``: the lowest peak and that of the fastest rung, in
    bytes; as reported for the rungs that were asked, and simulated for others.
    """

    candidate: C
    limit: int | None
    floor: int
    ceiling: int
    fits: bool = True


def select(ladder: Ladder, budget: Budget, device: str, ask: Callable[[Rung], C]) -> Selection[C]:
    """The fastest candidate within ``budget`` on a device: "cpu", or a GPU's name.

    A fraction is a part of the way from floor to ceiling. If no candidate is within it, the simulated floor is too low;
    it is then a part of the way from the lowest peak that was found. ``ask`` returns the candidate of a rung; it is
    called once for each rung that is asked.

    Raises:
        ValueError: the budget is "auto", which the caller has to resolve to bytes.
    """
    if budget.kind is BudgetKind.AUTO:
        raise ValueError("the budget auto has no bytes yet: ask the device what is free first")
    if budget.is_unlimited:
        chosen = ask(ladder.unlimited)
        return Selection(chosen, None, min(ladder.floor, chosen.peak), chosen.peak)
    search = _Search(ladder, ask)
    if budget.kind is BudgetKind.BYTES:
        limit, allowed = budget.nbytes, peak_allowed(budget.nbytes, device)
        chosen = search.fastest(allowed, allowed)
        fits = chosen.peak <= allowed
    else:
        limit, fits = ladder.limit(budget.fraction), True
        chosen = search.fastest(limit, least_budget(limit, device))
        if chosen.peak > least_budget(limit, device):  # the floor is higher than simulated, and the limit with it
            limit = search.floor + int(budget.fraction * max(0, ladder.ceiling - search.floor))
            chosen = search.fastest(limit, least_budget(limit, device))
    return Selection(chosen, limit, search.floor, max(search.ceiling, chosen.peak), fits)


class _Search(Generic[C]):
    """Asks rungs for their peaks. ``asked``: the candidates so far, by the index of the rung."""

    def __init__(self, ladder: Ladder, ask: Callable[[Rung], C]) -> None:
        self.ladder, self._ask = ladder, ask
        self.asked: dict[int, C] = {}
        self.default: C | None = None
        self.nbytes = self.accepted = 0

    def fastest(self, nbytes: int, accepted: int) -> C:
        """The fastest candidate found to take at most ``nbytes``; the lowest if none is found.

        ``accepted``: bytes, at least ``nbytes``, up to which a peak is good enough.
        """
        self.nbytes, self.accepted = nbytes, accepted
        if (found := self._default_at_once()) is not None:
            return found
        floor = len(self.ladder.rungs) - 1
        while len(self.asked) < _MOST_PROBES and (following := self._faster()) is not None:
            self.ask(following)
        if not self._fitting() and floor not in self.asked:
            self.ask(floor)
        while not self._fitting() and len(self.asked) < _MOST_IN_DOUBT and (following := self._lower()) is not None:
            self.ask(following)
        fitting = self._fitting()
        best = self.asked[fitting[0]] if fitting else self.lowest
        return self._against_default(best)

    def ask(self, index: int) -> None:
        self.asked[index] = self._ask(self.ladder.rungs[index])

    @property
    def lowest(self) -> C:
        """The asked rung with the lowest peak; the fastest of them."""
        return self.asked[min(self.asked, key=lambda i: (self.asked[i].peak, i))]

    def _fitting(self) -> list[int]:
        """The asked rungs that fit, fastest first."""
        return sorted(i for i, found in self.asked.items() if found.peak <= self.accepted)

    def _expected(self, index: int) -> int:
        """The peak of a rung, if its simulated peak is as wrong as that of the nearest rung that was asked."""
        peak = self.ladder.rungs[index].peak
        if not self.asked:
            return peak
        nearest = min(self.asked, key=lambda i: (abs(self.ladder.rungs[i].peak - peak), -i))
        return peak * self.asked[nearest].peak // max(1, self.ladder.rungs[nearest].peak)

    def _faster(self) -> int | None:
        """The fastest rung that is expected to fit; None if it is hardly faster than one that is known to fit."""
        fitting = self._fitting()
        stop = fitting[0] if fitting else len(self.ladder.rungs)
        found = next((i for i in range(stop) if i not in self.asked and self._expected(i) <= self.nbytes), None)
        if found is None or not fitting:
            return found
        seconds = [self.ladder.rungs[i].seconds for i in (found, stop)]
        return found if seconds[0] <= _WORTH_A_PROBE * seconds[1] else None

    def _lower(self) -> int | None:
        """Among the rungs that may be lower than all that were asked, the one amid the largest gap between these."""
        known = sorted(self.asked)
        first = next(i for i, rung in enumerate(self.ladder.rungs) if rung.peak < self.lowest.peak or i == known[-1])
        ends = [first - 1, *(i for i in known if i >= first)]
        gaps = [(later - earlier, earlier) for earlier, later in itertools.pairwise(ends)]
        width, start = max(gaps, default=(0, 0))
        return start + (width + 1) // 2 if width > 1 else None

    def _default_at_once(self) -> C | None:
        """The default, if it fits as expected and no rung is much faster: then no other rung is asked."""
        default = self.ladder.default
        if default is None or default.peak > self.nbytes:
            return None
        if self.default is None:
            self.default = self._ask(default.rung)
        much_faster = self.ladder.rungs[0].seconds < _WORTH_A_PROBE * default.rung.seconds
        return None if much_faster or self.default.peak > self.accepted else self.default

    def _against_default(self, best: C) -> C:
        """``best``, or the default if that takes less, or if it is faster and fits."""
        default = self.ladder.default
        if default is None:
            return best
        is_faster = default.rung.seconds < best.rung.seconds and default.at_least <= self.accepted
        if self.default is None:
            if best.peak <= default.at_least and not is_faster:
                return best
            self.default = self._ask(default.rung)
        takes_less = self.default.peak < best.peak
        return self.default if takes_less or (is_faster and self.default.peak <= self.accepted) else best

    @property
    def floor(self) -> int:
        """The lowest of all peaks that are known, in bytes; the simulated floor, if it was not asked."""
        known = [found.peak for found in (*self.asked.values(), self.default) if found is not None]
        return min(known if len(self.ladder.rungs) - 1 in self.asked else [*known, self.ladder.floor])

    @property
    def ceiling(self) -> int:
        """The default's peak, if it was asked; else the ladder's ceiling, in bytes."""
        if self.default is None or self.default.peak == FITS_NO_BUDGET:
            return self.ladder.ceiling
        return self.default.peak


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Switch Python's cycle collector off.

    Solvers create millions of small objects and no cycles; walking them would take half of the planning time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
