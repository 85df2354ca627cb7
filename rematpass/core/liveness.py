"""Which copy each run reads, and how long each copy lives. The simulator and the solvers share this replay.

``replay`` follows a given plan. ``plan_of`` goes the other way: it adds the drops to a sequence of runs. (The judge,
``verify``, has a replay of its own, so that a mistake here cannot hide itself.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rematpass.core.graph import JointGraph
from rematpass.core.ragged import Bools, Ints
from rematpass.core.schedule import Plan, Run, RunArrays, StepArrays
from rematpass.errors import PlanError

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Trace:
    """All runs of a plan, forward's then backward's, with all copies that they create or read.

    A *position* is the index of a run; -1 is before the first run. A copy is identified by its index in the order of
    creation: forward's inputs, the copies that forward creates, the tangents, the copies that backward creates.
    """

    runs: RunArrays
    first_backward: int  # position of backward's first run
    value: Ints  # per copy: its value
    number: Ints  # per copy: its number among the copies of its value, as ``Run.copy``
    born: Ints  # per copy: position of the run that creates it; -1 for inputs, ``first_backward`` for tangents
    made: Bools  # per copy: whether a run creates it
    is_output: Bools  # per copy: whether it is an output of forward or a gradient
    outlives: Bools  # per copy: whether it is an output that lives to the end of backward
    reader: Ints  # per read: position of the run, ascending
    read: Ints  # per read: the copy

    @property
    def op(self) -> Ints:
        """The op of each run."""
        return self.runs.op

    @cached_property
    def last_read(self) -> Ints:
        """Per copy: position of the last run that reads it; -1 if none does."""
        return last_position(self.reader, self.read, len(self.value))

    @cached_property
    def returned_at(self) -> Ints:
        """Per copy: the position at which forward returns it as an output; 0 for copies that are not outputs."""
        return np.where(self.is_output, self.first_backward - 1, 0)


def last_position(positions: Ints, things: Ints, count: int) -> Ints:
    """For each of the things 0 to ``count`` - 1, the highest of its ``positions``; -1 if it has none."""
    last = np.full(count, -1, np.int64)
    np.maximum.at(last, things, positions)
    return last


def replay(graph: JointGraph, plan: Plan) -> Trace:
    """Follow ``plan``, and find the copy behind every read: the newest one that lives.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    fwd, bwd = StepArrays.of(plan.fwd), StepArrays.of(plan.bwd)
    first_backward = len(fwd.runs)
    runs = RunArrays(np.append(fwd.runs.op, bwd.runs.op), np.append(fwd.runs.copy, bwd.runs.copy))
    copies = _Copies(graph, runs, first_backward)
    copies.drop(fwd.value, fwd.copy, fwd.after)
    outputs = copies.newest(np.array(graph.fwd_outputs, np.int64), copies.before_backward, first_backward)
    copies.drop_unsaved(plan.saved)
    copies.drop(bwd.value, bwd.copy, first_backward + bwd.after)
    reader, argument = graph.touched_rows.take(runs.op)
    read = copies.newest(argument, copies.before_run[reader], reader)
    if (read < 0).any():
        position = int(reader[np.argmax(read < 0)])
        op = graph.ops[runs.op[position]]
        raise PlanError(f"{plan.solver}: step {position} runs op {op.id} ({op.name}) without its inputs")
    gradients = copies.newest(np.array(graph.bwd_outputs, np.int64), copies.count, len(runs))
    is_output, outlives = np.zeros(copies.count, np.bool_), np.zeros(copies.count, np.bool_)
    for found, held in ((outputs, graph.holds_outputs), (gradients, True)):
        existing = found[found >= 0]
        is_output[existing] = True
        outlives[existing] |= held
    of_copies = copies.value, copies.number, copies.born, copies.made, is_output, outlives
    return Trace(runs, first_backward, *of_copies, reader, read)


