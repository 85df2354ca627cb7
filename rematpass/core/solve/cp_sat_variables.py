"""The unknowns of the exact model: which values are saved, and what runs and stays in memory in each stage of backward.

``exact.py`` has the formulation. Where a decision is known in advance, a constant 0 or 1 takes the place of its
variable, so that the solver has less to decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from ortools.sat.python import cp_model

from rematpass.core.op import Op, Origin, Side
from rematpass.core.solve.problem import Problem

Literal = Any  # a Boolean variable of the model, its negation, or 0 or 1 where it is known


class Variables:
    """The variables of one graph, with ``passes`` passes over the ops in each stage of backward."""

    def __init__(self, problem: Problem, passes: int) -> None:
        self.problem, self.graph = problem, problem.graph
        self.sat = cp_model.CpModel()
        self.own = self.graph.backward_ops
        # The own op at the end of each stage; None for passes before the last one, and at the end of backward.
        self.stages: list[Op | None] = [op for own in self.own for op in (*[None] * (passes - 1), own)]
        self.stages += [None] * passes
        self.own_before = [sum(op is not None for op in self.stages[:s]) for s in range(len(self.stages))]
        self.outputs = set(self.graph.held_outputs)
        self.save: dict[int, Literal] = {v: self.new() for v in sorted(self._savable)}
        self.early: dict[int, Literal] = {op.id: self.new(self._side(op) is Side.EITHER) for op in self.movable}
        self.again = {(s, o.id): self.new(self._may_run(o)) for s in range(len(self.stages)) for o in self.movable}
        made = [v for op in self.movable for v in op.writes]
        self.carried = {(s, v): self._carried(s, v) for s in range(len(self.stages) + 1) for v in made}
        for op in self.movable:
            if self._side(op) is Side.FORWARD:
                self.early[op.id] = 1

    def new(self, unknown: bool = True) -> Literal:
        """A new variable; 0 if the decision is known to be no."""
        return self.sat.new_bool_var("") if unknown else 0

    def any_of(self, literals: Iterable[Literal]) -> Literal:
        """A literal that is 1 if one of ``literals`` is. It may be 1 otherwise too, which only takes bytes."""
        literals = list(literals)
        unknown = [x for x in literals if not isinstance(x, int)]
        if any(isinstance(x, int) and x for x in literals):
            return 1
        if len(unknown) < 2:
            return unknown[0] if unknown else 0
        some = self.sat.new_bool_var("")
        for x in unknown:
            self.sat.add_implication(x, some)
        return some

    def add(self, condition: cp_model.BoundedLinearExpression | bool) -> None:
        """Add a constraint, which may be known to be true or false."""
        if condition is False:
            self.sat.add_bool_or([])  # nothing satisfies it
        elif condition is not True:
            self.sat.add(condition)

    @cached_property
    def movable(self) -> list[Op]:
        """The ops that are not backward's own."""
        return [op for op in self.graph.ops if self._side(op) is not Side.BACKWARD]

    def _side(self, op: Op) -> Side:
        return self.graph.sides[op.id]

    def _may_run(self, op: Op) -> bool:
        """Whether backward may run ``op``."""
        lost = [v for v in op.reads if self.graph.producer[v] is None and v not in self.graph.kept_inputs]
        once = op.id in self.graph.runs_once or op.mutates
        return not lost and (self._side(op) is Side.EITHER or not once)

    @cached_property
    def _savable(self) -> frozenset[int]:
        """Values that forward may hand over, inputs included."""
        graph = self.graph
        overwritten = {v for op in self.own for v in op.mutates}
        found = set()
        for v in graph.values:
            producer = graph.producer[v.id]
            if v.cannot_save or v.origin is Origin.TANGENT:
                continue
            if producer is None:
                if v.id in graph.kept_inputs or v.id in overwritten:
                    found.add(v.id)
            elif graph.sides[producer] is not Side.BACKWARD and not graph.ops[producer].must_recompute:
                found.add(v.id)
        return frozenset(found)

    def _carried(self, stage: int, value: int) -> Literal:
        if stage == 0:  # an output that the caller holds is not carried: it is in memory anyway
            return 0 if value in self.outputs else self.save.get(value, 0)
        return self.new()

    def available(self, stage: int, value: int) -> list[Literal]:
        """Literals of which one has to be 1 for ``value`` to be readable in ``stage``, after its producer."""
        producer = self.graph.producer[value]
        held = [self.save.get(value, 0)] if producer is None or value in self.outputs else []
        return held if producer is None else [*held, self.carried[stage, value], self.again[stage, producer]]

    def is_from_forward(self, value: int) -> bool:
        """Whether backward gets ``value`` from forward or recomputes it: it is no tangent and not backward's own."""
        producer = self.graph.producer[value]
        if producer is None:
            return self.graph.values[value].origin is not Origin.TANGENT
        return self.graph.sides[producer] is not Side.BACKWARD
