"""A Plan: what runs and what is let go, step by step, in forward and in backward.

A set of saved values cannot say that a value is computed twice, nor when; a schedule can. ``Run(op, copy)`` runs an
op and makes copy ``copy`` of each value it writes; it reads the newest living copy of each of its arguments.
``Drop(value, copy)`` ends a life. Copy 0 is the first computation, wherever it happens; copies 1, 2, ... are
recomputations and happen in backward.

        fwd: Run(0)  Run(1)  Drop(3)  Run(2)          bwd: Run(0, 1)  Run(7)  Drop(3, 1)  Run(8) ...
                            value 3 let go                value 3 made again, just before it is read

Backward starts with the ``saved`` values and the tangents, and with nothing else: not even a parameter is there
unless it is saved (keeping one is free, since it exists anyway).

Solvers make hundreds of plans of thousands of steps, and the simulator walks each. So a side of a plan is held in
arrays (``Steps``), and steps are made when somebody looks at them: of the few plans that are carried out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from rematpass.core.ragged import Ints, Lazy, ints
from rematpass.errors import PlanError

FORMAT = 1


@dataclass(frozen=True)
class Run:
    """Run op ``op``; each value that it writes lives from here on as copy ``copy``."""

    op: int
    copy: int = 0


@dataclass(frozen=True)
class Drop:
    """Copy ``copy`` of ``value`` is not needed any more."""

    value: int
    copy: int = 0


Step = Run | Drop


@lru_cache(maxsize=1 << 20)
def run(op: int, copy: int = 0) -> Run:
    """A ``Run``, each made once: the plans of one ladder share most of their steps."""
    return Run(op, copy)


@lru_cache(maxsize=1 << 20)
def drop(value: int, copy: int = 0) -> Drop:
    """A ``Drop``, each made once."""
    return Drop(value, copy)


class Runs(Lazy[Run]):
    """Runs in their order: op ``op[i]`` runs and makes copy ``copy[i]``."""

    def __init__(self, op: Ints, copy: Ints) -> None:
        self.op, self.copy = op, copy

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Runs:
        """The same runs in arrays."""
        return runs if isinstance(runs, cls) else cls(ints(r.op for r in runs), ints(r.copy for r in runs))

    def made(self) -> tuple[Run, ...]:
        return tuple(map(run, self.op.tolist(), self.copy.tolist()))

    def __len__(self) -> int:
        return len(self.op)


class Steps(Lazy[Step]):
    """Runs and drops in their order: ``runs``; and when ``after[i]`` of them have run, copy ``copy[i]`` of ``value[i]``
    is dropped. What is ``after`` ascends.
    """

    def __init__(self, runs: Runs, value: Ints, copy: Ints, after: Ints) -> None:
        self.runs, self.value, self.copy, self.after = runs, value, copy, after

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Steps:
        """The same steps in arrays."""
        if isinstance(steps, cls):
            return steps
        runs = [step for step in steps if isinstance(step, Run)]
        drops = [step for step in steps if isinstance(step, Drop)]
        is_run = np.array([isinstance(step, Run) for step in steps], np.bool_)
        after: Ints = np.cumsum(is_run, dtype=np.int64)[~is_run]
        return cls(Runs.of(runs), ints(d.value for d in drops), ints(d.copy for d in drops), after)

    def made(self) -> tuple[Step, ...]:
        steps: list[Step] = [*self.runs, *map(drop, self.value.tolist(), self.copy.tolist())]
        order = np.argsort(np.append(np.arange(1, len(self.runs) + 1), self.after), kind="stable")
        return tuple([steps[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(self.runs) + len(self.value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Steps):
            return all(map(np.array_equal, self._arrays, other._arrays))
        return super().__eq__(other)

    __hash__ = None

    @property
    def _arrays(self) -> tuple[Ints, ...]:
        return self.runs.op, self.runs.copy, self.value, self.copy, self.after


@dataclass(frozen=True)
class Plan:
    """A schedule. ``saved``: ids of the values that forward hands to backward, in ascending order, inputs included.

    Two plans are equal when their schedules are, whoever made them.
    """

    solver: str = field(compare=False)
    saved: tuple[int, ...]
    fwd: Sequence[Step]
    bwd: Sequence[Step]

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of what tells most plans apart: a plan has thousands of steps, and solvers look plans up again and again."""
        return hash((self.saved, len(self.fwd), len(self.bwd)))

    def recomputed(self) -> Iterator[Run]:
        """The runs in backward that repeat one of forward or an earlier one of backward."""
        seen = {step.op for step in self.fwd if isinstance(step, Run)}
        for step in self.bwd:
            if isinstance(step, Run):
                if step.op in seen:
                    yield step
                seen.add(step.op)

    def to_json(self) -> str:
        """A JSON document that ``from_json`` reads back into an equal plan."""
        data = {"format": FORMAT, "solver": self.solver, "saved": self.saved}
        for side in ("fwd", "bwd"):
            data[side] = [
                ["run", s.op, s.copy] if isinstance(s, Run) else ["drop", s.value, s.copy] for s in getattr(self, side)
            ]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what ``to_json`` wrote.

        Raises:
            PlanError: the text is not JSON, of another format, or not a plan.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != FORMAT:
                raise PlanError(f"this plan is of another format than {FORMAT}; make it again")
            fwd, bwd = (tuple(_step(*step) for step in data[side]) for side in ("fwd", "bwd"))
            return cls(solver=data["solver"], saved=tuple(data["saved"]), fwd=fwd, bwd=bwd)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"not a plan: {error}") from error


def _step(what: str, id: int, copy: int) -> Step:
    if what not in ("run", "drop"):
        raise ValueError(f"{what!r} is neither a run nor a drop")
    return Run(id, copy) if what == "run" else Drop(id, copy)
