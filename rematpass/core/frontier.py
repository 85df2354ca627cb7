"""The ladder: every plan worth having between the floor and the ceiling. A budget selects one of them.

The planner computes the same ladder for every budget, simulates each plan, and drops a plan that another one beats in
both seconds and peak. The remaining rungs fall in peak as they rise in seconds, so a lower budget never takes more
memory. The judge (``verify``) checks only the rungs that are selected: one or a few of dozens.

``select`` goes by the peaks that its caller reports, which can differ from the simulated ones: under Inductor, a dry
run gives the exact peak of a rung, and takes seconds. One to three dry runs usually settle a budget, and at most six.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rematpass.budget import Budget, BudgetKind
from rematpass.core.hardware import device_facts
from rematpass.core.solve.ladder import SOLVERS, Rung
from rematpass.core.solve.local_search.refine import pareto
from rematpass.core.solve.problem import Problem

_MOST_PROBES = 4  # candidates asked for on the way down, before the floor
_WORTH_A_PROBE = 0.99  # a faster candidate is asked for if it takes at most this part of the seconds of the one at hand


def peak_allowed(budget: int, device: str) -> int:
    """The highest planned peak that fits a budget on a device ("cpu", or a GPU's name); both in bytes."""
    parts = device_facts(device).budget_parts
    return budget * parts // (parts + 1)


def least_budget(peak: int, device: str) -> int:
    """The lowest budget that a planned peak fits on a device ("cpu", or a GPU's name); both in bytes."""
    parts = device_facts(device).budget_parts
    return -(-peak * (parts + 1) // parts)


@dataclass(frozen=True)
class Ladder:
    """Rungs from the fastest (the ceiling) to the one with the lowest peak (the floor)."""

    rungs: tuple[Rung, ...]

    @property
    def ceiling(self) -> int:
        """The simulated peak of the fastest rung, in bytes."""
        return self.rungs[0].peak

    @property
    def floor(self) -> int:
        """The lowest simulated peak, in bytes."""
        return self.rungs[-1].peak

    def limit(self, fraction: float) -> int:
        """The bytes that a fraction stands for: floor + fraction x (ceiling - floor)."""
        return self.floor + int(fraction * (self.ceiling - self.floor))

    def fastest_under(self, nbytes: int) -> Rung | None:
        """The fastest rung whose simulated peak is at most ``nbytes``; None if there is none."""
        return next((rung for rung in self.rungs if rung.peak <= nbytes), None)


def build(problem: Problem, solver: str = "ladder") -> Ladder:
    """Solve, simulate, and keep the plans that no other plan beats.

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
    return Ladder(tuple(_with_realized(rung) for rung in kept))


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
    under it; the candidate is then the floor's.
    """

    candidate: C
    limit: int | None
    fits: bool = True


def select(ladder: Ladder, budget: Budget, device: str, ask: Callable[[Rung], C]) -> Selection[C]:
    """The fastest candidate within ``budget`` on a device: "cpu", or a GPU's name.

    A fraction is a part of the way from floor to ceiling, so the floor is always within it. ``ask`` returns the
    candidate of a rung; it is called for few rungs, but possibly twice for the same one, so it should memoize.

    Raises:
        ValueError: the budget is "auto", which the caller has to resolve to bytes.
    """
    if budget.kind is BudgetKind.AUTO:
        raise ValueError("the budget auto has no bytes yet: ask the device what is free first")
    if budget.is_unlimited:
        return Selection(ask(ladder.rungs[0]), None)
    if budget.kind is BudgetKind.FRACTION:
        limit = ladder.limit(budget.fraction)
        found = _fastest_within(ladder, limit, least_budget(limit, device), ask)
        return Selection(found or ask(ladder.rungs[-1]), limit)
    allowed = peak_allowed(budget.nbytes, device)
    found = _fastest_within(ladder, allowed, allowed, ask)
    return Selection(found or ask(ladder.rungs[-1]), budget.nbytes, fits=found is not None)


def _fastest_within(ladder: Ladder, nbytes: int, accepted: int, ask: Callable[[Rung], C]) -> C | None:
    """The fastest candidate under ``nbytes``; None if not even the floor's peak is ``accepted``.

    The simulated peaks choose the first rung. If its peak is too high, the next one is the fastest rung that would fit
    if its simulated peak were wrong by the same factor. ``accepted``: bytes, at least ``nbytes``, up to which a peak
    does not lead further down.
    """
    target, too_high = nbytes, nbytes
    for asked in range(_MOST_PROBES):
        rung = ladder.fastest_under(target)
        if rung is None:
            break
        candidate = ask(rung)
        if candidate.peak <= accepted:
            return _faster_within(ladder, candidate, too_high, accepted, ask) if asked else candidate
        too_high = rung.peak
        target = min(target * nbytes // candidate.peak, rung.peak - 1)
    floor = ask(ladder.rungs[-1])
    return floor if floor.peak <= accepted else None


def _faster_within(ladder: Ladder, fits: C, too_high: int, accepted: int, ask: Callable[[Rung], C]) -> C:
    """The fastest rung below ``too_high`` that would fit if its simulated peak were as wrong as that of ``fits``.

    ``fits`` itself if there is none, if it is hardly faster, or if its peak is above ``accepted`` after all.
    """
    rung = ladder.fastest_under(min(accepted * fits.rung.peak // fits.peak, too_high - 1))
    if rung is None or rung.seconds > _WORTH_A_PROBE * fits.rung.seconds:
        return fits
    candidate = ask(rung)
    return candidate if candidate.peak <= accepted else fits


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
