"""Synthetic joint graphs in the shape of a Llama with any number of layers, made without torch, for ``scale.py``.

Per layer, forward has the ops that AOTAutograd makes of ``LlamaDecoderLayer`` (norms, projections, rotary embedding,
attention, gated feed-forward). Backward has, for each of them, one op per argument that needs a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Value

OPS_PER_LAYER = 67
_BACKWARD_READS_RESULT = (Kind.ATTENTION,)  # besides the arguments


class _Tape:
    """Records forward ops for backward. ``tokens``: rows of every activation; values are float32."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self.ops: list[Op] = []
        self.values: list[Value] = []
        self.done: list[tuple[Kind, tuple[int, ...], int, int]] = []  # kind, reads, written value, width

    def value(self, nbytes: int, origin: Origin, name: str) -> int:
        self.values.append(Value(len(self.values), nbytes, origin, name=name, dtype="float32"))
        return len(self.values) - 1

    def weight(self, rows: int, columns: int) -> int:
        return self.value(4 * rows * columns, Origin.STATIC, "weight")

    def append(self, kind: Kind, reads: Sequence[int], nbytes: int, name: str) -> int:
        written = self.value(nbytes, Origin.OP, name)
        read = sum(self.values[v].nbytes for v in reads)
        flops = 0 if kind not in (Kind.MATMUL, Kind.ATTENTION) else 2 * read * nbytes // (16 * self.tokens)
        op = Op(
            len(self.ops), kind, tuple(reads), (written,), name=name, flops=flops, nbytes_read=read, dtype="float32"
        )
        self.ops.append(op)
        return written

    def forward(self, kind: Kind, reads: Sequence[int], width: int, name: str) -> int:
        written = self.append(kind, reads, 4 * self.tokens * width, name)
        self.done.append((kind, tuple(reads), written, width))
        return written

    def backward(self, outputs: Sequence[int]) -> JointGraph:
        """The joint graph, with one backward op per argument of each forward op, from the last to the first."""
        gradient: dict[int, int] = {v: self.value(self.values[v].nbytes, Origin.TANGENT, "tangent") for v in outputs}
        for kind, reads, written, _ in reversed(self.done):
            if written not in gradient:
                continue
            needs = [gradient[written], *reads, *([written] if kind in _BACKWARD_READS_RESULT else [])]
            for v in dict.fromkeys(reads):
                if self.values[v].origin is Origin.INPUT:
                    continue
                others = needs if kind is not Kind.MATMUL else [x for x in needs if x != v]
                made = self.append(kind, others, self.values[v].nbytes, f"grad_{self.values[v].name}")
                if v in gradient:
                    made = self.append(Kind.POINTWISE, (gradient[v], made), self.values[v].nbytes, "add")
                gradient[v] = made
        weights = [g for v, g in gradient.items() if self.values[v].origin is Origin.STATIC]
        return JointGraph(tuple(self.ops), tuple(self.values), tuple(outputs), tuple(weights), name="llama-shaped")


def llama(layers: int, *, tokens: int = 1024, hidden: int = 256, mlp: int = 688) -> JointGraph:
    """The joint graph of ``layers`` decoder layers; about ``OPS_PER_LAYER`` ops each."""
    tape = _Tape(tokens)
    x = tape.value(4 * tokens * hidden, Origin.INPUT, "x")
    rotary = tape.value(4 * tokens * hidden, Origin.INPUT, "rotary")
    x = tape.forward(Kind.MATMUL, (x, tape.weight(hidden, hidden)), hidden, "embed")
    for _ in range(layers):
        h = _norm(tape, x, hidden)
        q, k, v = (tape.forward(Kind.MATMUL, (h, tape.weight(hidden, hidden)), hidden, "mm") for _ in "qkv")
        q, k = (tape.forward(Kind.POINTWISE, (t, rotary), hidden, "rotate") for t in (q, k))
        a = tape.forward(Kind.ATTENTION, (q, k, v), hidden, "attention")
        o = tape.forward(Kind.MATMUL, (a, tape.weight(hidden, hidden)), hidden, "mm")
        x = tape.forward(Kind.POINTWISE, (x, o), hidden, "add")
        h = _norm(tape, x, hidden)
        gate, up = (tape.forward(Kind.MATMUL, (h, tape.weight(hidden, mlp)), mlp, "mm") for _ in "gu")
        silu = tape.forward(Kind.POINTWISE, (gate,), mlp, "silu")
        product = tape.forward(Kind.POINTWISE, (silu, up), mlp, "mul")
        down = tape.forward(Kind.MATMUL, (product, tape.weight(mlp, hidden)), hidden, "mm")
        x = tape.forward(Kind.POINTWISE, (x, down), hidden, "add")
    loss = tape.forward(Kind.MATMUL, (x, tape.weight(hidden, hidden)), hidden, "head")
    return tape.backward([loss])


def _norm(tape: _Tape, x: int, hidden: int) -> int:
    square = tape.forward(Kind.POINTWISE, (x,), hidden, "square")
    mean = tape.forward(Kind.REDUCTION, (square,), 1, "mean")
    normed = tape.forward(Kind.POINTWISE, (x, mean), hidden, "normed")
    return tape.forward(Kind.POINTWISE, (normed, tape.weight(1, hidden)), hidden, "scaled")
