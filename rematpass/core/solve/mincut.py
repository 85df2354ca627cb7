"""One cut: which values to save and which to recompute, optimal for additive costs and at most one recomputation.

The network has a node per op and a node per value (a storage, with its views). What lies on the sink's side happens
in backward: an op there runs in backward, a value there is available in backward::

                 run[op]            keep[value]             infinite
        source ─────────▶ op ─────────────────▶ value ─────────────────▶ every op' that reads it
           │                                      │
           │  keep[input]                         │ infinite, if backward reads or returns it
           └─────────────▶ input value            └──────────────────────▶ sink

- ``source -> op`` is cut when the op runs again (``_run_arcs``): its seconds; infinite where that is forbidden or
  where the user wants its value saved; 0 for ops of neither side, which run once wherever they are wanted.
- ``op -> value`` is cut when a value is available although its op does not run again (``_keep_arcs``): it is saved.
  Infinite for what cannot be saved and for what the user wants recomputed.
- ``value -> op'`` (``_read_arcs``) makes what a recomputed op reads available too. An op that writes several values
  runs again once for all of them.
- An op of neither side that must not run twice runs in forward when something there is made of it, and then not in
  backward: infinite arcs along the chain of ops of neither side (``_once_arcs``).
- ``source -> input`` is cut when an input is kept for backward: free for a parameter or buffer, its bytes for any
  other; infinite for an input that forward overwrites.

A user's "recompute this" forbids saving the value instead of forcing the op to run, so that what backward never asks
for is not run for nothing. Infinite is 1 + the sum of the finite capacities; a cut that reaches it is reported as the
path that makes it impossible (``ContradictoryMarks``).

Source: the min-cut formulation is Horace He's (torch ``_functorch/partitioners.py``); finite recompute seconds and
value nodes make chains of recomputation part of the optimum. The breakpoints of the parametric cut are found by
chords: Eisner and Severance 1976 (doi 10.1145/321978.321982). Max-flow is OR-tools' push-relabel.
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
from rematpass.errors import ContradictoryMarks, PlanError

_INFINITE = -1  # a mark in arrays of costs, not a capacity

# Capacities are integers. The finite ones add up to at most this, so that the infinite one, taken once for every arc,
# stays inside 64 bits for graphs of a million arcs; rounding then moves the optimum by less than 1e-9 of it.
_FINITE_TOTAL = 1 << 40
ROUNDING = 1 / _FINITE_TOTAL  # of the sum of the finite capacities: how far each of them is off at most


@dataclass(frozen=True)
class Cut:
    """``saved``: ids of the values to keep, inputs included; ``again``: ids of the ops that run in backward besides its
    own; ``cost``: the capacity of the cut, in the unit given."""

    saved: frozenset[int]
    again: frozenset[int]
    cost: float


@dataclass(frozen=True)
class Held:
    """``costs[i]`` falls due when op ``again[i]`` runs again and op ``not_again[i]`` does not: what one reads of the
    other then lies in memory for it. Both are ops that a cut can move; costs are not negative."""

    not_again: tuple[int, ...]
    again: tuple[int, ...]
    costs: NDArray[np.float64]


@dataclass(frozen=True)
class Vertex:
    """A vertex of the trade-off: the cut, its seconds (recompute and keep) and the bytes it saves."""

    cut: Cut
    seconds: float
    nbytes: int
    price: float  # seconds per byte at which it was found


class Network:
    """The network of one graph; solved again and again under different costs."""

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

    def solve(self, run: Sequence[float], keep: Sequence[float] | NDArray[np.float64], held: Held | None = None) -> Cut:
        """The cheapest cut. ``run[op]``: cost of running again; ``keep[value]``: cost of saving; ``held``: what it
        costs besides when one op runs again and another, whose value it reads, does not.

        Raises:
            ContradictoryMarks: a value that backward needs can neither be saved nor recomputed.
        """
        costs = np.concatenate([self._run_costs(run), self._keep_costs(keep), held.costs if held else ()])
        finite = costs[costs >= 0].sum()
        scale = _FINITE_TOTAL / finite if finite > 0 else 1.0
        capacities = np.rint(np.maximum(costs, 0.0) * scale).astype(np.int64)
        infinite = 1 + int(capacities[costs >= 0].sum())
        capacities[costs < 0] = infinite
        arcs, reads = self._priced_arcs, self._infinite_arcs
        if held:
            tails, heads = ([self._op_node[op] for op in ops] for ops in (held.not_again, held.again))
            arcs = (np.append(arcs[0], np.array(tails, np.int32)), np.append(arcs[1], np.array(heads, np.int32)))
        flow = max_flow.SimpleMaxFlow()
        flow.add_arcs_with_capacity(arcs[0], arcs[1], capacities)
        flow.add_arcs_with_capacity(reads[0], reads[1], np.full(len(reads[0]), infinite, np.int64))
        status = flow.solve(self._source, self._sink)
        if status != flow.OPTIMAL:
            raise PlanError(f"max-flow over {len(arcs[0]) + len(reads[0])} arcs ended with {status}, not optimal")
        if flow.optimal_flow() >= infinite:
            raise self._contradiction(costs < 0)
        late = np.zeros(2 + len(self._movable) + len(self._values), np.bool_)
        late[flow.get_sink_side_min_cut()] = True
        makers, values = (nodes[len(self._movable) :] for nodes in self._priced_arcs)
        saved = self._value_ids[late[values] & ~late[makers]]
        again = self._op_ids[late[2 : 2 + len(self._movable)]]
        return Cut(frozenset(saved.tolist()), frozenset(again.tolist()), flow.optimal_flow() / scale)

    def _producer(self, value: int) -> int:
        op = self.graph.producer[value]
        return -1 if op is None else op

    @cached_property
    def _priced_arcs(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """source -> op for every op, then producer (or source) -> value for every value."""
        tails = [self._source] * len(self._movable)
        tails += [self._op_node.get(self._producer(v.id), self._source) for v in self._values]
        heads = [self._op_node[op.id] for op in self._movable] + [self._value_node[v.id] for v in self._values]
        return np.array(tails, np.int32), np.array(heads, np.int32)

    @cached_property
    def _infinite_arcs(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        arcs = [*self._read_arcs(), *self._once_arcs()]
        return np.array([a for a, _ in arcs], np.int32), np.array([b for _, b in arcs], np.int32)

    def _read_arcs(self) -> Iterator[tuple[int, int]]:
        """value -> each op that reads it, and value -> sink where backward needs it."""
        for op in self._movable:
            yield from ((self._value_node[v], self._op_node[op.id]) for v in op.reads)
        yield from ((self._value_node[v], self._sink) for v in sorted(self.graph.backward_reads))

    def _once_arcs(self) -> Iterator[tuple[int, int]]:
        """op -> each op of neither side that it is made of and that must not run twice, at any depth."""
        either = [op for op in self._movable if self.graph.sides[op.id] is Side.EITHER]
        once_above: dict[int, frozenset[int]] = {}  # op -> those of its ancestors, itself included, that run once
        wanted = self._wanted(either)
        for op in either:
            made_of = frozenset().union(*(once_above.get(self._producer(v), frozenset()) for v in op.reads))
            if op.id in wanted:
                yield from ((self._op_node[op.id], self._op_node[ancestor]) for ancestor in sorted(made_of))
            once_above[op.id] = made_of | {op.id} if op.id in self.graph.runs_once else made_of

    def _wanted(self, either: list[Op]) -> set[int]:
        """Ops of neither side that backward needs, directly or through others of them."""
        needed = set(self.graph.backward_reads)
        wanted: set[int] = set()
        for op in reversed(either):
            if not needed.isdisjoint(op.writes):
                wanted.add(op.id)
                needed.update(op.reads)
        return wanted

    def _run_costs(self, run: Sequence[float]) -> NDArray[np.float64]:
        costs = np.asarray(run, np.float64)[self._op_ids]
        costs[self._run_once] = _INFINITE
        costs[self._of_neither_side] = 0.0
        return costs

    def _keep_costs(self, keep: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        costs = np.asarray(keep, np.float64)[self._value_ids]
        costs[self._static] = 0.0
        costs[self._not_saved] = _INFINITE
        return costs

    def _contradiction(self, forbidden: NDArray[np.bool_]) -> ContradictoryMarks:
        """The error for a cut of infinite capacity: a shortest path of arcs that must not be cut."""
        follow: dict[int, list[int]] = {}
        priced = zip(*(a.tolist() for a in self._priced_arcs), forbidden.tolist(), strict=True)
        for tail, head, infinite in priced:
            if infinite:
                follow.setdefault(tail, []).append(head)
        for tail, head in (*self._read_arcs(), *self._once_arcs()):
            follow.setdefault(tail, []).append(head)
        came_from = {self._source: self._source}
        queue = deque([self._source])
        while queue and self._sink not in came_from:
            node = queue.popleft()
            for head in follow.get(node, ()):
                if head not in came_from:
                    came_from[head] = node
                    queue.append(head)
        path = [self._sink]
        while path[-1] != self._source:
            path.append(came_from[path[-1]])
        steps = " -> ".join(filter(None, map(self._describe, reversed(path))))
        return ContradictoryMarks(
            f"backward needs a value that can neither be saved nor recomputed: {steps}. "
            "Take one of the marks back, or keep the op out of the checkpointed region."
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
    network: Network, costs: Costs, most: int = 24, free: frozenset[int] = frozenset()
) -> tuple[Vertex, ...]:
    """The vertices of seconds against saved bytes, from the fastest to the one that saves least.

    At most ``most`` of them, those that bend the curve most first: each is one cut, each chord between neighbours is
    tried once. The first is the optimum at price 0, which breaks ties towards fewer bytes. Values in ``free`` are
    saved in any case, so they cost nothing.
    """
    nbytes = np.array([0 if v.origin is Origin.STATIC or v.id in free else v.nbytes for v in network.graph.values])
    keep = np.array([0.0 if v in free else seconds for v, seconds in enumerate(costs.keep)])

    def at(price: float) -> Vertex:
        cut = network.solve(costs.run, keep + price * nbytes)
        saved = int(nbytes[list(cut.saved)].sum())
        return Vertex(cut, cut.cost - price * saved, saved, price)

    total = costs.step + sum(keep.tolist())
    nothing = total * 1e-9 / max(1, int(nbytes.sum()))
    found = [at(nothing), at(total)]
    chords = [(found[0], found[1])]
    while chords and len(found) < most:
        chords.sort(key=lambda c: (c[0].nbytes - c[1].nbytes) * (c[1].seconds - c[0].seconds))
        left, right = chords.pop()
        if left.nbytes <= right.nbytes or right.seconds <= left.seconds:
            continue
        price = (right.seconds - left.seconds) / (left.nbytes - right.nbytes)
        middle = at(price)
        below = left.seconds + price * left.nbytes - (middle.seconds + price * middle.nbytes)
        if below > 1e-7 * total and right.nbytes < middle.nbytes < left.nbytes:
            found.append(middle)
            chords += [(left, middle), (middle, right)]
    return tuple(sorted(found, key=lambda vertex: -vertex.nbytes))
