"""A Plan: what runs and what is let go, step by step, in forward and in backward.

A set of saved values cannot say that a value is computed twice, nor when; a schedule can. ``Run(op, copy)`` runs an
op and makes copy ``copy`` of each value it writes; it reads the newest living copy of each of its arguments.
``Drop(value, copy)`` ends a life. Copy 0 is the first computation, wherever it happens; copies 1, 2, ... are
recomputations and happen in backward.

        fwd: Run(0)  Run(1)  Drop(3)  Run(2)          bwd: Run(0, 1)  Run(7)  Drop(3, 1)  Run(8) ...
                            value 3 let go                value 3 made again, just before it is read

Backward starts with the ``saved`` values and the tangents, and with nothing else: not even a parameter is there
unless it is saved (keeping one is free, since it exists anyway).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

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


@dataclass(frozen=True)
class Plan:
    """A schedule. ``saved``: ids of the values that forward hands to backward, in ascending order, inputs included.

    Two plans are equal when their schedules are, whoever made them.
    """

    solver: str = field(compare=False)
    saved: tuple[int, ...]
    fwd: tuple[Step, ...]
    bwd: tuple[Step, ...]

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
