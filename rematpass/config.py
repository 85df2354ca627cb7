"""All user settings; the only module that reads the environment.

Each setting is an environment variable and an option. The option has the same name in lower case without the prefix,
and it wins: ``REMAT_MEMORY_BUDGET=8GiB``, ``torch.compile(..., backend="remat", options={"memory_budget": "8GiB"})``.

========================== ========== ==================================================================================
variable                   default    meaning
========================== ========== ==================================================================================
``REMAT_MEMORY_BUDGET``    ``1``      the most memory that a training step may take; ``Budget`` lists the forms
``REMAT_MAX_RECOMPUTE``    ``1``      the most recompute that a plan may spend, in forward passes; more lowers the floor
``REMAT_STRICT``           ``0``      ``1``: raise when a budget cannot be held, also in later recompiles
``REMAT_SOLVER``           ``ladder`` the planner: one of ``SOLVERS``; all but ``ladder`` exist for comparison
``REMAT_HARDWARE``                    the preset or calibration file for the cost model; unset: the device's preset
``REMAT_COST``             ``model``  ``measure``: time the expensive ops on this device instead of using the cost model
``REMAT_PLANNING_SECONDS``            the time limit for planning one graph, in seconds; unset: no limit
``REMAT_SAVE_DECISIONS``   ``1``      ``0``: backward may recompute what ``topk`` and comparisons decided in forward
``REMAT_PURE_OPS``                   custom ops that backward may run again: ``transformers::*,mylib::scan``
``REMAT_HOLD_OUTPUTS``     ``1``      ``0``: the caller drops forward's outputs before backward starts
``REMAT_CALLS``                       how often a step calls a graph before its backward; unset: as often as observed
``REMAT_AUTO_RESERVE``                bytes that ``auto`` leaves free for the optimizer's state; unset: what Adam needs
``REMAT_CHECK``            ``0``      ``1``: measure the peak of the first steps; warn if it exceeds the planned peak
``REMAT_REPORT_DIR``                  the directory for each graph's report: a page, text, JSON and a trace
========================== ========== ==================================================================================

Switches accept 1, true, yes, on, 0, false, no, off. ``units`` defines how bytes are written. A variable with the prefix
and an unknown name causes one warning; an unknown option is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rematpass.budget import Budget, parse_budget, parse_number, parse_reserve
from rematpass.errors import ConfigError

log = logging.getLogger("rematpass")

PREFIX = "REMAT_"
SOLVERS = ("ladder", "mincut", "save_all", "recompute_all", "chen_sqrt", "nested")
COSTS = ("model", "measure")


@dataclass(frozen=True)
class Config:
    """All settings of one compile. The docstring of ``rematpass.config`` describes each field."""

    memory_budget: Budget = field(default_factory=Budget)
    max_recompute: float = 1.0
    strict: bool = False
    solver: str = "ladder"
    hardware: str = ""
    cost: str = "model"
    planning_seconds: float | None = None
    save_decisions: bool = True
    pure_ops: tuple[str, ...] = ()
    hold_outputs: bool = True
    calls: int | None = None
    auto_reserve: int | None = None
    check: bool = False
    report_dir: str = ""

    @classmethod
    def read(cls, options: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None) -> Config:
        """Read ``options``, then the environment, then the defaults. An option that is None counts as not given.

        Raises:
            ConfigError: an option is unknown, or a value is not accepted.
        """
        options = options or {}
        environ = os.environ if environ is None else environ
        for name in split_options(options)[1]:
            meant = nearest(name, _SETTINGS)
            hint = f"did you mean {meant}?" if meant else f"valid options are {', '.join(_SETTINGS)}"
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
        """Return every setting that can change a plan, as text that is the same in all processes, for cache keys.

        Under ``auto`` a plan also depends on the free bytes; the caller adds them to its key.
        """
        fields = dataclasses.asdict(self)
        del fields["check"], fields["memory_budget"]["given"], fields["report_dir"]
        return json.dumps(fields, sort_keys=True)


def split_options(options: Mapping[str, object] | None) -> tuple[dict[str, object], dict[str, object]]:
    """Split the options of ``torch.compile`` into those of rematpass and those of Inductor."""
    options = options or {}
    ours = {name: value for name, value in options.items() if name in _SETTINGS}
    return ours, {name: value for name, value in options.items() if name not in _SETTINGS}


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the member of ``known`` that is closest to the misspelt ``name``; empty if none is close."""
    return next(iter(difflib.get_close_matches(name.lower(), known, n=1)), "")


def unknown(name: str, what: str, known: Iterable[str]) -> str:
    """The message that refuses ``name``, which is not in ``known``, with the nearest name and all valid ones."""
    known = tuple(known)
    meant = nearest(name, known)
    hint = f"did you mean {meant}? " if meant else ""
    return f"unknown {what} {name!r}; {hint}{'Valid' if hint else 'valid'} names are {', '.join(known)}"


