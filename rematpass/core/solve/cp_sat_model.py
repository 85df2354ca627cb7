"""The oracle's program: what is unknown about a plan, and what has to hold. ``exact`` has it in formulas."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from ortools.sat.python import cp_model

from rematpass.core.op import Op, Origin, Side
from rematpass.core.solve.problem import Problem

_MOST_TOTAL = 1 << 45  # seconds become integers that add up to at most this
Truth = Any  # a variable of the solver's (or its negation), or 0 or 1 where it is known


class Program:
    """The program of one graph under one limit; what is unknown is public, for the plan to be read off."""

    def __init__(self, problem: Problem, peak: int, passes: int) -> None:
        self.problem, self.graph, self.peak = problem, problem.graph, peak
        self.program = cp_model.CpModel()
        self.own = self.graph.backward_ops
        # The own op at the end of each stage; none for passes before the last one, and at the end of backward.
        self.stages: list[Op | None] = [op for own in self.own for op in (*[None] * (passes - 1), own)]
        self.stages += [None] * passes
        self.done = [sum(op is not None for op in self.stages[:s]) for s in range(len(self.stages))]
        self.outputs = set(self.graph.held_outputs)
        self.save: dict[int, Truth] = {v: self._new() for v in sorted(self._savable)}
        self.early: dict[int, Truth] = {op.id: self._new(self._side(op) is Side.EITHER) for op in self._movable}
        self.again = {(s, o.id): self._new(self._may_run(o)) for s in range(len(self.stages)) for o in self._movable}
        made = [v for op in self._movable for v in op.writes]
        self.carried = {(s, v): self._carried(s, v) for s in range(len(self.stages) + 1) for v in made}
        self._forward()
        self._carry()
        self._reads()
        self._limits()
        self._peaks()
        self._minimize()

    # What is unknown.

    def _new(self, unknown: bool = True) -> Truth:
        """A variable, or what is known: forward's own ops run early and, where they must not, never again."""
        return self.program.new_bool_var("") if unknown else 0

    def _side(self, op: Op) -> Side:
        return self.graph.sides[op.id]

    @cached_property
    def _movable(self) -> list[Op]:
        return [op for op in self.graph.ops if self._side(op) is not Side.BACKWARD]

    def _may_run(self, op: Op) -> bool:
        """Whether backward may run ``op``."""
        lost = [v for v in op.reads if self.graph.producer[v] is None and v not in self.graph.kept_inputs]
        once = op.id in self.graph.runs_once or op.mutates
        return not lost and (self._side(op) is Side.EITHER or not once)

    @cached_property
    def _savable(self) -> frozenset[int]:
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

    def _carried(self, stage: int, value: int) -> Truth:
        if stage == 0:  # an output stays where it is: what the caller holds is not carried
            return 0 if value in self.outputs else self.save.get(value, 0)
        return self._new()

    def _available(self, stage: int, value: int) -> list[Truth]:
        """Of which one has to be true for ``value`` to be readable in ``stage``, after its producer."""
        producer = self.graph.producer[value]
        held = [self.save.get(value, 0)] if producer is None or value in self.outputs else []
        return held if producer is None else [*held, self.carried[stage, value], self.again[stage, producer]]

    # What has to hold.

    def _add(self, condition: cp_model.BoundedLinearExpression | bool) -> None:
        if condition is False:
            self.program.add_bool_or([])  # nothing satisfies it
        elif condition is not True:
            self.program.add(condition)

    def _forward(self) -> None:
        """What runs in forward, and what is saved, has what it is made of."""
        for op in self._movable:
            if self._side(op) is Side.FORWARD:
                self.early[op.id] = 1
        for v, saved in self.save.items():
            producer = self.graph.producer[v]
            if producer is not None:
                self._add(saved <= self.early[producer])
        for op in self._movable:
            for v in op.reads:
                producer = self.graph.producer[v]
                if producer is not None:
                    self._add(self.early[op.id] <= self.early[producer])

    def _carry(self) -> None:
        for (s, v), carried in self.carried.items():
            producer = self.graph.producer[v]
            assert producer is not None
            if s < len(self.stages):
                made = self.again[s, producer]
                self._add(self.carried[s + 1, v] <= carried + made)
                self._add(carried + made <= 1)
            if v in self.outputs and v in self.save and s:
                self._add(carried + self.save[v] <= 1)

    def _reads(self) -> None:
        graph = self.graph
        for s, own in enumerate(self.stages):
            for op in self._movable:
                for v in op.reads:
                    self._add(self.again[s, op.id] <= sum(self._available(s, v)))
            for v in graph.touched[own.id] if own else ():
                if self._is_given(v):
                    self._add(sum(self._available(s, v)) >= 1)
        for v in graph.bwd_outputs:
            if self._is_given(v):
                held = self.save.get(v, 0) if graph.producer[v] is None or v in self.outputs else 0
                self._add(held + self.carried.get((len(self.stages), v), 0) >= 1)

    def _is_given(self, value: int) -> bool:
        """Whether backward gets it from forward, or makes it again: it is neither a tangent nor of backward's own."""
        producer = self.graph.producer[value]
        if producer is None:
            return self.graph.values[value].origin is not Origin.TANGENT
        return self.graph.sides[producer] is not Side.BACKWARD

    def _limits(self) -> None:
        """Once is once; what is overwritten is not read."""
        for op in self._movable:
            if op.id in self.graph.runs_once:
                self._add(self.early[op.id] + sum(self.again[s, op.id] for s in range(len(self.stages))) <= 1)
        overwritten: set[int] = set()
        for s, own in enumerate(self.stages):
            for op in self._movable:
                if not overwritten.isdisjoint(op.reads):
                    self._add(self.again[s, op.id] == 0)
            overwritten.update(own.mutates if own else ())

    def limit_recompute(self, seconds: float) -> None:
        """At most so many seconds of runs that repeat another one."""
        terms = []
        for op in self._movable:
            runs = self.early[op.id] + sum(self.again[s, op.id] for s in range(len(self.stages)))
            first = self._new()
            self._add(first <= runs)
            terms.append((runs - first) * self._integer(self.problem.costs.run[op.id]))
        rounding = 0 if self._scale == 1 else len(terms) * len(self.stages)
        self._add(sum(terms) <= math.floor(seconds * self._scale) + rounding)

    # Bytes.

    def _peaks(self) -> None:
        for op in self._movable:
            self._under(self._alive_in_forward(op), [self.early[op.id]])
        before: list[Truth] = []  # runs of backward so far
        for s, own in enumerate(self.stages):
            for op in self._movable:
                made = self.again[s, op.id]
                if isinstance(made, int):
                    continue
                terms = [
                    *self._alive(s, op),
                    (op.nbytes_workspace + self._own_bytes(self.done[s] - 1, self.done[s]), 1),
                ]
                self._under(terms, [made])
                self._first(terms, before, made)
                before.append(made)
            if own:
                terms = [*self._alive(s, own), (own.nbytes_workspace + self._own_bytes(self.done[s], self.done[s]), 1)]
                self._under(terms, [1])
                self._first(terms, before, 1)
                before.append(1)

    @cached_property
    def _of_others(self) -> list[tuple[int, Truth]]:
        """What other calls of a step have of what is saved, at every moment."""
        return [(int(self.graph.nbytes_of_others[v]), saved) for v, saved in self.save.items()]

    def _under(self, terms: list[tuple[int, Truth]], when: list[Truth]) -> None:
        """At most the limit when all of ``when`` are true."""
        if any(isinstance(w, int) and w == 0 for w in when):
            return
        unknown = [w for w in when if not isinstance(w, int)]
        condition = sum(n * truth for n, truth in (*terms, *self._of_others) if n) <= self.peak
        if condition is False:
            self.program.add_bool_or([w.negated() for w in unknown])  # some of it must not be
        elif condition is not True:
            self.program.add(condition).only_enforce_if(unknown)

    def _first(self, terms: list[tuple[int, Truth]], before: list[Truth], made: Truth) -> None:
        """Tangents that nothing reads are handed in all the same, and let go after the first run of backward."""
        graph = self.graph
        unread = [v for v in graph.values if v.origin is Origin.TANGENT and not graph.readers[v.id]]
        nbytes = sum(v.nbytes for v in unread if v.id not in graph.bwd_outputs)
        if nbytes and not any(isinstance(b, int) for b in before):
            self._under([*terms, (nbytes, 1)], [made, *(b.negated() for b in before if not isinstance(b, int))])

    def _alive_in_forward(self, op: Op) -> list[tuple[int, Truth]]:
        """(bytes, whether) of all that forward has made up to ``op`` and that is still there."""
        graph = self.graph
        terms: list[tuple[int, Truth]] = [(op.nbytes_workspace, 1)]
        for maker in self._movable[: self._movable.index(op) + 1]:
            for v in maker.writes:
                readers = [r for r in graph.readers[v] if r >= op.id and graph.sides[r] is not Side.BACKWARD]
                if maker is op or v in graph.fwd_outputs:
                    terms.append((graph.values[v].nbytes, 1))
                else:
                    terms.append(
                        (graph.values[v].nbytes, self._any_of([self.save.get(v, 0), *(self.early[r] for r in readers)]))
                    )
        return terms

    def _alive(self, stage: int, op: Op) -> list[tuple[int, Truth]]:
        """The same of values of forward's while ``op`` runs in backward, without what the caller holds."""
        graph = self.graph
        is_own = graph.sides[op.id] is Side.BACKWARD
        terms: list[tuple[int, Truth]] = []
        for maker in self._movable:
            for v in maker.writes:
                if not (nbytes := graph.values[v].nbytes):
                    continue
                if maker is op:
                    terms.append((nbytes, 1))
                elif maker.id > op.id and not is_own:
                    terms.append((nbytes, self.carried[stage, v]))
                else:
                    terms.append((nbytes, self._wanted(stage, v, len(graph.ops) if is_own else op.id)))
        return terms

    def _wanted(self, stage: int, value: int, position: int) -> Truth:
        """Whether ``value``, made before ``position``, is read there or later in the stage, or carried on."""
        graph, own = self.graph, self.stages[stage]
        readers = [r for r in graph.readers[value] if r >= position and (stage, r) in self.again]
        read: list[Truth] = [self.again[stage, r] for r in readers]
        if own and value in graph.touched[own.id]:
            read.append(1)
        if value in self.outputs and read:  # who reads a saved output reads the caller's
            own_copy = self._new()
            for truth in read:
                self._add(truth <= own_copy + self.save.get(value, 0))
            read = [own_copy]
        return self._any_of([*read, self.carried[stage + 1, value]])

    def _any_of(self, truths: Iterable[Truth]) -> Truth:
        """Whether one of them is true at least (it may be 1 where none is: it then only takes bytes)."""
        truths = list(truths)
        unknown = [t for t in truths if not isinstance(t, int)]
        if any(isinstance(t, int) and t for t in truths):
            return 1
        if len(unknown) < 2:
            return unknown[0] if unknown else 0
        some = self.program.new_bool_var("")
        for t in unknown:
            self.program.add_implication(t, some)
        return some

    def _own_bytes(self, newest: int, needed: int) -> int:
        """Bytes of forward's outputs, of tangents and of what own ops up to number ``newest`` have made and own op
        ``needed`` or a later one reads; what number ``needed`` itself makes counts in any case."""
        graph = self.graph
        place = {op.id: i for i, op in enumerate(self.own)}
        total = sum(graph.values[v].nbytes for v in self.outputs if graph.producer[v] is not None)
        for v in graph.values:
            producer = graph.producer[v.id]
            if v.origin is Origin.TANGENT:
                born = -1
            elif producer in place:
                born = place[producer]
            else:
                continue
            last = max((place.get(r, -1) for r in graph.readers[v.id]), default=-1)
            if born <= newest and (v.id in graph.bwd_outputs or last >= needed or (born == needed and born >= 0)):
                total += v.nbytes
        return total

    # Seconds.

    @cached_property
    def _scale(self) -> float:
        """1 where all seconds are whole numbers, so that the optimum is exact."""
        costs = (*self.problem.costs.run, *self.problem.costs.keep)
        most = sum(self.problem.costs.run) * (len(self.stages) + 1) + sum(self.problem.costs.keep)
        whole = all(float(c).is_integer() for c in costs) and most < _MOST_TOTAL
        return 1.0 if whole or not most else _MOST_TOTAL / most

    def _integer(self, seconds: float) -> int:
        return round(seconds * self._scale)

    def seconds(self, objective: float) -> float:
        return objective / self._scale

    def _minimize(self) -> None:
        run, keep = self.problem.costs.run, self.problem.costs.keep
        terms = [self._integer(run[op.id]) for op in self.own]
        terms += [self._integer(run[op]) * early for op, early in self.early.items()]
        terms += [self._integer(run[op]) * again for (_, op), again in self.again.items()]
        terms += [self._integer(keep[v]) * saved for v, saved in self.save.items()]
        self.program.minimize(sum(terms))
