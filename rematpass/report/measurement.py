"""What can be measured side by side, by name, and what one measurement found. Both are plain data: JSON in, JSON out.

A strategy is one way to train a model::

    eager                  no compilation
    eager+checkpoint       the same, every block a torch.utils.checkpoint region
    inductor               torch.compile as it comes
    inductor+checkpoint    the same, every block checkpointed
    inductor@0.2           torch.compile with torch._functorch.config.activation_memory_budget = 0.2
    remat@0.5              this package, at a fraction of the way from floor to ceiling
    remat@64MiB            this package, under a peak in bytes
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rematpass.config import BudgetKind, Config, nearest
from rematpass.errors import ConfigError, MeasureError

RUNNERS = ("eager", "inductor", "remat")
MEASURED, INFEASIBLE, FAILED = "measured", "infeasible", "failed"
PER_BLOCK = ", per block"  # ends the name of a model whose blocks are compiled one by one


@dataclass(frozen=True)
class Strategy:
    """One way to train. ``budget`` is torch's for Inductor and ours for remat; empty where there is none.

    ``like``: the peer whose measured peak the budget is; it names the row and does not make another strategy.
    """

    runner: str
    checkpoint: bool = False
    budget: str = ""
    like: str = field(default="", compare=False)

    @classmethod
    def parse(cls, name: str) -> Strategy:
        """The strategy that a text names, in the forms that the module lists.

        Raises:
            MeasureError: none of them, with what is accepted.
        """
        how, at, budget = name.strip().partition("@")
        runner, plus, suffix = how.partition("+")
        strategy = cls(runner, checkpoint=bool(plus), budget=budget)
        if runner not in RUNNERS or suffix not in ("", "checkpoint") or bool(plus) != bool(suffix):
            meant = nearest(how, ("eager", "eager+checkpoint", "inductor", "inductor+checkpoint", "remat"))
            hint = f"; did you mean {meant}?" if meant else ""
            raise MeasureError(
                f"{name!r} is no strategy{hint} There are eager, eager+checkpoint, inductor, inductor+checkpoint, "
                "inductor@0.5 and remat@BUDGET"
            )
        if bool(budget) != bool(at) or (runner == "eager" and budget) or (runner == "remat" and not budget):
            raise MeasureError(
                f"{name!r}: inductor may have a budget, as in inductor@0.5, remat has to, and eager none"
            )
        if budget:
            _check_budget(strategy, name)
        return strategy

    @property
    def name(self) -> str:
        return self.runner + ("+checkpoint" if self.checkpoint else "") + (f"@{self.budget}" if self.budget else "")

    @property
    def is_peer(self) -> bool:
        return self.runner != "remat"

    @property
    def fraction(self) -> float | None:
        """The budget as a fraction, 1.0 for Inductor without one; None for bytes, and for eager."""
        if self.runner == "eager":
            return None
        if self.runner == "inductor":
            return float(self.budget or 1)
        budget = Config.read({"memory_budget": self.budget}, environ={}).memory_budget
        return budget.fraction if budget.kind is BudgetKind.FRACTION else None

    @property
    def nbytes(self) -> int | None:
        """The budget in bytes, where it is given in bytes."""
        if self.runner != "remat":
            return None
        budget = Config.read({"memory_budget": self.budget}, environ={}).memory_budget
        return budget.nbytes if budget.kind is BudgetKind.BYTES else None


def _check_budget(strategy: Strategy, name: str) -> None:
    if strategy.runner == "remat":
        try:
            Config.read({"memory_budget": strategy.budget}, environ={})
        except ConfigError as error:
            raise MeasureError(f"{name!r}: {str(error).removeprefix('option ')}") from error
        return
    try:
        within = 0 <= float(strategy.budget) <= 1
    except ValueError:
        within = False
    if not within:
        raise MeasureError(f"{name!r}: torch's activation_memory_budget is a number from 0 to 1")


@dataclass(frozen=True)
class Measurement:
    """What one strategy took on one model. Bytes and FLOPs are whole numbers of one training step; None: not measured.

    ``device``: the device with its name; ``torch``: its version; ``source``: which code planned and ``carrier``: which
    carried the plan out, of remat alone.
    ``status``: measured, infeasible (a byte budget below ``floor``) or failed, with ``error`` in one line.
    ``planned_peak``, ``floor``, ``ceiling``: the plan's, the largest of all graphs; ``drops_outputs``: it is made for
    callers who drop forward's outputs before backward (REMAT_HOLD_OUTPUTS=0). ``saved``: alive when backward starts.
    ``peak_other``: the highest point of what is no parameter gradient. ``eager_flops``: of eager's step.
    ``gradient_error``: the largest difference from ``gradient_reference``'s gradients. ``step_ratio``: lower quartile,
    median and upper quartile of step seconds over Inductor's in the same round. ``same_plan_as``: the strategy that
    had this plan first and was measured, so that this one was not.
    """

    model: str
    strategy: str
    device: str
    torch: str
    source: str = ""
    carrier: str = ""
    status: str = MEASURED
    error: str = ""
    budget_nbytes: int | None = None
    planned_peak: int | None = None
    floor: int | None = None
    ceiling: int | None = None
    drops_outputs: bool = False
    plan_hash: str = ""
    fallback: str = ""
    same_plan_as: str = ""
    peak: int | None = None
    peak_other: int | None = None
    gradients: int | None = None
    saved: int | None = None
    reserved: int | None = None
    step_flops: int | None = None
    eager_flops: int | None = None
    forward_flops: int | None = None
    gradient_error: float | None = None
    gradient_reference: str = ""
    compile_seconds: float | None = None
    planning_seconds: float | None = None
    step_seconds: float | None = None
    step_ratio: tuple[float, float, float] | None = None
    rounds: int = 0
    date: str = ""

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What makes two measurements the same one."""
        return self.model, self.strategy, self.device, self.torch, self.source

    @property
    def peak_less_gradients(self) -> int | None:
        return None if self.peak is None or self.gradients is None else self.peak - self.gradients

    @property
    def recomputed_share(self) -> float | None:
        """FLOPs beyond eager's step, as a share of eager's forward."""
        if self.step_flops is None or self.eager_flops is None or not self.forward_flops:
            return None
        return (self.step_flops - self.eager_flops) / self.forward_flops

    def to_json(self) -> str:
        """One line; what was not measured is left out."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and v != ""}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """The inverse of ``to_json``; fields that are not known are passed over.

        Raises:
            MeasureError: not a JSON object with a model, a strategy, a device and a torch.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            known = {f.name for f in dataclasses.fields(cls)}
            kept = {k: v for k, v in fields.items() if k in known}
            if kept.get("step_ratio") is not None:
                kept["step_ratio"] = tuple(kept["step_ratio"])
            return cls(**kept)
        except (ValueError, TypeError, AttributeError) as error:
            raise MeasureError(f"not a measurement: {text[:80]!r} ({error})") from error


