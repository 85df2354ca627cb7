"""Exhaustive search on small graphs, to check the solvers: all choices, and the fastest schedule under a peak.

It follows from the definitions, not from the solvers: choose which ops run in backward; every value that these ops or
backward read and none of them writes has to be saved; drop the choices for which that is forbidden.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side
from rematpass.core.schedule import Plan, Run


@dataclass(frozen=True)
class Choice:
    """``again``: ops of forward that run again in backward; ``saved``: values saved for backward, inputs included."""

    again: frozenset[int]
    saved: frozenset[int]

    def seconds(self, run: Sequence[int], keep: Sequence[int], graph: JointGraph) -> int:
        """The cost; an op of neither side and keeping a parameter or buffer cost nothing."""
        kept = [v for v in self.saved if graph.values[v].origin is not Origin.STATIC]
        return sum(run[op] for op in self.again) + sum(keep[v] for v in kept)

    def nbytes(self, graph: JointGraph) -> int:
        return sum(v.nbytes for v in graph.values if v.id in self.saved and v.origin is not Origin.STATIC)


def choices(graph: JointGraph) -> Iterator[Choice]:
    """All choices; none if the marks contradict each other."""
    sides = graph.sides
    backward = [op for op in graph.ops if sides[op.id] is Side.BACKWARD]
    made_late = {v for op in backward for v in op.writes} | {v.id for v in graph.values if v.origin is Origin.TANGENT}
    asked_for = ({v for op in backward for v in op.reads} | set(graph.bwd_outputs)) - made_late
    maker = {v: op.id for op in graph.ops for v in op.writes}
    once = {op.id for op in graph.ops if op.never_recompute or any(graph.values[v].must_save for v in op.writes)}
    unsavable = {v.id for v in graph.values if v.cannot_save or (v.mutated and v.id not in maker)}
    unsavable |= {v for op in graph.ops if op.must_recompute for v in op.writes}
    free_to_run = [
        op.id for op in graph.ops if sides[op.id] is Side.EITHER or (sides[op.id] is Side.FORWARD and op.id not in once)
    ]
    for size in range(len(free_to_run) + 1):
        for late in itertools.combinations(free_to_run, size):
            wanted = asked_for.union(*(graph.ops[op].reads for op in late))
            saved = {v for v in wanted if maker.get(v) not in late}
            if saved & unsavable or _runs_twice(graph, saved, once.intersection(late), maker):
                continue
            yield Choice(frozenset(op for op in late if sides[op] is Side.FORWARD), frozenset(saved))


def _runs_twice(graph: JointGraph, saved: set[int], late: set[int], maker: dict[int, int]) -> bool:
    """Whether an op of ``late``, which may run only once, has to run in forward too, to compute a saved value."""
    before: set[int] = set()
    todo = [maker[v] for v in saved if v in maker] if late else []
    while todo:
        op = todo.pop()
        if op not in before:
            before.add(op)
            todo += [maker[v] for v in graph.ops[op].reads if v in maker]
    return not before.isdisjoint(late)


def choice_of(graph: JointGraph, plan: Plan) -> Choice:
    """The choice that a plan makes. A value that backward only overwrites is saved too, but not by choice."""
    read = {v for step in plan.bwd if isinstance(step, Run) for v in graph.ops[step.op].reads}
    again = (run.op for run in plan.recomputed() if graph.sides[run.op] is Side.FORWARD)
    return Choice(frozenset(again), frozenset(plan.saved) & (read | set(graph.bwd_outputs)))


def hull(points: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """The corners of the lower left convex hull, from the smallest first coordinate to the smallest second one."""
    corners: list[tuple[int, int]] = []
    for x, y in sorted(points):
        if corners and y >= corners[-1][1]:
            continue  # dominated by the last corner
        while len(corners) > 1 and _is_not_below(corners[-1], corners[-2], (x, y)):
            corners.pop()
        corners.append((x, y))
    return corners


def _is_not_below(point: tuple[int, int], left: tuple[int, int], right: tuple[int, int]) -> bool:
    (x, y), (x0, y0), (x1, y1) = point, left, right
    return (y - y0) * (x1 - x0) >= (y1 - y0) * (x - x0)


@dataclass(frozen=True)
class _State:
    """Backward between two runs.

    ``done``: how many of backward's own ops have run; ``alive``: values of forward in memory, without outputs that the
    caller holds; ``given``: saved inputs and outputs of forward; ``ran``: ops that must not run twice and have run;
    ``started``: whether any op has run; ``of_others``: bytes that other calls have saved.
    """

    done: int
    alive: frozenset[int]
    given: frozenset[int]
    ran: frozenset[int]
    started: bool
    of_others: int


class Search:
    """The fastest schedule under a peak, by Dijkstra's algorithm over all states of backward.

    The only assumption is that backward's own ops keep their order: any op that may run again can do so at any time and
    any number of times. Bytes are counted without fusion. For graphs of half a dozen ops.
    """

    def __init__(self, graph: JointGraph, costs: Costs) -> None:
        self.graph, self.costs = graph, costs
        sides = graph.sides
        self.own = sorted(
            (op for op in graph.ops if sides[op.id] is Side.BACKWARD), key=lambda op: op.kind is Kind.MUTATION
        )
        self.movable = [op for op in graph.ops if sides[op.id] is not Side.BACKWARD]
        self.maker = {v: op.id for op in graph.ops for v in op.writes}
        self.late = {v for op in self.own for v in op.writes}
        self.tangents = {v.id for v in graph.values if v.origin is Origin.TANGENT}
        self.once = {
            op.id for op in graph.ops if op.never_recompute or any(graph.values[v].must_save for v in op.writes)
        }
        self.outputs = {v for v in graph.fwd_outputs if v in self.maker}
        self.returned = self.outputs if graph.holds_outputs else set()
        self.own_bytes = [self._own_bytes(done) for done in range(len(self.own) + 1)]

    def _own_bytes(self, done: int) -> tuple[int, int]:
        """Bytes of outputs, tangents and backward's own values when ``done`` own ops have run: before the next own op
        runs, and while it runs."""
        before = sum(self.graph.values[v].nbytes for v in self.returned)
        while_it_runs = before
        place = {op.id: i for i, op in enumerate(self.own)}
        for v in self.tangents | self.late:
            nbytes = self.graph.values[v].nbytes
            born = place[self.maker[v]] if v in self.late else -1
            reads = [place[r] for r in self.graph.readers[v] if r in place]
            end = len(self.own) if v in self.graph.bwd_outputs else max([born, *reads])
            before += nbytes * (born < done <= end)
            while_it_runs += nbytes * (born <= done <= end)
        return before, while_it_runs

    def seconds(self, peak: int) -> float:
        """The seconds of the fastest schedule; infinite if there is none."""
        queue = [(cost, i, state) for i, (cost, state) in enumerate(self._starts(peak))]
        heapq.heapify(queue)
        fresh, settled = itertools.count(len(queue)), set()
        while queue:
            cost, _, state = heapq.heappop(queue)
            if state in settled:
                continue
            settled.add(state)
            if state.done == len(self.own) and self._is_available(state, self.graph.bwd_outputs):
                return cost
            for more, after in self._next(state, peak):
                if after not in settled:
                    heapq.heappush(queue, (cost + more, next(fresh), after))
        return math.inf

    def _is_available(self, state: _State, values: Iterable[int]) -> bool:
        return all(v in state.alive or v in state.given or v in self.late or v in self.tangents for v in values)

    def _starts(self, peak: int) -> Iterator[tuple[float, _State]]:
        graph, sides = self.graph, self.graph.sides
        either = [op.id for op in self.movable if sides[op.id] is Side.EITHER]
        for early in _subsets(either):
            runs = [op for op in self.movable if sides[op.id] is Side.FORWARD or op.id in early]
            made = {v for op in runs for v in op.writes}
            if any(self.maker.get(v, -1) >= 0 and v not in made for op in runs for v in op.reads):
                continue
            marked = {v for op in runs if op.must_recompute for v in op.writes}
            mutated_late = {v for op in self.own for v in op.mutates}
            inputs = [v for v in graph.kept_inputs | mutated_late if not graph.values[v].cannot_save]
            savable = [v for v in made - marked if not graph.values[v].cannot_save]
            for saved in _subsets([*savable, *inputs]):
                counted = [v for v in saved if v in self.maker or v in graph.own_inputs]
                of_others = (graph.calls - 1) * sum(graph.values[v].nbytes for v in counted)
                if self._forward_peak(runs, saved) + of_others <= peak:
                    cost = sum(self.costs.run[op.id] for op in runs) + sum(self.costs.keep[v] for v in saved)
                    given = frozenset(v for v in saved if v in self.returned or v not in self.maker)
                    ran = frozenset(
                        op.id for op in runs if op.id in self.once or (sides[op.id] is Side.FORWARD and op.mutates)
                    )
                    yield cost, _State(0, saved - given, given, ran, False, of_others)

    def _forward_peak(self, runs: list[Op], saved: frozenset[int]) -> int:
        highest = 0
        for position, op in enumerate(runs):
            alive = op.nbytes_workspace
            for maker in runs[: position + 1]:
                for v in maker.writes:
                    read = any(v in graph_op.reads + graph_op.mutates for graph_op in runs[position:])
                    alive += self.graph.values[v].nbytes * (maker is op or read or v in saved or v in self.outputs)
            highest = max(highest, alive)
        return highest

    def _next(self, state: _State, peak: int) -> Iterator[tuple[float, _State]]:
        graph = self.graph
        nbytes = sum(graph.values[v].nbytes for v in state.alive) + state.of_others
        before, while_it_runs = self.own_bytes[state.done]
        if not state.started:  # tangents that no op reads live through the first run
            unread = [v for v in self.tangents if not graph.readers[v] and v not in graph.bwd_outputs]
            extra = sum(graph.values[v].nbytes for v in unread)
            nbytes += extra
        for v in state.alive:
            yield 0, dataclasses.replace(state, alive=state.alive - {v})
        if state.done < len(self.own):
            op = self.own[state.done]
            if self._is_available(state, graph.touched[op.id]) and nbytes + while_it_runs + op.nbytes_workspace <= peak:
                yield self.costs.run[op.id], dataclasses.replace(state, done=state.done + 1, started=True)
        overwritten = {v for op in self.own[: state.done] for v in op.mutates}
        overwritten |= {v.id for v in graph.values if v.mutated}
        for op in self.movable:
            if op.id in state.ran or (op.id in self.once and graph.sides[op.id] is Side.FORWARD) or op.mutates:
                continue
            if not self._is_available(state, op.reads) or not overwritten.isdisjoint(op.reads):
                continue
            made = sum(graph.values[v].nbytes for v in op.writes)
            if nbytes + before + made + op.nbytes_workspace <= peak:
                ran = state.ran | {op.id} if op.id in self.once else state.ran
                alive = state.alive | (frozenset(op.writes) - state.given)
                yield self.costs.run[op.id], dataclasses.replace(state, alive=alive, ran=ran, started=True)


def _subsets(things: Sequence[int]) -> Iterator[frozenset[int]]:
    for size in range(len(things) + 1):
        yield from map(frozenset, itertools.combinations(sorted(things), size))