class _Copies:
    """All copies of one schedule, in the order of creation, and the position at which each is dropped."""

    def __init__(self, graph: JointGraph, runs: RunArrays, first_backward: int) -> None:
        self.graph, self.first_backward = graph, first_backward
        maker, made = graph.written_rows.take(runs.op)
        inputs, tangents = (np.array(ids, np.int64) for ids in (graph.forward_inputs, graph.tangents))
        of_backward = int(np.searchsorted(maker, first_backward))  # backward creates ``made[of_backward:]``

        def in_order(of_inputs: Ints, of_made: Ints, of_tangents: Ints) -> Ints:
            return np.concatenate([of_inputs, of_made[:of_backward], of_tangents, of_made[of_backward:]])

        self.value = in_order(inputs, made, tangents)
        self.number = in_order(0 * inputs, runs.copy[maker], 0 * tangents)
        self.born = in_order(np.full_like(inputs, -1), maker, np.full_like(tangents, first_backward))
        self.made = in_order(0 * inputs, np.ones_like(maker), 0 * tangents).astype(np.bool_)
        self.count = len(self.value)
        self.before_backward = len(inputs) + of_backward  # the number of copies created before backward starts
        writes = graph.written_rows.count(runs.op)
        self.before_run = len(inputs) + np.cumsum(writes) - writes  # per run: the number of copies created before it
        self.before_run[first_backward:] += len(tangents)
        self.dropped_at = np.full(self.count, _NEVER)  # per copy: the first position at which it does not live
        # All (value, copy) pairs as ascending keys, to find the newest copy of a value by bisection. The last entry of
        # both lookup arrays stands for "no copy": index -1.
        by_value = np.argsort(self.value, kind="stable")
        self._keys = self.value[by_value] * (self.count + 1) + by_value
        self._copy_at, self._value_of = np.append(by_value, -1), np.append(self.value, -1)

    def newest(self, values: Ints, created: Ints | int, position: Ints | int) -> Ints:
        """For each of ``values``, its newest copy among the first ``created`` that lives at ``position``; else -1."""
        at = np.searchsorted(self._keys, values * (self.count + 1) + created) - 1
        while True:
            copy = self._copy_at[at]
            copy[self._value_of[copy] != values] = -1
            dead = (copy >= 0) & (self.dropped_at[copy] <= position)
            if not dead.any():
                return copy
            at = at - dead  # one copy back where the newest is dead

    def drop_unsaved(self, saved: Iterable[int]) -> None:
        """Drop all copies of forward except those of ``saved`` values when backward starts."""
        kept = self.graph.marked(saved)
        of_forward = self.dropped_at[: self.before_backward]
        np.minimum(of_forward, self.first_backward, out=of_forward, where=~kept[self.value[: self.before_backward]])

    def drop(self, values: Ints, numbers: Ints, positions: Ints) -> None:
        """Drop copies, given by their values and numbers, at ``positions``; copies that do not exist are ignored."""
        stride = max(self.number.max(initial=0), numbers.max(initial=0)) + 1
        keys = self.value * stride + self.number
        order = np.argsort(keys)
        at = np.searchsorted(keys[order], values * stride + numbers)
        in_range = at < self.count
        copies = order[at[in_range]]
        found = (self.value[copies] == values[in_range]) & (self.number[copies] == numbers[in_range])
        np.minimum.at(self.dropped_at, copies[found], positions[in_range][found])


def plan_of(graph: JointGraph, solver: str, saved: Iterable[int], fwd: Sequence[Run], bwd: Sequence[Run]) -> Plan:
    """The plan that runs ``fwd`` and ``bwd`` as given and drops every copy after its last use.

    ``saved`` is reduced to the values that backward reads or returns. Copies that are held from outside are not
    dropped: inputs in forward, parameters, forward's outputs (in backward only if the caller holds them), gradients.
    """
    fwd, bwd = RunArrays.of(fwd), RunArrays.of(bwd)
    in_fwd, in_bwd = _Uses(graph, fwd), _Uses(graph, bwd)
    outputs, gradients = graph.marked(graph.fwd_outputs), graph.marked(graph.bwd_outputs)
    tangents, parameters = graph.marked(graph.tangents), graph.marked(graph.parameters)
    remade = in_bwd.newest >= 0  # values of which backward creates a copy
    used = graph.marked(saved) & ((in_bwd.last_read_before >= 0) | (gradients & ~remade)) & ~tangents
    held = graph.marked(graph.held_outputs) | (gradients & ~remade)

    # Copies that exist when backward starts: dropped after their last read, unread tangents after backward's first run.
    last = np.where(tangents & (in_bwd.last_read_before < 0) & bool(bwd), 0, in_bwd.last_read_before)
    existing = np.flatnonzero((last >= 0) & ~held & ~parameters)
    dead = ~(used | outputs)[in_fwd.value]
    drops_fwd = (in_fwd.end[dead], in_fwd.value[dead], in_fwd.number[dead])
    is_gradient = gradients[in_bwd.value] & (in_bwd.number == in_bwd.newest[in_bwd.value])
    drops_bwd = (
        np.append(last[existing], in_bwd.end[~is_gradient]),
        np.append(existing, in_bwd.value[~is_gradient]),
        np.append(0 * existing, in_bwd.number[~is_gradient]),
    )
    return Plan(
        solver, tuple(np.flatnonzero(used).tolist()), _with_drops(fwd, *drops_fwd), _with_drops(bwd, *drops_bwd)
    )


class _Uses:
    """The copies that the runs of one side create, and the reads of copies that existed before.

    ``value``, ``number``, ``end``: per copy created, in order: its value, its number, and the position of its last use.
    ``last_read_before``: per value: position of the last read of a copy that existed before; -1 if there is none.
    ``newest``: per value: the number of the last copy created; -1 if there is none.
    """

    def __init__(self, graph: JointGraph, runs: RunArrays) -> None:
        born, self.value = graph.written_rows.take(runs.op)
        self.number = runs.copy[born]
        reader, argument = graph.touched_rows.take(runs.op)
        order = np.argsort(self.value, kind="stable")
        stride = len(runs) + 1
        at = np.searchsorted(self.value[order] * stride + born[order], argument * stride + reader) - 1
        copy = np.append(order, -1)[at]
        created_here = (at >= 0) & (np.append(self.value, -1)[copy] == argument)
        self.end = np.maximum(born, last_position(reader[created_here], copy[created_here], len(born)))
        self.last_read_before = last_position(reader[~created_here], argument[~created_here], len(graph.values))
        self.newest = last_position(self.number, self.value, len(graph.values))


def _with_drops(runs: RunArrays, ends: Ints, values: Ints, copies: Ints) -> StepArrays:
    """``runs``, with a drop of copy ``copies[i]`` of ``values[i]`` after the run at position ``ends[i]``."""
    order = np.argsort(ends, kind="stable")
    return StepArrays(runs, values[order], copies[order], ends[order] + 1)
