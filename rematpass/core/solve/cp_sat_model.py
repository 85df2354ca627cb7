"""The exact model for CP-SAT: the constraints and the objective over ``cp_sat_variables.Variables``.

``exact.py`` has the formulation, and names the method that adds each constraint.
"""

from __future__ import annotations

import math
from functools import cached_property

from rematpass.core.op import Op, Origin, Side
from rematpass.core.solve.cp_sat_variables import Literal, Variables
from rematpass.core.solve.problem import Problem

_MOST_TOTAL = 1 << 45  # CP-SAT counts in integers: seconds are scaled so that all of them add up to at most this

Terms = list[tuple[int, Literal]]  # (bytes, whether they are in memory)


class ScheduleModel(Variables):
    """The model of one graph under a limit of ``peak`` bytes."""

    def __init__(self, problem: Problem, peak: int, passes: int) -> None:
        super().__init__(problem, passes)
        self.peak = peak
        self._compute_what_is_saved()
        self._carry()
        self._provide_arguments()
        self._run_once()
        self._limit_peaks()
        self._minimize_seconds()

    # Schedules that are valid.

    def _compute_what_is_saved(self) -> None:
        """What forward saves is computed in forward, from what is computed there."""
        for v, saved in self.save.items():
            producer = self.graph.producer[v]
            if producer is not None:
                self.add(saved <= self.early[producer])
        for op in self.movable:
            for v in op.reads:
                producer = self.graph.producer[v]
                if producer is not None:
                    self.add(self.early[op.id] <= self.early[producer])

    def _carry(self) -> None:
        """A value is carried to the next stage only from this one or from a run in it, and never in two copies."""
        for (s, v), carried in self.carried.items():
            producer = self.graph.producer[v]
            assert producer is not None
            if s < len(self.stages):
                made = self.again[s, producer]
                self.add(self.carried[s + 1, v] <= carried + made)
                self.add(carried + made <= 1)
            if v in self.outputs and v in self.save and s:
                self.add(carried + self.save[v] <= 1)

    def _provide_arguments(self) -> None:
        """Every run has its arguments, and backward's results are available at its end."""
        graph = self.graph
        for s, own in enumerate(self.stages):
            for op in self.movable:
                for v in op.reads:
                    self.add(self.again[s, op.id] <= sum(self.available(s, v)))
            for v in graph.touched[own.id] if own else ():
                if self.is_from_forward(v):
                    self.add(sum(self.available(s, v)) >= 1)
        for v in graph.bwd_outputs:
            if self.is_from_forward(v):
                held = self.save.get(v, 0) if graph.producer[v] is None or v in self.outputs else 0
                self.add(held + self.carried.get((len(self.stages), v), 0) >= 1)

    def _run_once(self) -> None:
        """Ops that must run once do, and what backward has overwritten is not read."""
        for op in self.movable:
            if op.id in self.graph.runs_once:
                self.add(self.early[op.id] + sum(self.again[s, op.id] for s in range(len(self.stages))) <= 1)
        overwritten: set[int] = set()
        for s, own in enumerate(self.stages):
            for op in self.movable:
                if not overwritten.isdisjoint(op.reads):
                    self.add(self.again[s, op.id] == 0)
            overwritten.update(own.mutates if own else ())

    def limit_recompute(self, seconds: float) -> None:
        """Backward recomputes for at most ``seconds``."""
        terms = []
        for op in self.movable:
            runs = self.early[op.id] + sum(self.again[s, op.id] for s in range(len(self.stages)))
            first = self.new()
            self.add(first <= runs)
            terms.append((runs - first) * self._integer(self.problem.costs.run[op.id]))
        rounding = 0 if self._scale == 1 else len(terms) * len(self.stages)
        self.add(sum(terms) <= math.floor(seconds * self._scale) + rounding)

    # Bytes.

    def _limit_peaks(self) -> None:
        """At each run, the bytes alive are at most the limit."""
        for op in self.movable:
            self._limit(self._alive_in_forward(op), [self.early[op.id]])
        before: list[Literal] = []  # runs of backward so far
        for s, own in enumerate(self.stages):
            done = self.own_before[s]
            for op in self.movable:
                runs = self.again[s, op.id]
                if isinstance(runs, int):
                    continue
                terms = [*self._alive(s, op), (op.nbytes_workspace + self._own_bytes(done - 1, done), 1)]
                self._limit(terms, [runs])
                self._limit_first(terms, before, runs)
                before.append(runs)
            if own:
                terms = [*self._alive(s, own), (own.nbytes_workspace + self._own_bytes(done, done), 1)]
                self._limit(terms, [1])
                self._limit_first(terms, before, 1)
                before.append(1)

    @cached_property
    def _of_others(self) -> Terms:
        """What the other calls of a step have saved, which is in memory all the time."""
        return [(int(self.graph.nbytes_of_others[v]), saved) for v, saved in self.save.items()]

    def _limit(self, terms: Terms, when: list[Literal]) -> None:
        """At most the limit if all of ``when`` are 1."""
        if any(isinstance(w, int) and w == 0 for w in when):
            return
        unknown = [w for w in when if not isinstance(w, int)]
        condition = sum(n * x for n, x in (*terms, *self._of_others) if n) <= self.peak
        if condition is False:
            self.sat.add_bool_or([w.negated() for w in unknown])
        elif condition is not True:
            self.sat.add(condition).only_enforce_if(unknown)

    def _limit_first(self, terms: Terms, before: list[Literal], runs: Literal) -> None:
        """At backward's first run, tangents that nothing reads are in memory too; they are dropped right after it."""
        graph = self.graph
        unread = [v for v in graph.values if v.origin is Origin.TANGENT and not graph.readers[v.id]]
        nbytes = sum(v.nbytes for v in unread if v.id not in graph.bwd_outputs)
        if nbytes and not any(isinstance(b, int) for b in before):
            self._limit([*terms, (nbytes, 1)], [runs, *(b.negated() for b in before if not isinstance(b, int))])

    def _alive_in_forward(self, op: Op) -> Terms:
        """All that forward has made up to ``op`` and that is needed later, or by ``op``."""
        graph = self.graph
        terms: Terms = [(op.nbytes_workspace, 1)]
        for producer in self.movable[: self.movable.index(op) + 1]:
            for v in producer.writes:
                nbytes = graph.values[v].nbytes
                readers = [r for r in graph.readers[v] if r >= op.id and graph.sides[r] is not Side.BACKWARD]
                if producer is op or v in graph.fwd_outputs:
                    terms.append((nbytes, 1))
                else:
                    terms.append((nbytes, self.any_of([self.save.get(v, 0), *(self.early[r] for r in readers)])))
        return terms

    def _alive(self, stage: int, op: Op) -> Terms:
        """Forward's values in memory while backward runs ``op``, without those that the caller holds."""
        graph = self.graph
        is_own = graph.sides[op.id] is Side.BACKWARD
        terms: Terms = []
        for producer in self.movable:
            for v in producer.writes:
                if not (nbytes := graph.values[v].nbytes):
                    continue
                if producer is op:
                    terms.append((nbytes, 1))
                elif producer.id > op.id and not is_own:
                    terms.append((nbytes, self.carried[stage, v]))
                else:
                    terms.append((nbytes, self._needed(stage, v, len(graph.ops) if is_own else op.id)))
        return terms

    def _needed(self, stage: int, value: int, first: int) -> Literal:
        """Whether ``value`` is read in the stage by the op with id ``first`` or a later one, or carried on."""
        graph, own = self.graph, self.stages[stage]
        readers = [r for r in graph.readers[value] if r >= first and (stage, r) in self.again]
        read: list[Literal] = [self.again[stage, r] for r in readers]
        if own and value in graph.touched[own.id]:
            read.append(1)
        if value in self.outputs and read:  # a reader of a saved output reads the caller's copy
            own_copy = self.new()
            for literal in read:
                self.add(literal <= own_copy + self.save.get(value, 0))
            read = [own_copy]
        return self.any_of([*read, self.carried[stage + 1, value]])

    def _own_bytes(self, newest: int, needed: int) -> int:
        """Bytes of forward's outputs, of tangents, and of the results of own ops up to index ``newest``.

        A tangent or result counts if the own op with index ``needed`` or a later one reads it. The results of op
        ``needed`` itself always count.
        """
        graph = self.graph
        index = {op.id: i for i, op in enumerate(self.own)}
        total = sum(graph.values[v].nbytes for v in self.outputs if graph.producer[v] is not None)
        for v in graph.values:
            producer = graph.producer[v.id]
            if v.origin is Origin.TANGENT:
                born = -1
            elif producer in index:
                born = index[producer]
            else:
                continue
            last = max((index.get(r, -1) for r in graph.readers[v.id]), default=-1)
            if born <= newest and (v.id in graph.bwd_outputs or last >= needed or (born == needed and born >= 0)):
                total += v.nbytes
        return total

    # Seconds.

    @cached_property
    def _scale(self) -> float:
        """Integer units per second; 1 if all seconds are whole numbers, so that the optimum is exact."""
        costs = (*self.problem.costs.run, *self.problem.costs.keep)
        most = sum(self.problem.costs.run) * (len(self.stages) + 1) + sum(self.problem.costs.keep)
        whole = all(float(c).is_integer() for c in costs) and most < _MOST_TOTAL
        return 1.0 if whole or not most else _MOST_TOTAL / most

    def _integer(self, seconds: float) -> int:
        return round(seconds * self._scale)

    def seconds(self, objective: float) -> float:
        """The seconds that a value of the objective stands for."""
        return objective / self._scale

    def _minimize_seconds(self) -> None:
        """The objective: seconds of all runs, and of keeping what is saved."""
        run, keep = self.problem.costs.run, self.problem.costs.keep
        terms = [self._integer(run[op.id]) for op in self.own]
        terms += [self._integer(run[op]) * early for op, early in self.early.items()]
        terms += [self._integer(run[op]) * again for (_, op), again in self.again.items()]
        terms += [self._integer(keep[v]) * saved for v, saved in self.save.items()]
        self.sat.minimize(sum(terms))
