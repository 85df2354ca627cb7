"""Everything a user can set, and the one reader of the environment.

Each setting is a variable and an option of the same name in lower case without the prefix; the option wins:
``REMAT_MEMORY_BUDGET=8GiB``, ``torch.compile(..., backend="remat", options={"memory_budget": "8GiB"})``.

variable                  default    means
========================== ========== ==================================================================================
variable                   default    means
========================== ========== ==================================================================================
``REMAT_MEMORY_BUDGET``    ``1``      the most memory a training step may take; see ``Budget`` for its forms
``REMAT_MAX_RECOMPUTE``    ``1``      how many extra forwards of recompute a plan may spend; more reaches a lower floor
``REMAT_STRICT``           ``0``      ``1``: a budget that cannot be held raises, in later recompiles too
``REMAT_SOLVER``           ``ladder`` what plans: one of ``SOLVERS``; all but ``ladder`` are there to compare with
``REMAT_HARDWARE``                    whose seconds: a preset, or a file of ``rematpass calibrate``; unset: the device's
``REMAT_COST``             ``model``  ``measure``: time the ops that matter on this device, instead of a roofline model
``REMAT_PLANNING_SECONDS``            the most seconds that planning one graph may take; unset: no limit
``REMAT_SAVE_DECISIONS``   ``1``      ``0``: what ``topk`` and comparisons decide may be decided again in backward
``REMAT_HOLD_OUTPUTS``     ``1``      ``0``: the caller lets go of forward's outputs before backward
``REMAT_CALLS``                       how often a step calls a graph before its backward; unset: as often as seen
``REMAT_AUTO_RESERVE``                bytes that ``auto`` leaves for the optimizer's state; unset: as much as Adam takes
``REMAT_CHECK``            ``0``      ``1``: measure the peak of the first steps, and warn if it is above the plan's
``REMAT_REPORT_DIR``                  where every planned graph leaves its report: a page, text, JSON, a trace
========================== ========== ==================================================================================

Switches take 1, true, yes, on, 0, false, no, off. Bytes are written as in ``units``. A variable that looks like one of
these and is none is warned about once; an unknown option is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import logging
import math
import numbers
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rematpass.errors import ConfigError
from rematpass.units import format_bytes, parse_bytes

log = logging.getLogger("rematpass")

PREFIX = "REMAT_"
SOLVERS = ("ladder", "mincut", "save_all", "recompute_all", "chen_sqrt", "nested")
COSTS = ("model", "measure")
LEAST_BARE_BYTES = 2**20  # a smaller number without a unit is more likely meant as GiB than as bytes


class BudgetKind(str, Enum):
    """Which of a budget's fields says it."""

    FRACTION = "fraction"
    BYTES = "bytes"
    AUTO = "auto"


@dataclass(frozen=True)
class Budget:
    """How much memory a training step may take at its peak.

    =============================================  ====================================================================
    given                                          means
    =============================================  ====================================================================
    unset, ``1``, ``1.0``                          no limit: the fastest plan
    a fraction ``0`` to ``1``                      floor + fraction x (ceiling - floor): 0 is the least memory
    ``8GiB``, ``512MiB``, ``2GB``, ``8589934592``  bytes of peak; without a unit from 1048576 up
    ``auto``                                       what is free on the device when compiling
    =============================================  ====================================================================

    ``given``: what the user wrote and where, such as "REMAT_MEMORY_BUDGET=8GiB"; empty when nothing was.
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


@dataclass(frozen=True)
class Config:
    """All settings at one moment; each compile reads its own. The module's docstring says what each field means."""

    memory_budget: Budget = Budget()
    max_recompute: float = 1.0
    strict: bool = False
    solver: str = "ladder"
    hardware: str = ""
    cost: str = "model"
    planning_seconds: float | None = None
    save_decisions: bool = True
    hold_outputs: bool = True
    calls: int | None = None
    auto_reserve: int | None = None
    check: bool = False
    report_dir: str = ""

    @classmethod
    def read(cls, options: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Config:
        """What holds now: ``options``, then the environment, then the defaults. An option that is None is not given.

        Raises:
            ConfigError: an unknown option, or a value that is not accepted.
        """
        options = options or {}
        environ = os.environ if environ is None else environ
        _, unknown = split_options(options)
        for name in unknown:
            meant = nearest(name, _SETTINGS)
            hint = f"did you mean {meant}?" if meant else f"valid are {', '.join(_SETTINGS)}"
            raise ConfigError(f"rematpass has no option {name!r}; {hint}")
        for variable in environ:
            if variable.startswith((PREFIX, "REMATPASS_")) and variable not in _VARIABLES.values():
                _warn_of_unknown(variable)
        values = {}
        for name, setting in _SETTINGS.items():
            if options.get(name) is not None:
                values[name] = setting.read(options[name], f"option {name}")
            elif (variable := _VARIABLES[name]) in environ:
                values[name] = setting.read(environ[variable], variable)
        return cls(**values)

    def key(self) -> str:
        """All that can change a plan, as a text that is the same in every process: a part of the compile cache's key.

        Under ``auto`` the bytes that were free belong to the key as well; the caller adds them.
        """
        fields = dataclasses.asdict(self)
        del fields["check"], fields["memory_budget"]["given"], fields["report_dir"]
        return json.dumps(fields, sort_keys=True)


def split_options(options: Mapping[str, object] | None) -> tuple[dict[str, object], dict[str, object]]:
    """Options of ``torch.compile``, parted into ours and those for Inductor."""
    options = options or {}
    ours = {name: value for name, value in options.items() if name in _SETTINGS}
    return ours, {name: value for name, value in options.items() if name not in _SETTINGS}


def nearest(name: str, known: Iterable[str]) -> str:
    """Which of ``known`` a misspelt ``name`` was meant to be; empty when none is near."""
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1)), "")


