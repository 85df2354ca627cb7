import dataclasses

import pytest
from support.graphs import chain, three_layers

from rematpass.core.sizes import evaluate, resized
from rematpass.errors import GraphError


@pytest.mark.parametrize(
    ("formula", "number"),
    [
        ("128", 128),
        ("4*s0*s1", 4 * 7 * 11),
        ("128*s1*(s0 - 1) + 128*s1", 128 * 7 * 11),
        ("256*s1 + 256*(s0 - 1)*Max(1, s1 - 1) - 256", 256 * 11 + 256 * 6 * 10 - 256),
        ("s0//2", 3),
        ("8*((s0 - 1)//2) + 8", 32),
        ("FloorDiv(s1, 2)", 5),
        ("CeilDiv(s1, 2)", 6),
        ("s1**2", 121),
        ("-s0 + 9", 2),
        ("Min(s0, s1) % 4", 3),
        ("s0*s1/7", 11),
    ],
)
def test_formulas_of_sizes_are_evaluated(formula, number):
    assert evaluate(formula, {"s0": 7, "s1": 11}) == number


@pytest.mark.parametrize("formula", ["s2", "__import__('os')", "s0.bit_length()", "2.5*s0", "s0 +", "s0//0", "'a'"])
def test_other_expressions_are_refused(formula):
    with pytest.raises(GraphError, match=r"^the size .* cannot be evaluated: "):
        evaluate(formula, {"s0": 7})


def test_bytes_flops_and_reads_grow_with_a_symbol():
    graph = chain(2, 7)
    values = [dataclasses.replace(v, nbytes_expr="s0") for v in graph.values]
    ops = [dataclasses.replace(op, nbytes_read=14) for op in graph.ops]
    graph = dataclasses.replace(graph, values=tuple(values), ops=tuple(ops), hints=(("s0", 7), ("s1", 3)))
    found = resized(graph, {"s0": 21})
    assert {v.nbytes for v in found.values} == {21}
    assert [op.flops for op in found.ops] == [3 * op.flops for op in graph.ops]
    assert {op.nbytes_read for op in found.ops} == {42}
    assert found.hints == (("s0", 21), ("s1", 3))
    assert resized(found, {"s0": 7}) == graph


def test_a_value_without_a_formula_keeps_its_size():
    graph = dataclasses.replace(three_layers(), hints=(("s0", 7),))
    assert resized(graph, {"s0": 700}).values == graph.values


def test_an_unknown_symbol_is_refused():
    with pytest.raises(GraphError, match=r"^s1 is not a symbol of the graph; it has none$"):
        resized(three_layers(), {"s1": 3})
