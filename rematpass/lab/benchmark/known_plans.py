"""Plans that a store holds measurements of, so that an equal plan is not measured again."""

from __future__ import annotations

from dataclasses import replace

from rematpass.lab.benchmark.spec import Settings
from rematpass.lab.benchmark.store import Store
from rematpass.report.measurement import Measurement


def known_plans(store: Store, blank: Measurement, settings: Settings) -> dict[str, Measurement]:
    """Each measured plan by its hash, as far as it counts for the strategy of ``blank``.

    A row of this planner counts if it is another strategy's. A row of an earlier planner counts if the same code turned
    its plan into modules and if it has step times, unless none are asked for. With ``retime`` only this planner counts.
    """
    known: dict[str, Measurement] = {}
    for row in store.rows(blank.model, blank.device, blank.torch):
        is_own = row.strategy == blank.strategy
        if row.source == blank.source:
            is_known = not is_own  # the strategy's own row may be measured again
        else:
            is_timed = row.step_seconds is not None or not settings.rounds
            is_known = row.carrier == blank.carrier and is_timed and not settings.retime
        if is_known and row.peak is not None and row.plan_hash and (is_own or row.plan_hash not in known):
            known[row.plan_hash] = row
    return known


def with_figures_of(known: Measurement, found: Measurement) -> Measurement:
    """``found``, which contains only a plan, as a row that refers to the ``known`` row of the same plan.

    If the known row is of the same strategy and an earlier planner, its figures are carried over.
    """
    if known.strategy != found.strategy:
        return replace(found, same_plan_as=known.strategy)
    return replace(known, source=found.source, floor=found.floor, ceiling=found.ceiling)