@functools.cache  # once per name and process: every compile reads the environment
def _warn_of_unknown(variable: str) -> None:
    stem = variable.removeprefix("REMATPASS_").removeprefix(PREFIX)
    meant = nearest(stem, _VARIABLES)
    hint = f"did you mean {_VARIABLES[meant]}?" if meant else f"valid are {', '.join(_VARIABLES.values())}"
    log.warning("the environment variable %s has no effect: rematpass has none of this name; %s", variable, hint)


@dataclass(frozen=True)
class _Setting:
    """How one setting is read. ``parse`` raises ValueError with the reason; ``accepted`` ends the error's message."""

    parse: Callable[[Any], Any]
    accepted: str

    def read(self, value: object, source: str) -> Any:
        try:
            parsed = self.parse(value)
        except ValueError as error:
            reason = str(error) if str(error).endswith("?") else f"{error}."
            raise ConfigError(f"{source}={value!r}: {reason} Accepted: {self.accepted}.") from None
        return dataclasses.replace(parsed, given=f"{source}={value}") if isinstance(parsed, Budget) else parsed


def _budget(value: object) -> Budget:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return Budget(BudgetKind.AUTO)
    number = _number(value)
    if number is not None and number <= 1:
        return Budget(BudgetKind.FRACTION, fraction=float(number))
    return Budget(BudgetKind.BYTES, nbytes=parse_bytes(str(value)) if number is None else _bare_bytes(number))


def _reserve(value: object) -> int:
    number = _number(value)
    if number is None:
        return parse_bytes(str(value))
    return 0 if number == 0 else _bare_bytes(number)


def _bare_bytes(number: int | float) -> int:
    if number < LEAST_BARE_BYTES:
        raise ValueError(f"a number without a unit; did you mean {number}{'GiB' if number < 1024 else 'MiB'}?")
    if isinstance(number, float):
        raise ValueError(f"bytes are a whole number; did you mean {int(number)}?")
    return number


def _number(value: object) -> int | float | None:
    """The number that ``value`` is or spells, not negative; None for a text that is not only a number."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE):
            return None
        value = int(text) if re.fullmatch("[+-]?[0-9]+", text) else float(text)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"a value of type {type(value).__name__} is neither a number nor a text")
    number = int(value) if isinstance(value, numbers.Integral) else float(value)
    if not math.isfinite(number):
        raise ValueError("not a finite number")
    if number < 0:
        raise ValueError("below 0")
    return number


def _times(value: object) -> int:
    number = _number(value)
    if number is None or number < 1 or number != int(number):
        raise ValueError("not a whole number above 0")
    return int(number)


def _positive(value: object) -> float:
    if not (number := _number(value)):
        raise ValueError("not a number" if number is None else "has to be above 0")
    return float(number)


def _switch(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("neither on nor off")
    return text in ("1", "true", "yes", "on")


def _solver(value: object) -> str:
    if value not in SOLVERS:
        meant = nearest(str(value), SOLVERS)
        raise ValueError(f"no such solver; did you mean {meant}?" if meant else "no such solver")
    return str(value)


def _cost(value: object) -> str:
    if value not in COSTS:
        raise ValueError("neither of the two")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"a value of type {type(value).__name__} is not a text")
    return str(os.fspath(value))


_BYTES = "8GiB, 512MiB, 2GB, or a whole number of bytes from 1048576 up"
_SWITCH = "1, true, yes, on, 0, false, no, off"
_SETTINGS = {
    "memory_budget": _Setting(_budget, f"a fraction from 0 (least memory) to 1 (no limit), {_BYTES}, or auto"),
    "max_recompute": _Setting(_positive, "a finite number above 0, in extra forwards"),
    "strict": _Setting(_switch, _SWITCH),
    "solver": _Setting(_solver, ", ".join(SOLVERS)),
    "hardware": _Setting(_text, "the name of a hardware preset, or a file that rematpass calibrate has written"),
    "cost": _Setting(_cost, " or ".join(COSTS)),
    "planning_seconds": _Setting(_positive, "a finite number above 0"),
    "save_decisions": _Setting(_switch, _SWITCH),
    "hold_outputs": _Setting(_switch, _SWITCH),
    "calls": _Setting(_times, "a whole number from 1 up"),
    "auto_reserve": _Setting(_reserve, f"0, {_BYTES}"),
    "check": _Setting(_switch, _SWITCH),
    "report_dir": _Setting(_text, "a directory, which is made if need be"),
}
OPTIONS = tuple(_SETTINGS)
_VARIABLES = {name: PREFIX + name.upper() for name in _SETTINGS}
OPTIONS = tuple(_SETTINGS)


def default_environment(**variables: str) -> None:
    """Set variables of other libraries that are not set yet: how torch's loggers are kept quiet, say."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def child_environment(**variables: str) -> dict[str, str]:
    """The environment of this process, for one that it starts, with these variables set."""
    return {**os.environ, **variables}


def set_environment(**variables: str) -> None:
    """Set variables for this process and for those that it starts."""
    os.environ.update(variables)


def environment_of(options: Mapping[str, object]) -> dict[str, str]:
    """Options as the variables that say the same; those that are None are left out."""
    return {_VARIABLES[name]: str(value) for name, value in options.items() if value is not None}
