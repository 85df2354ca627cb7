"""What a session measures of a model, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rematpass.core.frontier import least_budget
from rematpass.report.measurement import MEASURED, Measurement, Strategy, unique

INDUCTOR = Strategy("inductor")


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    ``like_peers``: measure remat also at the measured peak of each peer. ``between``: measure remat also at this many
    byte budgets, spread evenly from floor to ceiling, both included.
    """

    peers: Sequence[Strategy] = ()
    budgets: Sequence[Strategy] = ()
    like_peers: bool = False
    between: int = 0

    @property
    def given(self) -> list[Strategy]:
        """The strategies that are known before anything is measured."""
        return unique([*self.peers, *self.budgets])

    def derived(self, rows: Sequence[Measurement]) -> list[Strategy]:
        """The strategies that follow from ``rows``, the measurements of one model."""
        found = []
        peaks = {row.strategy: row.peak for row in rows if row.status == MEASURED}
        for peer in self.peers if self.like_peers else ():
            if (peak := peaks.get(peer.name)) is not None:
                found.append(Strategy("remat", budget=f"{peak}B", like=peer.name))
        planned = [row for row in rows if row.floor is not None and row.ceiling is not None]
        if self.between and planned:
            low, high = (
                least_budget(*max((getattr(r, end), r.device) for r in planned)) for end in ("floor", "ceiling")
            )
            steps = max(1, self.between - 1)
            found += [Strategy("remat", budget=f"{low + (high - low) * i // steps}B") for i in range(self.between)]
        return unique(found)


@dataclass(frozen=True)
class Settings:
    """How to measure.

    ``rounds``: of step times, 0 for none. ``jobs``: strategies that are compiled at the same time. ``timeout``: seconds
    for each strategy's bytes, and for each timed step. ``until``: a time on ``time.monotonic``'s clock after which
    nothing starts; what is unfinished then is left for another session. ``retry``: measure failed strategies again.
    ``retime``: take all step times again. ``alive``: the most workers that wait at once, each with its model.
    ``per_block``: compile each block of the model by itself.
    """

    device: str = "cpu"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    per_block: bool = False
    rounds: int = 5
    jobs: int = 1
    timeout: float | None = None
    until: float = math.inf
    retry: bool = False
    retime: bool = False
    alive: int = 16
