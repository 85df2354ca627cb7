"""The joint graph as the planner sees it: ops and values, without torch.

        x ──▶ [op 0: mm] ──▶ value 3 ──▶ [op 1: gelu] ──▶ value 4
        w ──▶        (a transposed view of value 3 is still value 3)

Ids are positions: ``graph.ops[op.id] is op`` and ``graph.values[value.id] is value``. Ops are listed in an order in
which they can run. Everything is frozen and converts to JSON and back, so a plan can be made, tested and explained from
a file, on a machine without torch.

Source: graphs of ops *and* values follow Checkmate (Jain et al., MLSys 2020).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rematpass.core.graph_arrays import GraphArrays
from rematpass.core.op import Kind, Op, Origin, Side, Value
from rematpass.core.order import backward_order
from rematpass.core.sides import classify
from rematpass.errors import GraphError

FORMAT = 1


@dataclass(frozen=True)
class JointGraph(GraphArrays):
    """Forward and backward in one graph. Outputs are value ids, without duplicates.

    ``holds_outputs``: whether the caller of forward holds its outputs while backward runs. If not, outputs that are not
    saved are freed when backward starts.

    ``calls``: how often a step calls forward before the first backward: a block of a model that is compiled by itself
    is called once per block. What a call saves lives until its own backward, so the peak, which is reached in the last
    call or its backward, includes what the other calls have saved. ``own_inputs``: inputs that differ between the
    calls: arguments of a region that are not the same in all of them, and those of a block that need a gradient (a mask
    or positions, which need none, are shared).

    ``fuse``: whether the graph was captured for a compiler that fuses pointwise ops (Inductor) or for one that runs op
    by op (``remat_aot_eager``).

    Raises:
        GraphError: an id is not its position, an op reads a value before it is written, a value has two producers.
    """

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    fwd_outputs: tuple[int, ...]
    bwd_outputs: tuple[int, ...]
    name: str = ""
    device: str = "cpu"
    hints: tuple[tuple[str, int], ...] = ()  # (symbol, the size assumed for it)
    holds_outputs: bool = True
    calls: int = 1
    own_inputs: tuple[int, ...] = ()
    fuse: bool = True

    def __post_init__(self) -> None:
        for what, ids in (("op", [o.id for o in self.ops]), ("value", [v.id for v in self.values])):
            if moved := [position for position, id in enumerate(ids) if id != position]:
                raise GraphError(f"{what} {ids[moved[0]]} is at position {moved[0]}; ids are positions")
        known = {v.id for v in self.values if v.origin is not Origin.OP}
        for op in self.ops:
            if unknown := [v for v in op.reads + op.mutates if v not in known]:
                raise GraphError(f"op {op.id} ({op.name}) reads value {unknown[0]}, which no earlier op writes")
            for v in op.writes:
                if v in known or not 0 <= v < len(self.values):
                    raise GraphError(f"op {op.id} ({op.name}) writes value {v}, which is written already or unknown")
                known.add(v)
        if missing := [v for v in self.fwd_outputs + self.bwd_outputs if v not in known]:
            raise GraphError(f"no op writes output value {missing[0]}")
        if self.calls < 1:
            raise GraphError(f"a step calls this graph {self.calls} times; it must be at least once")

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
    def forward_inputs(self) -> tuple[int, ...]:
        """The arguments of forward: parameters, buffers and other inputs."""
        return tuple(v.id for v in self.values if v.origin in (Origin.STATIC, Origin.INPUT))

    @cached_property
    def parameters(self) -> tuple[int, ...]:
        """The parameters and buffers: they exist before and after the step."""
        return tuple(v.id for v in self.values if v.origin is Origin.STATIC)

    @cached_property
    def tangents(self) -> tuple[int, ...]:
        """The arguments of backward that are not saved values."""
        return tuple(v.id for v in self.values if v.origin is Origin.TANGENT)

    @cached_property
    def held_outputs(self) -> tuple[int, ...]:
        """The outputs of forward that live through all of backward."""
        return self.fwd_outputs if self.holds_outputs else ()

    @cached_property
    def sides(self) -> tuple[Side, ...]:
        """For each op, where it has to run."""
        return classify(self.ops, self.fwd_outputs, self.tangents)

    @cached_property
    def backward_ops(self) -> tuple[Op, ...]:
        """The ops that belong to backward, in the order in which they run (``order``)."""
        own = [op for op in self.ops if self.sides[op.id] is Side.BACKWARD]
        return backward_order(own, self.values, frozenset(self.bwd_outputs))

    @cached_property
    def backward_mutations(self) -> tuple[Op, ...]:
        """The mutations of backward: the last of ``backward_ops``."""
        return tuple(op for op in self.backward_ops if op.kind is Kind.MUTATION)

    @cached_property
    def forward_ops(self) -> tuple[int, ...]:
        """The ids of the ops that belong to forward, in order."""
        return tuple(op.id for op in self.ops if self.sides[op.id] is Side.FORWARD)

    @cached_property
    def made_in_forward(self) -> frozenset[int]:
        """The values that ``forward_ops`` write."""
        return frozenset(v for op in self.forward_ops for v in self.ops[op].writes)

    @cached_property
    def runs_once(self) -> frozenset[int]:
        """Ops that must not run twice: ops of backward, ``never_recompute`` ops, and ops with ``must_save`` results."""
        return frozenset(
            op.id
            for op in self.ops
            if op.never_recompute
            or self.sides[op.id] is Side.BACKWARD
            or any(self.values[v].must_save for v in op.writes)
        )

    @cached_property
    def kept_inputs(self) -> frozenset[int]:
        """The inputs of forward that backward may read."""
        inputs = (self.values[v] for v in self.forward_inputs)
        return frozenset(v.id for v in inputs if not v.mutated and not v.cannot_save)

    @cached_property
    def backward_reads(self) -> frozenset[int]:
        """Values other than tangents that backward reads or returns and does not write: saved or recomputed."""
        in_backward = [op for op in self.ops if self.sides[op.id] is Side.BACKWARD]
        made = {v for op in in_backward for v in op.writes}
        wanted = {v for op in in_backward for v in op.reads} | set(self.bwd_outputs)
        return frozenset(v for v in wanted - made if self.values[v].origin is not Origin.TANGENT)

    def ancestors(self, values: Iterable[int], stop: Container[int] = frozenset()) -> list[int]:
        """The ids of the ops that compute ``values`` from ``stop`` and the inputs, in order."""
        producer, ops = self.producer, self.ops
        found: set[int] = set()
        todo = [v for v in values if v not in stop]
        while todo:
            op = producer[todo.pop()]
            if op is not None and op not in found:
                found.add(op)
                for v in ops[op].reads:  # one or two, so a comprehension is slower
                    if v not in stop:
                        todo.append(v)
        return sorted(found)

    def to_json(self) -> str:
        """A JSON document that ``from_json`` reads back into an equal graph."""
        fields = dataclasses.asdict(self)
        # Defaults are left out, so that these fields do not change files and digests.
        if self.fuse:
            del fields["fuse"]
        for entry in (*fields["values"], *fields["ops"]):
            for name in ("order", "reads_elsewhere", "slow_to_repeat", "always_written"):
                if not entry.get(name, True):
                    del entry[name]
        return json.dumps({"format": FORMAT, **fields}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> JointGraph:
        """Read a document that ``to_json`` wrote.

        Raises:
            GraphError: the text is not JSON, has another format, or is not a valid graph.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            if not isinstance(data, dict) or "format" not in data:
                raise GraphError("not a joint graph: expected a JSON object with the key 'format'")
            if data.pop("format") != FORMAT:
                raise GraphError(f"this joint graph has a format other than {FORMAT}; capture the graph again")
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
