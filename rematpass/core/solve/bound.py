"""A proven lower bound on the seconds of a step, for every peak: how much a better plan could still gain.

**The bound.** Put a price ``p_t >= 0`` (seconds per byte) on each moment t of ``unavoidable.py``. A plan with a peak of
at most ``B`` bytes then takes at least ::

        L(p) - B * sum_t p_t,     L(p) = base + sum_t p_t unavoidable_t + mincut(run[op], keep[v] + prices of its life)

seconds. Its bytes cost at most ``B * sum_t p_t``, since it never has more than B; and its seconds and bytes together
cost at least ``L(p)``, since no plan costs less than the minimum cut under these prices (``Relaxation.cut`` in
``relaxation.py``). ``base`` is what every plan spends: each op of forward and backward once. One vector of prices thus
gives a *line* over all peaks; the bound is the highest line, convex and falling::

        seconds  ╲
                  ╲             ╲ ─   the bound: at each peak the highest line (``Bound.seconds``)
               .   ╲            .     the same lines where another one is higher; they are valid too
                 .  ╲
                   . ╲─────────
                      .      peak

**The prices.** The best prices for one peak solve the dual of a linear program: mix cuts, with shares that add up to
one, so that no moment has more than B bytes, at the fewest seconds (``MasterProblem``). The program starts with few
cuts and few moments and grows (``MasterProblem.tighten``): the prices of its solution give a new line and a new cut;
moments at which the mix exceeds B are added. A line is computed from a cut and not from the program, so the proof does
not rest on the accuracy of the linear solver.

**What it assumes**: the seconds of the cost model; forward's and backward's own ops in their order, mutations last; ops
of neither side where the plan wants them; the bytes of ``simulate``. Then the bound holds for every plan, however often
a plan drops and recomputes a value. It does not count the bytes that recomputation itself needs, so it is loose near
the floor.

Source: Lagrangian relaxation, with column generation after Dantzig and Wolfe 1960 (doi 10.1287/opre.8.1.101).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rematpass.core.solve.problem import Problem
from rematpass.core.solve.relaxation import MasterProblem, Relaxation
from rematpass.errors import ContradictoryMarks

ASSUMES = "for the cost model's seconds and backward's own ops in their order"


@dataclass(frozen=True)
class Bound:
    """A lower bound on the seconds of a step for every peak.

    ``lines``: (seconds, seconds per byte); no plan of peak B bytes takes less than ``seconds - B * seconds_per_byte``.
    ``floor``: no plan has a peak below it, in bytes.
    """

    lines: tuple[tuple[float, float], ...]
    floor: int

    def seconds(self, peak: float) -> float:
        """The fewest seconds of any plan with a peak of at most ``peak`` bytes; infinite below ``floor``."""
        if peak < self.floor:
            return math.inf
        return max((start - peak * slope if slope else start for start, slope in self.lines), default=0.0)

    def gap(self, seconds: float, peak: float) -> float:
        """By which share of the bound ``seconds`` exceeds the bound at ``peak`` bytes; at least 0."""
        least = self.seconds(peak)
        return max(0.0, seconds / least - 1) if least > 0 else 0.0

    def curve(self, low: float, high: float) -> tuple[tuple[int, float], ...]:
        """The corners (peak, seconds) of the bound from peak ``low``, or the floor, to ``high``, by rising peak."""
        low = max(low, self.floor)
        if not self.lines or low > high:
            return ()
        corners = {math.ceil(low), math.floor(high)}
        envelope = _upper_envelope(self.lines)
        for (start, slope), (lower, flatter) in itertools.pairwise(envelope):
            corner = (start - lower) / (slope - flatter)
            if low < corner < high:
                corners.add(round(corner))
        return tuple((peak, self.seconds(peak)) for peak in sorted(corners))


def lower_bound(problem: Problem, peaks: Iterable[float]) -> Bound:
    """The bound, tightened at ``peaks`` (bytes) and valid at every other peak too.

    It is tightened until ``problem.deadline`` and returned as it is by then. Without lines if the user's marks allow no
    plan at all.
    """
    try:
        relaxation = Relaxation(problem)
        master = MasterProblem(relaxation)
    except ContradictoryMarks:
        return Bound((), 0)
    for peak in sorted(peaks, reverse=True):
        if peak >= relaxation.floor:
            master.tighten(peak)
    return Bound(tuple(_upper_envelope(relaxation.lines)), relaxation.floor)


def least_seconds(problem: Problem, peak: int | None) -> float:
    """The fewest seconds of any plan with a peak of at most ``peak`` bytes; None: of any plan at all."""
    if peak is None:
        return lower_bound(problem, ()).seconds(math.inf)
    return lower_bound(problem, (peak,)).seconds(peak)


def _upper_envelope(lines: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lines that are highest at some peak, the steepest first."""
    highest: dict[float, float] = {}
    for start, slope in lines:
        highest[slope] = max(start, highest.get(slope, -math.inf))
    found: list[tuple[float, float]] = []
    for slope, start in sorted(highest.items(), reverse=True):
        while found and start >= found[-1][0]:
            found.pop()  # flatter, and higher at every peak
        while len(found) > 1 and _crossing(found[-2], (start, slope)) <= _crossing(*found[-2:]):
            found.pop()
        found.append((start, slope))
    return found


def _crossing(steep: tuple[float, float], flat: tuple[float, float]) -> float:
    """The peak at which two lines cross."""
    return (steep[0] - flat[0]) / (steep[1] - flat[1])