@functools.cache  # once per name and process: every compile reads the environment
def _warn_of_unknown(variable: str) -> None:
    stem = variable.removeprefix("REMATPASS_").removeprefix(PREFIX)
    meant = nearest(stem, _VARIABLES)
    hint = f"did you mean {_VARIABLES[meant]}?" if meant else f"valid names are {', '.join(_VARIABLES.values())}"
    log.warning("the unknown environment variable %s has no effect; %s", variable, hint)


@dataclass(frozen=True)
class _Setting:
    """How to read one setting. ``parse`` raises ValueError with the reason; ``accepted`` ends the error message."""

    parse: Callable[[Any], Any]
    accepted: str

    def read(self, value: object, source: str) -> Any:
        try:
            parsed = self.parse(value)
        except ValueError as error:
            reason = str(error) if str(error).endswith("?") else f"{error}."
            raise ConfigError(f"{source}={value!r}: {reason} Accepted: {self.accepted}.") from None
        return dataclasses.replace(parsed, given=f"{source}={value}") if isinstance(parsed, Budget) else parsed


def _times(value: object) -> int:
    number = parse_number(value)
    if number is None or number < 1 or number != int(number):
        raise ValueError("not a whole number above 0")
    return int(number)


def _positive(value: object) -> float:
    if not (number := parse_number(value)):
        raise ValueError("not a number" if number is None else "must be above 0")
    return float(number)


def _switch(value: object) -> bool:
    text = str(value).strip().lower()
    if text not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("not a switch")
    return text in ("1", "true", "yes", "on")


def _solver(value: object) -> str:
    if value not in SOLVERS:
        meant = nearest(str(value), SOLVERS)
        raise ValueError(f"unknown solver; did you mean {meant}?" if meant else "unknown solver")
    return str(value)


def _cost(value: object) -> str:
    if value not in COSTS:
        raise ValueError("unknown cost model")
    return str(value)


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, str):
        raise ValueError(f"a value of type {type(value).__name__} is not a string")
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    wrong = next((name for name in names if "::" not in name), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} has no namespace, as in mylib::scan")
    return names


def _text(value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise ValueError(f"a value of type {type(value).__name__} is not a string")
    return str(os.fspath(value))


_BYTES = "8GiB, 512MiB, 2GB, or a whole number of bytes from 1048576 up"
_BUDGET = (
    "a fraction from 0 (least memory) to 1 (no limit), at least 1MiB as in 8GiB, 512MiB, 2GB or 8589934592, or auto"
)
_SWITCH = "1, true, yes, on, 0, false, no, off"
_SETTINGS = {
    "memory_budget": _Setting(parse_budget, _BUDGET),
    "max_recompute": _Setting(_positive, "a finite number above 0, in forward passes"),
    "strict": _Setting(_switch, _SWITCH),
    "solver": _Setting(_solver, ", ".join(SOLVERS)),
    "hardware": _Setting(_text, "a hardware preset, or a file that rematpass calibrate wrote"),
    "cost": _Setting(_cost, " or ".join(COSTS)),
    "planning_seconds": _Setting(_positive, "a finite number above 0"),
    "save_decisions": _Setting(_switch, _SWITCH),
    "pure_ops": _Setting(
        _names, "names of custom ops with their namespaces, separated by commas; * stands for any part"
    ),
    "hold_outputs": _Setting(_switch, _SWITCH),
    "calls": _Setting(_times, "a whole number of at least 1"),
    "auto_reserve": _Setting(parse_reserve, f"0, {_BYTES}"),
    "check": _Setting(_switch, _SWITCH),
    "report_dir": _Setting(_text, "a directory, which is created if it is missing"),
}
_VARIABLES = {name: PREFIX + name.upper() for name in _SETTINGS}
OPTIONS = tuple(_SETTINGS)


def default_environment(**variables: str) -> None:
    """Set those of the variables that are not set yet, such as the log levels of torch's libraries."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def set_variables(prefixes: tuple[str, ...]) -> dict[str, str]:
    """Return the environment variables whose names start with one of ``prefixes``, sorted by name."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)}


def child_environment(**variables: str) -> dict[str, str]:
    """Return the environment for a child process: that of this process, with these variables set."""
    return {**os.environ, **variables}


def set_environment(**variables: str) -> None:
    """Set variables for this process and its children."""
    os.environ.update(variables)


def environment_of(options: Mapping[str, object]) -> dict[str, str]:
    """Return the environment variables that are equivalent to ``options``; options that are None are left out."""
    return {_VARIABLES[name]: str(value) for name, value in options.items() if value is not None}
