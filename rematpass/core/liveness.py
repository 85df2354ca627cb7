"""Who reads which copy, and how long each copy lives: the one replay that the simulator and the solvers share.

(The judge, ``verify.py``, keeps a replay of its own, so that a mistake here cannot hide itself.)
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
    """The runs of forward, then those of backward, in one list, and every copy that they make or read.

    Positions count the runs; -1 is "before the first". Copies are numbered as they come to be: the inputs, what forward
    makes, the tangents, what backward makes.
    """

    runs: RunArrays
    first_backward: int  # the position at which backward starts
    value: Ints  # of each copy
    number: Ints  # of each copy: which of its value's it is
    born: Ints  # of each copy: the position that makes it
    made: Bools  # of each copy: whether a run makes it
    handed_out: Bools  # of each copy: whether it is an output of forward or a gradient
    outlives: Bools  # of each copy: whether it is handed out and lives to the end of backward
    reader: Ints  # run ``reader[i]`` reads copy ``read[i]``; positions ascend
    read: Ints

    @property
    def op(self) -> Ints:
        """The op of each run."""
        return self.runs.op

    @cached_property
    def last_read(self) -> Ints:
        """The position of the last run that reads each copy; -1 where none does."""
        return last_of(self.reader, self.read, len(self.value))

    @cached_property
    def handed_over(self) -> Ints:
        """The position at which forward's outputs are handed over; 0 for other copies."""
        return np.where(self.handed_out, self.first_backward - 1, 0)


def last_of(positions: Ints, of: Ints, count: int) -> Ints:
    """For each of ``count`` things, the highest of the ``positions`` that are ``of`` it; -1 where none is."""
    last = np.full(count, -1, np.int64)
    np.maximum.at(last, of, positions)
    return last


def trace(graph: JointGraph, plan: Plan) -> Trace:
    """Replay ``plan``: which copy each run reads, and all the positions at which a copy is read.

    Raises:
        PlanError: a run reads a value of which no copy lives.
    """
    fwd, bwd = StepArrays.of(plan.fwd), StepArrays.of(plan.bwd)
    split = len(fwd.runs)
    runs = RunArrays(np.append(fwd.runs.op, bwd.runs.op), np.append(fwd.runs.copy, bwd.runs.copy))
    lives = _Lives(graph, runs, split)
    lives.let_go(fwd.value, fwd.copy, fwd.after)
    outputs = lives.newest(np.array(graph.fwd_outputs, np.int64), lives.in_forward, split)
    lives.hand_over(plan.saved)
    lives.let_go(bwd.value, bwd.copy, split + bwd.after)
    reader, asked = graph.touched_rows.take(runs.op)
    read = lives.newest(asked, lives.known[reader], reader)
    if (read < 0).any():
        position = int(reader[np.argmax(read < 0)])
        op = graph.ops[runs.op[position]]
        raise PlanError(f"{plan.solver}: step {position} runs op {op.id} ({op.name}) without its inputs")
    gradients = lives.newest(np.array(graph.bwd_outputs, np.int64), lives.count, len(runs))
    handed_out, outlives = np.zeros(lives.count, np.bool_), np.zeros(lives.count, np.bool_)
    for copies, stay in ((outputs, graph.holds_outputs), (gradients, True)):
        there = copies[copies >= 0]
        handed_out[there] = True
        outlives[there] |= stay
    of_copies = lives.value, lives.number, lives.born, lives.made, handed_out, outlives
    return Trace(runs, split, *of_copies, reader, read)


