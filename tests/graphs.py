"""Tiny joint graphs for tests, with prime sizes, so that swapped terms cannot cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rematpass.core.graph import JointGraph, Kind, Op, Origin, Side, Value

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97)


class Builder:
    """Puts a graph together op by op; every method returns value ids."""

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.values: list[Value] = []

    def input(self, nbytes: int, origin: Origin = Origin.INPUT, **fields: Any) -> int:
        self.values.append(Value(len(self.values), nbytes, origin, name=f"in{len(self.values)}", **fields))
        return len(self.values) - 1

    def op(self, reads: Sequence[int], *sizes: int, kind: Kind = Kind.MATMUL, **fields: Any) -> Any:
        """Append an op that writes one value per size; returns the id, or a tuple of ids when there are several."""
        of_value = {k: fields.pop(k) for k in ("must_save", "cannot_save") if k in fields}
        written = tuple(range(len(self.values), len(self.values) + len(sizes)))
        producer = len(self.ops)
        self.values += [Value(v, n, name=f"v{v}", **of_value) for v, n in zip(written, sizes, strict=True)]
        fields.setdefault("name", f"op{producer}")
        self.ops.append(Op(producer, kind, tuple(reads), written, **fields))
        return written[0] if len(written) == 1 else written

    def build(self, fwd_outputs: Sequence[int], bwd_outputs: Sequence[int]) -> JointGraph:
        return JointGraph(tuple(self.ops), tuple(self.values), tuple(fwd_outputs), tuple(bwd_outputs))


def chain(n: int, nbytes: int | Sequence[int] = 7, kind: Kind = Kind.MATMUL) -> JointGraph:
    """``n`` layers, each reading the one before; the gradient of each reads its layer's input and its output.

    Values are the activations 1..n (value 0 is the input), then the loss' tangent, then one gradient per layer.
    """
    sizes = [nbytes] * n if isinstance(nbytes, int) else list(nbytes)
    b = Builder()
    x = b.input(sizes[0])
    activations = [x]
    for size in sizes:
        activations.append(b.op([activations[-1]], size, kind=kind, flops=1000))
    gradient = b.input(sizes[-1], Origin.TANGENT)
    for layer in reversed(range(n)):
        gradient = b.op([gradient, activations[layer], activations[layer + 1]], sizes[max(layer - 1, 0)], kind=kind)
    return b.build([activations[-1]], [gradient])


def pinned_forward(b: Builder, reads: Sequence[int], mutates: Sequence[int]) -> None:
    """Append what forward does to an input: a mutation that stays there."""
    b.op(reads, kind=Kind.MUTATION, mutates=tuple(mutates), pinned=Side.FORWARD, never_recompute="it overwrites")
