"""One minimum cut: which values to save and which to recompute, optimal for additive costs.

It decides for at most one recomputation of each op. The network has a node per op and a node per value (a storage with
all its views). A cut costs the arcs that lead from the source's side to the sink's. The sink's side is backward: an op
there is recomputed, a value there is available::

                 run[op]            keep[value]             infinite
        source ─────────▶ op ─────────────────▶ value ─────────────────▶ every op' that reads it
           │                                      │
           │  keep[input]                         │ infinite, if backward reads or returns it
           └─────────────▶ input value            └──────────────────────▶ sink

- ``source -> op`` is cut if the op is recomputed (``_run_costs``). Capacity: its seconds; infinite if the op must run
  once or the user wants its value saved; 0 for an op of neither side, which runs once wherever it is needed.
- ``op -> value`` is cut if the value is available but its op is not recomputed: the value is saved (``_keep_costs``).
  Infinite if the value cannot be saved or the user wants it recomputed.
- ``source -> input`` is cut if an input of forward is kept for backward (``_keep_costs``). Free for a parameter or
  buffer; infinite for an input that forward overwrites.
- ``value -> op'`` is infinite: a recomputed op needs its arguments (``_read_arcs``). An op with several results is
  recomputed once for all of them.
- ``value -> sink`` is infinite: backward needs the value (``_read_arcs``).
- ``op -> op'`` is infinite where both belong to neither side, op' must run once, and op is computed from it: if forward
  needs op, it also runs op', and then backward must not (``_once_arcs``).

A user's "recompute this" forbids saving the value instead of forcing the op to run: what backward never needs is not
run for nothing. "Infinite" is 1 + the sum of the finite capacities. A cut that reaches it means that no plan exists; it
is reported as the path that makes it impossible (``ContradictoryMarks``).

One price for every byte gives one cut; all prices together give the *parametric* cut, whose vertices trade seconds for
saved bytes (``breakpoints``).

Source: the min-cut formulation is Horace He's (torch ``_functorch/partitioners.py``); finite recompute seconds and
value nodes make chains of recomputation part of the optimum. The vertices of the parametric cut are found by chords:
Eisner and Severance 1976 (doi 10.1145/321978.321982). Max-flow is OR-tools' push-relabel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from ortools.graph.python import max_flow

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Origin, Side, Value
from rematpass.core.ragged import Bools, Floats
from rematpass.core.solve.effort import DEFAULT_EFFORT
from rematpass.errors import ContradictoryMarks, PlanError

_INFINITE = -1  # a mark in arrays of costs, not a capacity

# Capacities are integers. The finite ones add up to at most this, so that the sum of all capacities, infinite ones
# included, fits 64 bits for graphs of a million arcs; rounding moves the optimum by less than 1e-9 of it.
_FINITE_TOTAL = 1 << 40
ROUNDING = 1 / _FINITE_TOTAL  # the largest rounding error of a capacity, as a share of the sum of the finite ones

_TIE_BREAK = 1e-9  # of all seconds: what all bytes together cost at "price 0", so that equal cuts save fewer bytes
_ON_THE_CHORD = 1e-7  # of all seconds: a vertex that lies closer to its chord differs only by rounding


@dataclass(frozen=True)
class Cut:
    """``saved``: ids of the values to save, inputs included. ``recomputed``: ids of the ops that backward runs besides
    its own. ``cost``: the capacity of the cut, in the unit of the costs given."""

    saved: frozenset[int]
    recomputed: frozenset[int]
    cost: float


@dataclass(frozen=True)
class PairwiseCosts:
    """Costs of two decisions together.

    ``costs[i]`` is due if op ``recomputed[i]`` is recomputed and op ``not_recomputed[i]`` is not.
    Each becomes an arc between two op nodes. All costs are non-negative, and no op is backward's own.
    """

    not_recomputed: tuple[int, ...]
    recomputed: tuple[int, ...]
    costs: Floats


@dataclass(frozen=True)
class Vertex:
    """A vertex of the trade-off between seconds and saved bytes."""

    cut: Cut
    seconds: float  # of recomputing and of keeping
    nbytes: int  # of saved values
    price: float  # seconds per byte at which the cut is optimal


class Network:
    """The network of one graph, which can be solved under different costs."""

    def __init__(self, graph: JointGraph) -> None:
        self.graph = graph
        self._movable = [op for op in graph.ops if graph.sides[op.id] is not Side.BACKWARD]
        made_late = {v for op in graph.ops if graph.sides[op.id] is Side.BACKWARD for v in op.writes}
        self._values = [v for v in graph.values if v.id not in made_late and v.origin is not Origin.TANGENT]
        self._source, self._sink = 0, 1
        self._op_node = {op.id: 2 + i for i, op in enumerate(self._movable)}
        first = 2 + len(self._movable)
        self._value_node = {v.id: first + i for i, v in enumerate(self._values)}
        self._op_ids = np.array([op.id for op in self._movable], np.int64)
        self._value_ids = np.array([v.id for v in self._values], np.int64)
        self._run_once = np.array([op.id in graph.runs_once for op in self._movable], np.bool_)
        self._of_neither_side = np.array([graph.sides[op.id] is Side.EITHER for op in self._movable], np.bool_)
        self._static = np.array([v.origin is Origin.STATIC for v in self._values], np.bool_)
        self._not_saved = np.array([self._cannot_be_saved(v) for v in self._values], np.bool_)

    def _cannot_be_saved(self, value: Value) -> bool:
        op = self._producer(value.id)
        return bool(value.cannot_save or (value.mutated and op < 0) or (op >= 0 and self.graph.ops[op].must_recompute))

    def solve(self, run: Sequence[float], keep: Sequence[float] | Floats, pairwise: PairwiseCosts | None = None) -> Cut:
        """The cheapest cut.

        ``run[op]``: the cost of recomputing an op; ``keep[value]``: the cost of saving a value; ``pairwise``: costs of
        pairs of decisions. All in one unit, of the caller's choice.

        Raises:
            ContradictoryMarks: a value that backward needs can neither be saved nor recomputed.
            PlanError: the max-flow solver fails.
        """
        costs = np.concatenate([self._run_costs(run), self._keep_costs(keep), pairwise.costs if pairwise else ()])
        finite = costs[costs >= 0].sum()
        scale = _FINITE_TOTAL / finite if finite > 0 else 1.0
        capacities = np.rint(np.maximum(costs, 0.0) * scale).astype(np.int64)
        infinite = 1 + int(capacities[costs >= 0].sum())
        capacities[costs < 0] = infinite
        arcs, uncuttable = self._priced_arcs, self._infinite_arcs
        if pairwise:
            pairs = (pairwise.not_recomputed, pairwise.recomputed)
            tails, heads = ([self._op_node[op] for op in ops] for ops in pairs)
            arcs = (np.append(arcs[0], np.array(tails, np.int32)), np.append(arcs[1], np.array(heads, np.int32)))
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(arcs[0], arcs[1], capacities)
        flow.add_arcs_with_capacity(*uncuttable, np.full(len(uncuttable[0]), infinite, np.int64))
        status = flow.solve(self._source, self._sink)
        if status != flow.OPTIMAL:
            count = len(arcs[0]) + len(uncuttable[0])
            raise PlanError(f"max-flow over {count} arcs ended with status {status}, which is not optimal")
        if flow.optimal_flow() >= infinite:
            raise self._contradiction(costs < 0)
        in_backward = np.zeros(2 + len(self._movable) + len(self._values), np.bool_)
        in_backward[flow.get_sink_side_min_cut()] = True
        producers, values = (nodes[len(self._movable) :] for nodes in self._priced_arcs)
        saved = self._value_ids[in_backward[values] & ~in_backward[producers]]
        recomputed = self._op_ids[in_backward[2 : 2 + len(self._movable)]]
        return Cut(frozenset(saved.tolist()), frozenset(recomputed.tolist()), flow.optimal_flow() / scale)

    def _producer(self, value: int) -> int:
        op = self.graph.producer[value]
        return -1 if op is None else op

    @cached_property
    def _priced_arcs(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """``source -> op`` for each op, then ``op -> value`` or ``source -> input`` for each value: (tails, heads)."""
        tails = [self._source] * len(self._movable)
        tails += [self._op_node.get(self._producer(v.id), self._source) for v in self._values]
        heads = [self._op_node[op.id] for op in self._movable] + [self._value_node[v.id] for v in self._values]
        return np.array(tails, np.int32), np.array(heads, np.int32)

    @cached_property
    def _infinite_arcs(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        arcs = [*self._read_arcs(), *self._once_arcs()]
        return np.array([a for a, _ in arcs], np.int32), np.array([b for _, b in arcs], np.int32)

    def _read_arcs(self) -> Iterator[tuple[int, int]]:
        """``value -> op'`` for each op that reads the value, and ``value -> sink`` where backward needs it."""
        for op in self._movable:
            yield from ((self._value_node[v], self._op_node[op.id]) for v in op.reads)
        yield from ((self._value_node[v], self._sink) for v in sorted(self.graph.backward_reads))

    def _once_arcs(self) -> Iterator[tuple[int, int]]:
        """``op -> op'`` for an op of neither side and each run-once op that it is computed from, at any depth."""
        either = [op for op in self._movable if self.graph.sides[op.id] is Side.EITHER]
        once_above: dict[int, frozenset[int]] = {}  # op -> its ancestors, and itself, that must run once
        wanted = self._wanted(either)
        for op in either:
            ancestors = frozenset().union(*(once_above.get(self._producer(v), frozenset()) for v in op.reads))
            if op.id in wanted:
                yield from ((self._op_node[op.id], self._op_node[ancestor]) for ancestor in sorted(ancestors))
            once_above[op.id] = ancestors | {op.id} if op.id in self.graph.runs_once else ancestors

    def _wanted(self, either: list[Op]) -> set[int]:
        """Ops of neither side that backward needs, directly or through other ops of neither side."""
        needed = set(self.graph.backward_reads)
        wanted: set[int] = set()
        for op in reversed(either):
            if not needed.isdisjoint(op.writes):
                wanted.add(op.id)
                needed.update(op.reads)
        return wanted

    def _run_costs(self, run: Sequence[float]) -> Floats:
        """Capacities of ``source -> op``, before scaling."""
        costs = np.asarray(run, np.float64)[self._op_ids]
        costs[self._run_once] = _INFINITE
        costs[self._of_neither_side] = 0.0
        return costs

    def _keep_costs(self, keep: Sequence[float] | Floats) -> Floats:
        """Capacities of ``op -> value`` and ``source -> input``, before scaling."""
        costs = np.asarray(keep, np.float64)[self._value_ids]
        costs[self._static] = 0.0
        costs[self._not_saved] = _INFINITE
        return costs

    def _contradiction(self, forbidden: Bools) -> ContradictoryMarks:
        """The error for a cut of infinite capacity: it names a shortest path of arcs that must not be cut."""
        successors: dict[int, list[int]] = {}
        priced = zip(*(a.tolist() for a in self._priced_arcs), forbidden.tolist(), strict=True)
        for tail, head, infinite in priced:
            if infinite:
                successors.setdefault(tail, []).append(head)
        for tail, head in (*self._read_arcs(), *self._once_arcs()):
            successors.setdefault(tail, []).append(head)
        came_from = {self._source: self._source}
        queue = deque([self._source])
        while queue and self._sink not in came_from:
            node = queue.popleft()
            for head in successors.get(node, ()):
                if head not in came_from:
                    came_from[head] = node
                    queue.append(head)
        path = [self._sink]
        while path[-1] != self._source:
            path.append(came_from[path[-1]])
        steps = " -> ".join(filter(None, map(self._describe, reversed(path))))
        return ContradictoryMarks(
            f"backward needs a value that can neither be saved nor recomputed: {steps}. "
            "Remove one of these marks, or move the op out of the checkpointed region."
        )

    def _describe(self, node: int) -> str:
        graph = self.graph
        if node == self._source:
            return ""
        if node == self._sink:
            return "backward"
        if node < 2 + len(self._movable):
            op = self._movable[node - 2]
            marked = any(graph.values[v].must_save for v in op.writes)
            reason = op.never_recompute or ("marked to be saved" if marked else "")
            return f"op {op.name or op.id}" + (f" (never recomputed: {reason})" if reason else "")
        value = self._values[node - 2 - len(self._movable)]
        op_id = self._producer(value.id)
        reason = value.cannot_save or ("forward overwrites it" if value.mutated else "")
        if op_id >= 0 and graph.ops[op_id].must_recompute:
            reason = "marked to be recomputed"
        return f"value {value.name or value.id}" + (f" (never saved: {reason})" if reason else "")


