"""The graphs that benchmarks/scale.py plans are in the shape of a Llama."""

import sys
from pathlib import Path

from rematpass.core.op import Kind, Origin, Side

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from support.synthetic_llama import OPS_PER_LAYER, llama


def test_every_layer_has_as_many_ops_and_every_weight_a_gradient():
    few, more = llama(2), llama(5)
    assert len(more.ops) - len(few.ops) == 3 * OPS_PER_LAYER
    weights = [v for v in more.values if v.origin is Origin.STATIC]
    assert len(weights) == 2 + 5 * 9 == len(more.bwd_outputs)
    assert sorted(more.values[v].nbytes for v in more.bwd_outputs) == sorted(w.nbytes for w in weights)


def test_backward_asks_for_what_forward_has_made():
    graph = llama(1)
    assert {graph.sides[op.id] for op in graph.ops} == {Side.FORWARD, Side.BACKWARD}
    attention = next(op for op in graph.ops if op.kind is Kind.ATTENTION)
    assert {*attention.reads, *attention.writes} <= graph.backward_reads
