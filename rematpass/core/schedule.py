"""A Plan: what runs and what is dropped, step by step, in forward and in backward.

A set of saved values cannot express that a value is computed twice, nor when; a schedule can. ``Run(op, copy)`` runs an
op and creates copy ``copy`` of each value that it writes; it reads the newest living copy of each argument.
``Drop(value, copy)`` ends the life of a copy. Copy 0 is the first computation, on either side; copies 1, 2, ... are
recomputations and happen in backward.

        fwd: Run(0)  Run(1)  Drop(3)  Run(2)          bwd: Run(0, 1)  Run(7)  Drop(3, 1)  Run(8) ...
                            value 3 is dropped            value 3 is recomputed just before op 7 reads it

Backward starts with the ``saved`` values and the tangents, and with nothing else: even a parameter is available only if
it is saved (which is free, since it exists anyway).

Solvers make hundreds of plans with thousands of steps, and simulate each one. So each side of a plan is kept in arrays
(``StepArrays``); the ``Step`` objects are created on first access, which happens for the few plans that are emitted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from rematpass.core.ragged import Ints, LazySequence, ints
from rematpass.errors import PlanError

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """Run op ``op``; each value that it writes lives from here on as copy ``copy``."""

    op: int
    copy: int = 0


@dataclass(frozen=True)
class Drop:
    """End the life of copy ``copy`` of ``value``."""

    value: int
    copy: int = 0


Step = Run | Drop


@lru_cache(maxsize=1 << 20)
def run(op: int, copy: int = 0) -> Run:
    """A cached ``Run``: the plans of one ladder share most of their steps."""
    return Run(op, copy)


@lru_cache(maxsize=1 << 20)
def drop(value: int, copy: int = 0) -> Drop:
    """A cached ``Drop``."""
    return Drop(value, copy)


class RunArrays(LazySequence[Run]):
    """Runs in order: run i runs op ``op[i]`` and creates copy ``copy[i]``."""

    def __init__(self, op: Ints, copy: Ints) -> None:
        self.op, self.copy = op, copy

    @classmethod
    def of(cls, runs: Sequence[Run]) -> RunArrays:
        """The same runs in arrays."""
        return runs if isinstance(runs, cls) else cls(ints(r.op for r in runs), ints(r.copy for r in runs))

    def _create_items(self) -> tuple[Run, ...]:
        return tuple(map(run, self.op.tolist(), self.copy.tolist()))

    def __len__(self) -> int:
        return len(self.op)


class StepArrays(LazySequence[Step]):
    """Runs and drops in order: ``runs``, and for each drop i, copy ``copy[i]`` of ``value[i]`` and the number
    ``after[i]`` of runs that precede it. ``after`` ascends.
    """

    def __init__(self, runs: RunArrays, value: Ints, copy: Ints, after: Ints) -> None:
        self.runs, self.value, self.copy, self.after = runs, value, copy, after

    @classmethod
    def of(cls, steps: Sequence[Step]) -> StepArrays:
        """The same steps in arrays."""
        if isinstance(steps, cls):
            return steps
        runs = [step for step in steps if isinstance(step, Run)]
        drops = [step for step in steps if isinstance(step, Drop)]
        is_run = np.array([isinstance(step, Run) for step in steps], np.bool_)
        after: Ints = np.cumsum(is_run, dtype=np.int64)[~is_run]
        return cls(RunArrays.of(runs), ints(d.value for d in drops), ints(d.copy for d in drops), after)

    def _create_items(self) -> tuple[Step, ...]:
        steps: list[Step] = [*self.runs, *map(drop, self.value.tolist(), self.copy.tolist())]
        order = np.argsort(np.append(np.arange(1, len(self.runs) + 1), self.after), kind="stable")
        return tuple([steps[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(self.runs) + len(self.value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, StepArrays):
            return all(map(np.array_equal, self._arrays, other._arrays))
        return super().__eq__(other)

    __hash__ = None

    @property
    def _arrays(self) -> tuple[Ints, ...]:
        return self.runs.op, self.runs.copy, self.value, self.copy, self.after


@dataclass(frozen=True)
class Plan:
    """A schedule of forward and backward. Two plans are equal if their schedules are, whichever solver made them.

    ``saved``: ids of the values that forward hands to backward, ascending, inputs included. ``realized``: the copies,
    as (value, copy), that are written to memory on purpose because that lowers the peak (``materialization``); empty
    for a plan that was not simulated for a fusing compiler.
    """

    solver: str = field(compare=False)
    saved: tuple[int, ...]
    fwd: Sequence[Step]
    bwd: Sequence[Step]
    realized: tuple[tuple[int, int], ...] = field(default=(), compare=False)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """A hash of what differs between most plans: solvers look plans up often, and hashing every step is slow."""
        return hash((self.saved, len(self.fwd), len(self.bwd)))

    @property
    def digest(self) -> str:
        """12 hex digits that identify the solver and the schedule, the same in every process."""
        return hashlib.sha256(_to_text(self._fields()).encode()).hexdigest()[:12]

    def recomputed(self) -> Iterator[Run]:
        """The runs in backward whose op has run before, in forward or in backward."""
        seen = {step.op for step in self.fwd if isinstance(step, Run)}
        for step in self.bwd:
            if isinstance(step, Run):
                if step.op in seen:
                    yield step
                seen.add(step.op)

    def to_json(self) -> str:
        """A JSON document that ``from_json`` reads back into an equal plan."""
        return _to_text({**self._fields(), "realized": self.realized} if self.realized else self._fields())

    def _fields(self) -> dict[str, Any]:
        """The fields of the JSON document that belong to the digest."""
        data: dict[str, Any] = {"format": FORMAT, "solver": self.solver, "saved": self.saved}
        for side in ("fwd", "bwd"):
            data[side] = [
                ["run", s.op, s.copy] if isinstance(s, Run) else ["drop", s.value, s.copy] for s in getattr(self, side)
            ]
        return data

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a document that ``to_json`` wrote.

        Raises:
            PlanError: the text is not JSON, has another format, or is not a plan.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != FORMAT:
                raise PlanError(f"this plan has a format other than {FORMAT}; make the plan again")
            fwd, bwd = (tuple(_step(*step) for step in data[side]) for side in ("fwd", "bwd"))
            realized = tuple((int(value), int(copy)) for value, copy in data.get("realized", ()))
            return cls(solver=data["solver"], saved=tuple(data["saved"]), fwd=fwd, bwd=bwd, realized=realized)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"not a plan: {error}") from error


def _to_text(data: dict[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"))


def _step(kind: str, id: int, copy: int) -> Step:
    if kind not in ("run", "drop"):
        raise ValueError(f"{kind!r} is neither a run nor a drop")
    return Run(id, copy) if kind == "run" else Drop(id, copy)
