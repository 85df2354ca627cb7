"""What a session is to measure of a model, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rematpass.core.frontier import least_budget
from rematpass.report.measurement import MEASURED, Measurement, Strategy, unique


@dataclass(frozen=True)
class Wanted:
    """What to measure. ``like_peers``: remat also at the bytes of each peer; ``between``: and at so many byte budgets
    spread evenly from floor to ceiling, both included.
    """

    peers: Sequence[Strategy] = ()
    budgets: Sequence[Strategy] = ()
    like_peers: bool = False
    between: int = 0

    @property
    def given(self) -> list[Strategy]:
        """Those that are known before anything is measured."""
        return unique([*self.peers, *self.budgets])

    def derived(self, rows: Sequence[Measurement]) -> list[Strategy]:
        """Those that follow from what was measured: ``rows``, of one model."""
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
    """How to measure. ``rounds`` of step times, 0 for none; ``timeout`` in seconds for each strategy's bytes.

    ``until``: a time on ``time.monotonic``'s clock after which nothing more is begun, and what is not done is given
    up and left for another session. ``retry``: measure again what failed; ``retime``: take all step times again.
    ``alive``: how many workers may wait at once, each with its model. ``per_block``: compile each block of the model by
    itself.
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