class _Lives:
    """The copies of one schedule, numbered as they come to be, and when each is let go."""

    def __init__(self, graph: JointGraph, runs: RunArrays, split: int) -> None:
        self.graph, self.split = graph, split
        maker, made = graph.written_rows.take(runs.op)
        handed_in, tangents = (np.array(ids, np.int64) for ids in (graph.handed_in, graph.tangents))
        late = int(np.searchsorted(maker, split))  # backward makes these and what follows

        def in_order(of_inputs: Ints, of_made: Ints, of_tangents: Ints) -> Ints:
            return np.concatenate([of_inputs, of_made[:late], of_tangents, of_made[late:]])

        self.value = in_order(handed_in, made, tangents)
        self.number = in_order(0 * handed_in, runs.copy[maker], 0 * tangents)
        self.born = in_order(np.full_like(handed_in, -1), maker, np.full_like(tangents, split))
        self.made = in_order(0 * handed_in, np.ones_like(maker), 0 * tangents).astype(np.bool_)
        self.count = len(self.value)
        self.in_forward = len(handed_in) + late  # copies that there are when forward has ended
        writes = graph.written_rows.count(runs.op)
        self.known = len(handed_in) + np.cumsum(writes) - writes  # copies that have come to be before each run
        self.known[split:] += len(tangents)
        self.gone = np.full(self.count, _NEVER)  # the first position at which a copy is there no more
        by_value = np.argsort(self.value, kind="stable")
        self._copy_at, self._value_of = np.append(by_value, -1), np.append(self.value, -1)  # at -1 there is none
        self._places = self.value[by_value] * (self.count + 1) + by_value

    def newest(self, values: Ints, known: Ints | int, position: Ints | int) -> Ints:
        """Of each of ``values`` the newest copy that lives at ``position``, where ``known`` copies have come to be.

        -1 where there is none.
        """
        at = np.searchsorted(self._places, values * (self.count + 1) + known) - 1
        while True:
            copy = self._copy_at[at]
            copy[self._value_of[copy] != values] = -1
            stale = (copy >= 0) & (self.gone[copy] <= position)
            if not stale.any():
                return copy
            at = at - stale

    def hand_over(self, saved: Iterable[int]) -> None:
        """Of what there is when forward has ended, only the copies of ``saved`` values go on."""
        kept = self.graph.marked(saved)
        theirs = self.gone[: self.in_forward]
        np.minimum(theirs, self.split, out=theirs, where=~kept[self.value[: self.in_forward]])

    def let_go(self, values: Ints, numbers: Ints, positions: Ints) -> None:
        """Copies, by their values and numbers, are there no more from positions on."""
        most = max(self.number.max(initial=0), numbers.max(initial=0)) + 1
        names = self.value * most + self.number
        order = np.argsort(names)
        at = np.searchsorted(names[order], values * most + numbers)
        found = at < self.count
        copies = order[at[found]]
        meant = (self.value[copies] == values[found]) & (self.number[copies] == numbers[found])
        np.minimum.at(self.gone, copies[meant], positions[found][meant])


def plan_of(graph: JointGraph, solver: str, saved: Iterable[int], fwd: Sequence[Run], bwd: Sequence[Run]) -> Plan:
    """The plan that runs ``fwd`` and ``bwd`` as given and drops every copy after its last use.

    ``saved`` is cut down to what backward reads or returns. What is held from outside is not dropped: inputs in
    forward, parameters, forward's outputs (in backward where the caller holds them), gradients.
    """
    fwd, bwd = RunArrays.of(fwd), RunArrays.of(bwd)
    early, late = _Uses(graph, fwd), _Uses(graph, bwd)
    outputs, gradients = graph.marked(graph.fwd_outputs), graph.marked(graph.bwd_outputs)
    tangents, parameters = graph.marked(graph.tangents), graph.marked(graph.parameters)
    taken_over = late.newest >= 0  # values of which backward makes a copy
    used = graph.marked(saved) & ((late.before >= 0) | (gradients & ~taken_over)) & ~tangents
    held = graph.marked(graph.held_outputs) | (gradients & ~taken_over)

    unread = np.where(tangents & (late.before < 0) & bool(bwd), 0, late.before)
    from_before = np.flatnonzero((unread >= 0) & ~held & ~parameters)
    let_go = ~(used | outputs)[early.value]
    forward = (early.end[let_go], early.value[let_go], early.number[let_go])
    is_gradient = gradients[late.value] & (late.number == late.newest[late.value])
    backward = (
        np.append(unread[from_before], late.end[~is_gradient]),
        np.append(from_before, late.value[~is_gradient]),
        np.append(0 * from_before, late.number[~is_gradient]),
    )
    return Plan(solver, tuple(np.flatnonzero(used).tolist()), _with_drops(fwd, *forward), _with_drops(bwd, *backward))


class _Uses:
    """The copies that some runs make, in their order, and what they read besides."""

    def __init__(self, graph: JointGraph, runs: RunArrays) -> None:
        born, self.value = graph.written_rows.take(runs.op)
        self.number = runs.copy[born]
        reader, asked = graph.touched_rows.take(runs.op)
        order = np.argsort(self.value, kind="stable")
        stride = len(runs) + 1
        at = np.searchsorted(self.value[order] * stride + born[order], asked * stride + reader) - 1
        copy = np.append(order, -1)[at]
        here = (at >= 0) & (np.append(self.value, -1)[copy] == asked)
        self.end = np.maximum(born, last_of(reader[here], copy[here], len(born)))  # of each copy: its last use
        self.before = last_of(reader[~here], asked[~here], len(graph.values))  # of each value: of what was there before
        self.newest = last_of(self.number, self.value, len(graph.values))  # of each value: the number of its last copy


def _with_drops(runs: RunArrays, ends: Ints, values: Ints, copies: Ints) -> StepArrays:
    """``runs``, and the drops of the copies that end with each: position, value and number of each copy."""
    order = np.argsort(ends, kind="stable")
    return StepArrays(runs, values[order], copies[order], ends[order] + 1)
