"""A memory budget: its forms, and how text and numbers are parsed into one."""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from dataclasses import dataclass
from enum import Enum

from rematpass.units import format_bytes, parse_bytes

LEAST_BARE_BYTES = 2**20  # a smaller number without a unit more likely means GiB than bytes
LEAST_BUDGET_BYTES = 2**20  # a smaller budget is a mistake, whatever its unit: no model to train fits it


class BudgetKind(str, Enum):
    """The form of a budget: which of its fields counts."""

    FRACTION = "fraction"
    BYTES = "bytes"
    AUTO = "auto"


@dataclass(frozen=True)
class Budget:
    """How much memory a training step may take at its peak.

    =============================================  ====================================================================
    given                                          meaning
    =============================================  ====================================================================
    unset, ``1``, ``1.0``                          no limit: the fastest plan
    a fraction from ``0`` to ``1``                 floor + fraction x (ceiling - floor): 0 is the least memory
    ``8GiB``, ``512MiB``, ``2GB``, ``8589934592``  bytes of peak, at least 1MiB; without a unit: bytes
    ``auto``                                       what is free on the device at compile time
    =============================================  ====================================================================

    ``given``: what the user wrote and where, such as "REMAT_MEMORY_BUDGET=8GiB"; empty for the default.
    """

    kind: BudgetKind = BudgetKind.FRACTION
    fraction: float = 1.0
    nbytes: int = 0
    given: str = dataclasses.field(default="", compare=False)

    @property
    def is_unlimited(self) -> bool:
        return self.kind is BudgetKind.FRACTION and self.fraction == 1

    def __str__(self) -> str:
        if self.is_unlimited:
            return "no limit"
        return {
            BudgetKind.FRACTION: f"{self.fraction:g} of the way from floor to ceiling",
            BudgetKind.BYTES: format_bytes(self.nbytes),
            BudgetKind.AUTO: "auto",
        }[self.kind]


def parse_budget(value: object) -> Budget:
    """Parse any form of a budget. A ``Budget`` is returned as it is, whatever its size.

    Raises:
        ValueError: ``value`` has no such form, or is less than ``LEAST_BUDGET_BYTES``.
    """
    if isinstance(value, Budget):
        return value
    if isinstance(value, str) and value.strip().lower() == "auto":
        return Budget(BudgetKind.AUTO)
    number = parse_number(value)
    if number is not None and number <= 1:
        return Budget(BudgetKind.FRACTION, fraction=float(number))
    nbytes = parse_bytes(str(value)) if number is None else _bare_bytes(number)
    if nbytes < LEAST_BUDGET_BYTES:
        raise ValueError(f"below the smallest budget, {format_bytes(LEAST_BUDGET_BYTES)}")
    return Budget(BudgetKind.BYTES, nbytes=nbytes)


def parse_reserve(value: object) -> int:
    """Parse a number of bytes, which may be 0.

    Raises:
        ValueError: ``value`` is not a number of bytes, or it lacks a unit that it needs.
    """
    number = parse_number(value)
    if number is None:
        return parse_bytes(str(value))
    return 0 if number == 0 else _bare_bytes(number)


def _bare_bytes(number: int | float) -> int:
    if number < LEAST_BARE_BYTES:
        raise ValueError(f"a number without a unit; did you mean {number}{'GiB' if number < 1024 else 'MiB'}?")
    if isinstance(number, float):
        raise ValueError(f"bytes must be a whole number; did you mean {int(number)}?")
    return number


def parse_number(value: object) -> int | float | None:
    """The non-negative number that ``value`` is or spells; None for a string that is not just a number."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE):
            return None
        value = int(text) if re.fullmatch("[+-]?[0-9]+", text) else float(text)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"a value of type {type(value).__name__} is neither a number nor a string")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    if number < 0:
        raise ValueError("negative")
    return number
