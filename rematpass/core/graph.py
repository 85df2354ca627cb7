"""The joint graph as the planner sees it: ops, values, and nothing of torch.

A *value* is a storage together with all its views. A view costs nothing and is replayed wherever it is read, so
views are not ops here: an op reads the storages behind its arguments, through however many views. An op with several
outputs writes several values.

        x ──▶ [op 0: mm] ──▶ value 3 ──▶ [op 1: gelu] ──▶ value 4
        w ──▶        (a transposed view of value 3 is still value 3)

Ids are positions: ``graph.ops[op.id] is op`` and ``graph.values[value.id] is value``. Ops stand in an order in which
they can run. Everything is frozen and goes to JSON and back, so a plan can be made, tested and explained from a file,
on a machine without torch.

Source: the split into forward, backward and what is neither follows torch's ``classify_nodes``
(``torch/_functorch/partitioners.py``); graphs of ops *and* values follow Checkmate (Jain et al., MLSys 2020).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rematpass.core.op import Kind, Op, Origin, Side, Value
from rematpass.core.order import backward_order
from rematpass.core.ragged import Bools, Ints, Rows
from rematpass.errors import GraphError

FORMAT = 1


@dataclass(frozen=True)
class JointGraph:
    """Forward and backward in one graph. Outputs are value ids, without duplicates.

    ``holds_outputs``: whether whoever called forward still has its outputs while backward runs. Else they are gone when
    backward starts, but for what is saved of them.

    ``calls``: how often a step calls forward before the first backward: a block of a model that is compiled by itself
    is called once for each such block. What one call saves is there until its own backward, so the peak, in the last
    call and its backward, counts what the others have saved too. ``own_inputs``: inputs of which each call has its own:
    arguments that differ between a region's calls, and of a block those that need a gradient (a mask or positions,
    which need none, are the same for all).

    ``fuse``: whether the graph was captured for a compiler that fuses pointwise ops (Inductor) or for one that runs op
    by op (``remat_aot_eager``).

    Raises:
        GraphError: an id is not its position, an op reads what nothing before it writes, a value has two producers.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    fwd_outputs: tuple[int, ...]
    bwd_outputs: tuple[int, ...]
    name: str = ""
    device: str = "cpu"
    hints: tuple[tuple[str, int], ...] = ()  # symbol -> the size assumed for it
    holds_outputs: bool = True
    calls: int = 1
    own_inputs: tuple[int, ...] = ()
    fuse: bool = True

    def __post_init__(self) -> None:
        ids: tuple[tuple[str, list[int]], ...] = (
            ("op", [o.id for o in self.ops]),
            ("value", [v.id for v in self.values]),
        )
        for what, found in ids:
            if moved := [position for position, id in enumerate(found) if id != position]:
                raise GraphError(f"{what} {found[moved[0]]} stands at position {moved[0]}; ids are positions")
        known = {v.id for v in self.values if v.origin is not Origin.OP}
        for op in self.ops:
            if unknown := [v for v in op.reads + op.mutates if v not in known]:
                raise GraphError(f"op {op.id} ({op.name}) reads value {unknown[0]}, which nothing before it writes")
            for v in op.writes:
                if v in known or not 0 <= v < len(self.values):
                    raise GraphError(
                        f"op {op.id} ({op.name}) writes value {v}, which has a producer already or no entry"
                    )
                known.add(v)
        if missing := [v for v in self.fwd_outputs + self.bwd_outputs if v not in known]:
            raise GraphError(f"output value {missing[0]} is written by nothing")
        if self.calls < 1:
            raise GraphError(f"a step calls this graph {self.calls} times; it has to be once at least")

    @cached_property
    def producer(self) -> tuple[int | None, ...]:
        """For each value, the op that writes it; None for inputs and tangents."""
        producer: list[int | None] = [None] * len(self.values)
        for op in self.ops:
            for v in op.writes:
                producer[v] = op.id
        return tuple(producer)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the ops that read or overwrite it, in order, each once."""
        readers: list[list[int]] = [[] for _ in self.values]
        for op in self.ops:
            for v in self.touched[op.id]:
                readers[v].append(op.id)
        return tuple(map(tuple, readers))

    @cached_property
    def touched(self) -> tuple[tuple[int, ...], ...]:
        """For each op, the values that it reads or overwrites, each once."""
        return tuple(tuple(dict.fromkeys(op.reads + op.mutates)) for op in self.ops)

    @cached_property
    def touched_rows(self) -> Rows:
        """The same as arrays."""
        return Rows.of(self.touched)

    @cached_property
    def written_rows(self) -> Rows:
        """For each op, the values that it writes."""
        return Rows.of([op.writes for op in self.ops])

    @cached_property
    def producers(self) -> Ints:
        """``producer`` as an array, -1 for None."""
        return np.array([-1 if op is None else op for op in self.producer], np.int64)

    @cached_property
    def _kind_at(self) -> Ints:
        """For each op the place of its kind among ``Kind``'s members."""
        places = {kind: place for place, kind in enumerate(Kind)}
        return np.array([places[op.kind] for op in self.ops], np.int64)

    def is_of(self, kinds: Container[Kind]) -> Bools:
        """For each op, whether it is of one of ``kinds``."""
        return np.array([kind in kinds for kind in Kind])[self._kind_at]

    def made_by(self, kinds: Container[Kind]) -> Bools:
        """For each value, whether an op of one of ``kinds`` makes it."""
        return np.append(self.is_of(kinds), False)[self.producers]

    @cached_property
    def size_rank(self) -> Ints:
        """Of each value: two have the same one when they have as many bytes."""
        return np.unique(self.nbytes, return_inverse=True)[1]

    @cached_property
    def nbytes(self) -> Ints:
        """Of each value."""
        return np.array([v.nbytes for v in self.values], np.int64)

    @cached_property
    def nbytes_of_others(self) -> Ints:
        """Of each value: the bytes that the other calls of a step have of it while one runs, if it is saved."""
        of_each_call = [v.origin is Origin.OP or v.id in self.own_inputs for v in self.values]
        others: Ints = (self.calls - 1) * self.nbytes * np.array(of_each_call, np.int64)
        return others

    @cached_property
    def nbytes_workspace(self) -> Ints:
        """Of each op."""
        return np.array([op.nbytes_workspace for op in self.ops], np.int64)

    @cached_property
    def forward_inputs(self) -> tuple[int, ...]:
        """Values that are there before forward starts."""
        return tuple(v.id for v in self.values if v.origin in (Origin.STATIC, Origin.INPUT))

    @cached_property
    def parameters(self) -> tuple[int, ...]:
        """Values that exist before and after the step."""
        return tuple(v.id for v in self.values if v.origin is Origin.STATIC)

    @cached_property
    def tangents(self) -> tuple[int, ...]:
        """Values that backward is handed when it starts."""
        return tuple(v.id for v in self.values if v.origin is Origin.TANGENT)

    @cached_property
    def held_outputs(self) -> tuple[int, ...]:
        """Outputs of forward that are there for all of backward."""
        return self.fwd_outputs if self.holds_outputs else ()

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """For each op, where it has to run.

        BACKWARD is what depends on a tangent; FORWARD is what forward's outputs depend on; a pinned op takes what it
        depends on (forward) or what depends on it (backward) to its side.
        """
        sides = [op.pinned for op in self.ops]
        from_backward = set(self.tangents)
        for op in self.ops:
            if sides[op.id] is Side.BACKWARD or not from_backward.isdisjoint(op.reads):
                sides[op.id] = Side.BACKWARD
                from_backward.update(op.writes)
        wanted = set(self.fwd_outputs)
        for op in reversed(self.ops):
            if sides[op.id] is Side.FORWARD or (sides[op.id] is Side.EITHER and not wanted.isdisjoint(op.writes)):
                sides[op.id] = Side.FORWARD
                wanted.update(op.reads + op.mutates)
        return tuple(sides)

    @cached_property
    def backward_ops(self) -> tuple[Op, ...]:
        """Backward's own ops in the order in which they run. That is the graph's, but for two things: of two products
        of one gradient, what is returned is made first; and mutations come last, when all has read the bytes that they
        overwrite.
        """
        own = [op for op in self.ops if self.sides[op.id] is Side.BACKWARD]
        return backward_order(own, self.values, frozenset(self.bwd_outputs))

    @cached_property
    def backward_mutations(self) -> tuple[Op, ...]:
        """The last of ``backward_ops``."""
        return tuple(op for op in self.backward_ops if op.kind is Kind.MUTATION)

    @cached_property
    def forward_ops(self) -> tuple[int, ...]:
        """Ids of forward's own ops, in their order."""
        return tuple(op.id for op in self.ops if self.sides[op.id] is Side.FORWARD)

    @cached_property
    def made_in_forward(self) -> frozenset[int]:
        """The values that these write."""
        return frozenset(v for op in self.forward_ops for v in self.ops[op].writes)

    @cached_property
    def is_backward(self) -> Bools:
        """For each op, whether it is backward's own."""
        found: Bools = np.array([side is Side.BACKWARD for side in self.sides], np.bool_)
        return found

    @cached_property
    def runs_once(self) -> frozenset[int]:
        """Ops that must not run a second time: by their nature, because the user saves a result, or as backward's."""
        return frozenset(
            op.id
            for op in self.ops
            if op.never_recompute
            or self.sides[op.id] is Side.BACKWARD
            or any(self.values[v].must_save for v in op.writes)
        )

    @cached_property
    def kept_inputs(self) -> frozenset[int]:
        """The inputs of forward that backward can read."""
        inputs = (self.values[v] for v in self.forward_inputs)
        return frozenset(v.id for v in inputs if not v.mutated and not v.cannot_save)

    @cached_property
    def backward_reads(self) -> frozenset[int]:
        """Values that backward reads or returns and that depend on no tangent: each is saved or recomputed."""
        in_backward = [op for op in self.ops if self.sides[op.id] is Side.BACKWARD]
        made = {v for op in in_backward for v in op.writes}
        wanted = {v for op in in_backward for v in op.reads} | set(self.bwd_outputs)
        return frozenset(v for v in wanted - made if self.values[v].origin is not Origin.TANGENT)

    @cached_property
    def savable(self) -> Bools:
        """For each value, whether it is neither backward's nor an input, and may be saved."""
        free = [self.sides[op.id] is not Side.BACKWARD and not op.must_recompute for op in self.ops]
        can = [v.origin is Origin.OP and not v.cannot_save for v in self.values]
        savable: Bools = np.array(can, np.bool_) & np.array([*free, False])[self.producers]
        return savable

    def marked(self, values: Iterable[int]) -> Bools:
        """For each value, whether it is one of ``values``."""
        marked = np.zeros(len(self.values), np.bool_)
        marked[list(values)] = True
        return marked

    def ancestors(self, values: Iterable[int], stop: Container[int] = frozenset()) -> list[int]:
        """Ops that have to run to make ``values`` out of ``stop`` and the inputs, in their order."""
        producer, ops = self.producer, self.ops
        found: set[int] = set()
        todo = [v for v in values if v not in stop]
        while todo:
            op = producer[todo.pop()]
            if op is not None and op not in found:
                found.add(op)
                for v in ops[op].reads:  # one or two: a comprehension takes longer
                    if v not in stop:
                        todo.append(v)
        return sorted(found)

    def to_json(self) -> str:
        """A JSON document that ``from_json`` reads back into an equal graph."""
        fields = dataclasses.asdict(self)
        if self.fuse:
            del fields["fuse"]  # the default is left out: files and digests stay as they were without this field
        return json.dumps({"format": FORMAT, **fields}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> JointGraph:
        """Read what ``to_json`` wrote.

        Raises:
            GraphError: the text is not JSON, of another format, or not a valid graph.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if not isinstance(data, dict) or "format" not in data:
                raise GraphError("not a joint graph: expected a JSON object with the key 'format'")
            if data.pop("format") != FORMAT:
                raise GraphError(f"this joint graph is of another format than {FORMAT}; capture it again")
            ops = tuple(Op.from_fields(d) for d in data.pop("ops"))
            values = tuple(Value.from_fields(d) for d in data.pop("values"))
            hints = tuple((str(s), int(n)) for s, n in data.pop("hints"))
            fwd, bwd = tuple(data.pop("fwd_outputs")), tuple(data.pop("bwd_outputs"))
            own = tuple(data.pop("own_inputs", ()))
            return cls(ops=ops, values=values, fwd_outputs=fwd, bwd_outputs=bwd, hints=hints, own_inputs=own, **data)
        except GraphError:
            raise
        except KeyError as error:
            raise GraphError(f"not a joint graph: it has no {error}") from error
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise GraphError(f"not a joint graph: {error}") from error
