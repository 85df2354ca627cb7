"""Strategies by name, and the result of one measurement. Both are plain data that is stored as JSON.

A strategy is one way to train a model::

    eager                  no compilation
    eager+checkpoint       the same, with every block a torch.utils.checkpoint region
    inductor               torch.compile with its defaults
    inductor+checkpoint    the same, with every block checkpointed
    inductor@0.2           torch.compile with torch._functorch.config.activation_memory_budget = 0.2
    remat@0.5              rematpass, at a fraction of the way from floor to ceiling
    remat@64MiB            rematpass, under a peak in bytes
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rematpass.budget import Budget, BudgetKind
from rematpass.config import Config, nearest
from rematpass.errors import ConfigError, MeasureError

RUNNERS = ("eager", "inductor", "remat")
MEASURED, INFEASIBLE, FAILED = "measured", "infeasible", "failed"
PER_BLOCK = ", per block"  # suffix of the name of a model whose blocks are compiled one by one


@dataclass(frozen=True)
class Strategy:
    """One way to train. ``budget``: torch's for Inductor, rematpass's for remat; empty for none.

    ``like``: the peer whose measured peak is the budget; it names the row and does not affect equality.
    """

    runner: str
    checkpoint: bool = False
    budget: str = ""
    like: str = field(default="", compare=False)

    @classmethod
    def parse(cls, name: str) -> Strategy:
        """Parse the name of a strategy, in one of the forms that the module's docstring lists.

        Raises:
            MeasureError: the name has no such form, or its budget is not accepted.
        """
        how, at, budget = name.strip().partition("@")
        runner, plus, suffix = how.partition("+")
        strategy = cls(runner, checkpoint=bool(plus), budget=budget)
        if runner not in RUNNERS or suffix not in ("", "checkpoint") or bool(plus) != bool(suffix):
            meant = nearest(how, ("eager", "eager+checkpoint", "inductor", "inductor+checkpoint", "remat"))
            hint = f"; did you mean {meant}? " if meant else ". "
            raise MeasureError(
                f"{name!r} is no strategy{hint}Valid are eager, eager+checkpoint, inductor, inductor+checkpoint, "
                "inductor@0.5 and remat@BUDGET"
            )
        if bool(budget) != bool(at) or (runner == "eager" and budget) or (runner == "remat" and not budget):
            raise MeasureError(
                f"{name!r}: inductor may have a budget, as in inductor@0.5; remat must have one; eager has none"
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
        """The budget as a fraction, 1.0 for Inductor without one; None for bytes and for eager."""
        if self.runner == "eager":
            return None
        if self.runner == "inductor":
            return float(self.budget or 1)
        budget = self.memory_budget
        return budget.fraction if budget.kind is BudgetKind.FRACTION else None

    @property
    def nbytes(self) -> int | None:
        """The budget in bytes, if it is given in bytes."""
        if self.runner != "remat":
            return None
        return self.memory_budget.nbytes if self.memory_budget.kind is BudgetKind.BYTES else None

    @property
    def memory_budget(self) -> Budget:
        """remat's budget. A peer's measured peak, written as in "262154B", may be less than what users may give."""
        if self.budget.endswith("B") and self.budget[:-1].isdecimal():
            return Budget(BudgetKind.BYTES, nbytes=int(self.budget[:-1]))
        return Config.read({"memory_budget": self.budget}, environ={}).memory_budget


def _check_budget(strategy: Strategy, name: str) -> None:
    if strategy.runner == "remat":
        try:
            _ = strategy.memory_budget
        except ConfigError as error:
            raise _refused(name, error) from error
        return
    try:
        within = 0 <= float(strategy.budget) <= 1
    except ValueError:
        within = False
    if not within:
        raise MeasureError(f"{name!r}: torch's activation_memory_budget is a number from 0 to 1")


def _refused(name: str, error: ConfigError) -> MeasureError:
    return MeasureError(f"{name!r}: {str(error).removeprefix('option ')}")


@dataclass(frozen=True)
class Measurement:
    """What one strategy took on one model. Bytes and FLOPs are integers, per training step; None: not measured.

    ``device``: the device and its name; ``torch``: its version; ``source`` and ``carrier``: hashes of the code that
    planned and of the code that carried out the plan, for remat only.
    ``status``: measured, infeasible (a byte budget below ``floor``) or failed; ``error``: the reason, in one line.
    ``planned_peak``, ``floor``, ``ceiling``: the plan's, the largest of all graphs; ``drops_outputs``: the plan is for
    callers that drop forward's outputs before backward (REMAT_HOLD_OUTPUTS=0). ``saved``: alive when backward starts.
    ``peak_other``: the highest sum of everything but parameter gradients. ``eager_flops``: those of an eager step.
    ``gradient_error``: the largest difference to the gradients of ``gradient_reference``. ``step_ratio``: lower
    quartile, median and upper quartile of step seconds divided by Inductor's in the same round. ``same_plan_as``: the
    strategy with the same plan that was measured in place of this one.
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
        """The identity of a measurement: a later one with the same key replaces it."""
        return self.model, self.strategy, self.device, self.torch, self.source

    @property
    def peak_less_gradients(self) -> int | None:
        return None if self.peak is None or self.gradients is None else self.peak - self.gradients

    @property
    def recomputed_share(self) -> float | None:
        """FLOPs beyond those of an eager step, as a share of eager's forward."""
        if self.step_flops is None or self.eager_flops is None or not self.forward_flops:
            return None
        return (self.step_flops - self.eager_flops) / self.forward_flops

    def to_json(self) -> str:
        """One line of JSON without the fields that were not measured."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if v is not None and v != ""}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Measurement:
        """The inverse of ``to_json``; unknown fields are ignored.

        Raises:
            MeasureError: not a JSON object with a model, a strategy, a device and a torch version.
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
    """Parse a comma-separated list of strategies, or with ``runner`` of its budgets. "none" is the empty list.

    Raises:
        MeasureError: an item is not a strategy, or its budget is not accepted.
    """
    if texts.strip() == "none":
        return []
    items = [item.strip() for item in texts.split(",")]
    for item in items if runner == "remat" else ():
        try:
            Config.read({"memory_budget": item}, environ={})
        except ConfigError as error:
            raise _refused(f"remat@{item}", error) from error
    return unique(Strategy.parse(f"{runner}@{item}" if runner else item) for item in items)


def unique(strategies: Iterable[Strategy]) -> list[Strategy]:
    """The strategies without repetitions, in their order."""
    return list(dict.fromkeys(strategies))


def resolve(rows: Iterable[Measurement], known: Iterable[Measurement] = ()) -> list[Measurement]:
    """Fill in rows whose plan was measured under another strategy: its figures, with their own name and budget.

    The measured row may be in ``known`` as well. Plans with the same hash are the same, whichever planner made them.
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
