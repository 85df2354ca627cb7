"""The ladder: every plan worth having between the floor and the ceiling; a budget only selects.

The planner computes the same ladder whatever the budget, each rung simulated, and throws out a plan that another one
beats in both seconds and peak. So the rungs fall in peak as they rise in seconds, and less budget can never mean more
memory. The judge (``verify.py``) sees a rung when it is about to be carried out: of dozens, that is one or a few.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass

from rematpass.core.solve.ladder import SOLVERS, Rung
from rematpass.core.solve.local_search.refine import pareto
from rematpass.core.solve.problem import Problem


def peak_allowed(budget: int, device: str) -> int:
    """The highest planned peak that fits a budget of ``budget`` bytes on a device: "cpu", or a GPU's name."""
    parts = _parts(device)
    return budget * parts // (parts + 1)


def least_budget(peak: int, device: str) -> int:
    """The lowest budget in bytes that a planned peak of ``peak`` fits on a device: "cpu", or a GPU's name."""
    parts = _parts(device)
    return -(-peak * (parts + 1) // parts)


def _parts(device: str) -> int:
    """A planned peak and one part more of so many must fit a budget in bytes.

    A GPU's allocator counts more than it is asked for where it does not split a block; a CPU's counts a few bytes.
    """
    return 1000 if device.startswith("cpu") else 100


@dataclass(frozen=True)
class Ladder:
    """Rungs from the fastest (the ceiling) to the one with the lowest peak (the floor)."""

    rungs: tuple[Rung, ...]

    @property
    def ceiling(self) -> int:
        return self.rungs[0].peak

    @property
    def floor(self) -> int:
        return self.rungs[-1].peak

    def limit(self, fraction: float) -> int:
        """The bytes that a fraction stands for: floor + fraction x (ceiling - floor)."""
        return self.floor + int(fraction * (self.ceiling - self.floor))

    def fastest_under(self, nbytes: int) -> Rung | None:
        """The fastest plan whose peak is at most ``nbytes``; None when there is none."""
        return next((rung for rung in self.rungs if rung.peak <= nbytes), None)


def build(problem: Problem, solver: str = "ladder") -> Ladder:
    """Solve, simulate, and keep what nothing else beats.

    Plans that recompute more than ``problem.max_recompute`` forwards are left out, unless there are no others.

    Raises:
        ContradictoryMarks: no plan exists.
        PlanError: a solver made a plan that runs an op without its inputs.
    """
    with without_collection():
        rungs = [Rung(plan, problem.timeline(plan)) for plan in dict.fromkeys(SOLVERS[solver](problem))]
    # A hair above the limit, so that recomputing exactly one forward is not lost to the rounding of a sum.
    allowed = problem.max_recompute * problem.forward_seconds * (1 + 1e-9)
    within = [rung for rung in rungs if rung.timeline.recompute_seconds <= allowed]
    return Ladder(pareto(within or [min(rungs, key=lambda r: r.timeline.recompute_seconds)]))


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Without Python's cycle collector: solvers make millions of small objects and no cycles, and it would walk them
    all again and again, for half of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
