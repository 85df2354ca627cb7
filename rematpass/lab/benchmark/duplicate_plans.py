"""Strategies in progress that have the same plan: the first one is measured, and its duplicates wait for it.

A model of several graphs may share one plan with another strategy but not all of them, and the first strategy may fail.
A duplicate that waited in vain starts again, and then does not wait for others.
"""

from __future__ import annotations

import threading

from rematpass.report.measurement import Measurement, Strategy


class DuplicatePlans:
    """Which strategy in progress had which plan first, by the plan's hash. Used by several threads."""

    def __init__(self) -> None:
        self._first: dict[str, Strategy] = {}
        self._waiting: dict[Strategy, Measurement] = {}
        self._begun_again: set[Strategy] = set()
        self._lock = threading.Lock()

    def is_of_another(self, plan: str, strategy: Strategy) -> bool:
        """Whether another strategy in progress had this plan first."""
        with self._lock:
            return self._first.setdefault(plan, strategy) != strategy and strategy not in self._begun_again

    def wait(self, strategy: Strategy, found: Measurement) -> None:
        """Keep ``found``, which contains only a plan, until the first strategy has ended."""
        with self._lock:
            self._waiting[strategy] = found

    def end(self, strategy: Strategy) -> None:
        """The strategy is no longer in progress."""
        with self._lock:
            self._first = {plan: first for plan, first in self._first.items() if first != strategy}

    def ready(self) -> dict[Strategy, Measurement]:
        """Remove and return the duplicates whose first strategy has ended."""
        with self._lock:
            ready = [s for s, found in self._waiting.items() if found.plan_hash not in self._first]
            return {strategy: self._waiting.pop(strategy) for strategy in ready}

    def begin_again(self, strategy: Strategy) -> None:
        """The strategy starts again and does not wait for others."""
        with self._lock:
            self._begun_again.add(strategy)
