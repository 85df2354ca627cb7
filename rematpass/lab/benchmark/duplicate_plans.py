"""Strategies under way that come to one plan: the first is measured, and is waited for by the others, its twins.

A model of several graphs may have one plan in common with another strategy and not all; and the first may fail. What
waited in vain is begun again, and then waits for nobody.
"""

from __future__ import annotations

import threading

from rematpass.report.measurement import Measurement, Strategy


class DuplicatePlans:
    """Who came to which plan, by its hash; asked from several threads."""

    def __init__(self) -> None:
        self._first: dict[str, Strategy] = {}
        self._waiting: dict[Strategy, Measurement] = {}
        self._begun_again: set[Strategy] = set()
        self._lock = threading.Lock()

    def is_of_another(self, plan: str, strategy: Strategy) -> bool:
        """Whether another strategy under way came to this plan before."""
        with self._lock:
            return self._first.setdefault(plan, strategy) != strategy and strategy not in self._begun_again

    def wait(self, strategy: Strategy, found: Measurement) -> None:
        """Keep what was found of a strategy, its plan, until the first one has ended."""
        with self._lock:
            self._waiting[strategy] = found

    def end(self, strategy: Strategy) -> None:
        """It is under way no more."""
        with self._lock:
            self._first = {plan: first for plan, first in self._first.items() if first != strategy}

    def ready(self) -> dict[Strategy, Measurement]:
        """Those that need not wait any longer, once."""
        with self._lock:
            ready = [s for s, found in self._waiting.items() if found.plan_hash not in self._first]
            return {strategy: self._waiting.pop(strategy) for strategy in ready}

    def begin_again(self, strategy: Strategy) -> None:
        with self._lock:
            self._begun_again.add(strategy)
