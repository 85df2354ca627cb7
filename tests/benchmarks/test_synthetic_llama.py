"""The synthetic graphs of benchmarks/scale.py have the shape of a Llama."""

import sys
from pathlib import Path

from rematpass.core.op import Kind, Origin, Side

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from support.synthetic_llama import OPS_PER_LAYER, llama


def test_each_layer_adds_the_same_ops_and_each_weight_has_a_gradient():
    few, more = llama(2), llama(5)
    assert len(more.ops) - len(few.ops) == 3 * OPS_PER_LAYER
    weights = [v for v in more.values if v.origin is Origin.STATIC]
    assert len(weights) == 2 + 5 * 9 == len(more.bwd_outputs)
    assert sorted(more.values[v].nbytes for v in more.bwd_outputs) == sorted(w.nbytes for w in weights)


def test_backward_reads_values_of_forward():
    graph = llama(1)
    assert {graph.sides[op.id] for op in graph.ops} == {Side.FORWARD, Side.BACKWARD}
    attention = next(op for op in graph.ops if op.kind is Kind.ATTENTION)
    assert {*attention.reads, *attention.writes} <= graph.backward_reads