def parse_list(texts: str, runner: str = "") -> list[Strategy]:
    """Strategies from a list with commas; with ``runner``, the items are its budgets alone. "none" is the empty list.

    Raises:
        MeasureError: one of them is none.
    """
    if texts.strip() == "none":
        return []
    items = [item.strip() for item in texts.split(",")]
    return unique(Strategy.parse(f"{runner}@{item}" if runner else item) for item in items)


def unique(strategies: Iterable[Strategy]) -> list[Strategy]:
    """The strategies in their order, each once."""
    return list(dict.fromkeys(strategies))


def resolve(rows: Iterable[Measurement], known: Iterable[Measurement] = ()) -> list[Measurement]:
    """The rows, where those that have the plan of another one show its figures, under their own name and budget.

    The other one is looked for in ``known`` as well. A plan is the same one whichever planner made it.
    """
    rows = list(rows)
    firsts = {(r.model, r.strategy, r.device, r.torch, r.plan_hash): r for r in (*known, *rows)}
    resolved = []
    for row in rows:
        first = firsts.get((row.model, row.same_plan_as, row.device, row.torch, row.plan_hash))
        resolved.append(row if first is None or not row.same_plan_as else _with_figures_of(first, row))
    return resolved


def _with_figures_of(first: Measurement, row: Measurement) -> Measurement:
    own = ("strategy", "budget_nbytes", "drops_outputs", "planning_seconds", "same_plan_as", "date")
    return dataclasses.replace(first, compile_seconds=None, **{name: getattr(row, name) for name in own})