def breakpoints(
    network: Network, costs: Costs, most: int = DEFAULT_EFFORT.mincut_vertices, free: frozenset[int] = frozenset()
) -> tuple[Vertex, ...]:
    """The vertices of the parametric cut, from the fastest to the one that saves the fewest bytes.

    At most ``most`` vertices, the ones that bend the curve most first: each costs one cut, and each chord between
    neighbours is tried once. The first vertex is the optimum at price 0, with ties broken towards fewer bytes. Values
    in ``free`` are saved in any case, so saving them costs nothing.

    Raises:
        ContradictoryMarks: no plan exists.
    """
    nbytes = np.array([0 if v.origin is Origin.STATIC or v.id in free else v.nbytes for v in network.graph.values])
    keep = np.array([0.0 if v in free else seconds for v, seconds in enumerate(costs.keep)])

    def vertex_at(price: float) -> Vertex:
        cut = network.solve(costs.run, keep + price * nbytes)
        saved = int(nbytes[list(cut.saved)].sum())
        return Vertex(cut, cut.cost - price * saved, saved, price)

    total = costs.step + sum(keep.tolist())
    almost_free = total * _TIE_BREAK / max(1, int(nbytes.sum()))
    found = [vertex_at(almost_free), vertex_at(total)]
    chords = [(found[0], found[1])]
    while chords and len(found) < most:
        chords.sort(key=lambda c: (c[0].nbytes - c[1].nbytes) * (c[1].seconds - c[0].seconds))
        left, right = chords.pop()
        if left.nbytes <= right.nbytes or right.seconds <= left.seconds:
            continue
        price = (right.seconds - left.seconds) / (left.nbytes - right.nbytes)
        middle = vertex_at(price)
        below = left.seconds + price * left.nbytes - (middle.seconds + price * middle.nbytes)
        if below > _ON_THE_CHORD * total and right.nbytes < middle.nbytes < left.nbytes:
            found.append(middle)
            chords += [(left, middle), (middle, right)]
    return tuple(sorted(found, key=lambda vertex: -vertex.nbytes))
