import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import Builder, chain, effect, joint_graphs, overwritten_input, pinned_backward, pinned_forward

from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Side, Value
from rematpass.errors import GraphError

X = Value(0, 3, Origin.INPUT)
V = Value(1, 5)


@pytest.mark.parametrize(
    ("ops", "values", "fwd", "bwd", "message"),
    [
        ([Op(1, Kind.MATMUL)], [], [], [], "op 1 is at position 0; ids are positions"),
        ([], [X, Value(7, 5)], [], [], "value 7 is at position 1; ids are positions"),
        (
            [Op(0, Kind.MATMUL, (1,), name="mm")],
            [X, V],
            [],
            [],
            "op 0 (mm) reads value 1, which no earlier op writes",
        ),
        (
            [Op(0, Kind.MATMUL, (0, 2), (1,)), Op(1, Kind.MATMUL, (), (2,))],
            [X, V, Value(2, 7)],
            [],
            [],
            "op 0 () reads value 2, which no earlier op writes",
        ),
        ([Op(0, Kind.MATMUL, (-1,), (1,))], [X, V], [], [], "op 0 () reads value -1, which no earlier op writes"),
        (
            [Op(0, Kind.MUTATION, (0,), mutates=(1,))],
            [X, V],
            [],
            [],
            "op 0 () reads value 1, which no earlier op writes",
        ),
        (
            [Op(0, Kind.MATMUL, (0,), (1,)), Op(1, Kind.MATMUL, (0,), (1,), name="again")],
            [X, V],
            [],
            [],
            "op 1 (again) writes value 1, which is written already or unknown",
        ),
        (
            [Op(0, Kind.MATMUL, (), (1, 1))],
            [X, V],
            [],
            [],
            "op 0 () writes value 1, which is written already or unknown",
        ),
        (
            [Op(0, Kind.MATMUL, (), (0,))],
            [X],
            [],
            [],
            "op 0 () writes value 0, which is written already or unknown",
        ),
        (
            [Op(0, Kind.MATMUL, (), (1,))],
            [X],
            [],
            [],
            "op 0 () writes value 1, which is written already or unknown",
        ),
        (
            [Op(0, Kind.MATMUL, (), (-1,))],
            [X, V],
            [],
            [],
            "op 0 () writes value -1, which is written already or unknown",
        ),
        ([], [X, V], [1], [], "no op writes output value 1"),
        ([], [X], [], [2], "no op writes output value 2"),
    ],
)
def test_an_invalid_graph_is_refused(ops, values, fwd, bwd, message):
    with pytest.raises(GraphError) as caught:
        JointGraph(tuple(ops), tuple(values), tuple(fwd), tuple(bwd))
    assert str(caught.value) == message


TEXTS = st.text(max_size=5)


@given(joint_graphs(), st.lists(st.tuples(TEXTS, st.integers()), max_size=2), TEXTS, TEXTS, TEXTS)
def test_a_graph_survives_json(graph, hints, name, source, shape):
    last = dataclasses.replace(graph.ops[-1], source=source, module=name, flops=2**70, nbytes_read=11, dtype="float32")
    value = dataclasses.replace(graph.values[-1], shape=(shape, "3"), nbytes_expr="4*s0", dtype="bfloat16")
    graph = dataclasses.replace(
        graph,
        ops=(*graph.ops[:-1], last),
        values=(*graph.values[:-1], value),
        hints=tuple(hints),
        name=name,
        device="NVIDIA H200",
    )
    again = JointGraph.from_json(graph.to_json())
    assert again == graph
    assert hash(again) == hash(graph), "lists instead of tuples would be neither equal nor hashable"
    assert (again.sides, again.producer) == (graph.sides, graph.producer)


def test_how_ops_read_is_in_json_only_where_it_says_something():
    plain = chain(2)
    op = dataclasses.replace(plain.ops[0], reads_elsewhere=(0,), slow_to_repeat=True, always_written=True)
    value = dataclasses.replace(plain.values[1], order=1)
    values = (plain.values[0], value, *plain.values[2:])
    graph = dataclasses.replace(plain, ops=(op, *plain.ops[1:]), values=values)
    document = json.loads(graph.to_json())
    assert [o.get("reads_elsewhere") for o in document["ops"]][:2] == [[0], None]
    assert [o.get("slow_to_repeat") for o in document["ops"]][:2] == [True, None]
    assert [o.get("always_written") for o in document["ops"]][:2] == [True, None]
    assert [v.get("order") for v in document["values"]][:3] == [None, 1, None]
    assert JointGraph.from_json(graph.to_json()) == graph != plain


def test_a_graph_captured_for_an_eager_backend_says_so_in_json():
    graph = chain(1)
    assert "fuse" not in json.loads(graph.to_json())  # files and digests are those of graphs without this field
    eager = dataclasses.replace(graph, fuse=False)
    assert JointGraph.from_json(eager.to_json()) == eager != graph


def changed(**fields):
    return json.dumps({**json.loads(chain(1).to_json()), **fields})


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ("[]", ""),
        ("null", ""),
        ("7", ""),
        ("{}", "'format'"),
        (changed(format=2), "this joint graph has a format other than 1; capture the graph again"),
        (changed(ops=[{}]), "'reads'"),
        (changed(ops=7), ""),
        (changed(hints=[["s0"]]), ""),
        (changed(bwd_outputs=[7]), "no op writes output value 7"),
        (changed(fwd_outputs=None), ""),
        (changed(colour="red"), "unexpected keyword argument 'colour'"),
        (chain(1).to_json().replace("matmul", "matmuls"), "'matmuls' is not a valid Kind"),
        (chain(1).to_json().replace('"reads":[0]', '"reads":[[0]]'), ""),
        (chain(1).to_json().replace('"tangent"', '"gradient"'), "'gradient' is not a valid Origin"),
        (chain(1).to_json().replace('"id":1', '"id":"1"', 1), "op 1 is at position 1; ids are positions"),
    ],
)
def test_text_that_is_not_a_graph_is_refused(text, ending):
    with pytest.raises(GraphError) as caught:
        JointGraph.from_json(text)
    assert str(caught.value).endswith(ending)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (changed(format=2), "this joint graph has a format other than 1; capture the graph again"),
        (changed(bwd_outputs=[7]), "no op writes output value 7"),
        ("7", "not a joint graph: expected a JSON object with the key 'format'"),
    ],
)
def test_only_text_of_another_form_is_called_not_a_graph(text, message):
    with pytest.raises(GraphError) as caught:
        JointGraph.from_json(text)
    assert str(caught.value) == message


def everything():
    """One op per reason to be on a side; its name begins with the side."""
    b = Builder()
    x = b.input(3)
    weight = b.input(5, Origin.STATIC)
    state, old = overwritten_input(b, 7)
    out = b.op([x, weight, old], 11, name="forward: an output depends on it")
    into_state = b.op([x], 7, name="forward: a mutation reads it")
    into_print = b.op([x], 13, name="forward: an effect reads it")
    aside = b.op([out], 17, name="either: only backward depends on it")
    below, _ = b.op([aside], 19, 23, name="either: only an op of either side and backward read it")
    b.op([x], 29, name="either: no op reads it")
    asked_in_backward = b.op([x], 31, name="either: an effect of backward reads it")
    buffer = b.op([], 41, name="forward: a mutation overwrites it")
    effect(b, [into_print], Side.FORWARD)
    pinned_forward(b, [into_state], [state, buffer])
    effect(b, [asked_in_backward], Side.BACKWARD)
    tangent = b.input(11, Origin.TANGENT)
    gradient = b.op([tangent, below], 3, name="backward: it reads a tangent")
    answer = b.op([asked_in_backward], 43, kind=Kind.EFFECT, pinned=Side.BACKWARD)
    b.op([answer], 47, name="backward: it reads the result of an effect of backward")
    farther = b.op([gradient, out], 5, name="backward: it depends on a tangent")
    pinned_backward(b, [farther], [x])
    b.op([tangent], 37, name="backward: no op reads it")
    return b.build([out], [gradient, farther, weight])


def test_each_op_is_on_the_side_that_its_name_says():
    graph = everything()
    sides = {op.name: side.value for op, side in zip(graph.ops, graph.sides, strict=True)}
    named = {name: side for name, side in sides.items() if ":" in name}
    assert len(named) == 12
    assert named == {name: name.split(":")[0] for name in named}
    pinned = [op.pinned for op in graph.ops if op.pinned is not Side.EITHER]
    assert pinned == [graph.sides[op.id] for op in graph.ops if op.pinned is not Side.EITHER]


@given(joint_graphs())
def test_sides_are_closed_under_dependencies_and_minimal(graph):
    made_on = {v: graph.sides[op.id] for op in graph.ops for v in op.writes}
    made_on |= {v.id: Side.BACKWARD for v in graph.values if v.origin is Origin.TANGENT}
    read_on = {v.id: {graph.sides[op.id] for op in graph.ops if v.id in op.reads} for v in graph.values}
    assert {made_on[v] for v in graph.fwd_outputs if v in made_on} <= {Side.FORWARD}
    for op in graph.ops:
        arguments = {made_on[v] for v in op.reads if v in made_on}
        wanted_by = set().union(*(read_on[v] for v in op.writes))
        match graph.sides[op.id]:
            case Side.FORWARD:
                assert arguments <= {Side.FORWARD}
                is_output = not set(op.writes).isdisjoint(graph.fwd_outputs)
                assert op.pinned is Side.FORWARD or is_output or Side.FORWARD in wanted_by
            case Side.BACKWARD:
                assert op.pinned is Side.BACKWARD or Side.BACKWARD in arguments
                assert wanted_by <= {Side.BACKWARD}
            case Side.EITHER:
                assert op.pinned is Side.EITHER
                assert Side.BACKWARD not in arguments
                assert Side.FORWARD not in wanted_by


def two_products(
    x: int = 11, w: int = 13, parameter: bool = True, between: str = "", kind: Kind = Kind.MATMUL
) -> JointGraph:
    """A layer y = x w, with the backward of ``addmm``: the gradient of x first, then that of w.

    ``x``, ``w``: bytes; ``parameter``: whether w is one; ``between``: an op between the two products whose result the
    second one reads; ``kind``: the kind of the first product.
    """
    b = Builder()
    weight = b.input(w, Origin.STATIC) if parameter else b.op([b.input(3)], w, name="weight")
    below = b.op([b.input(5)], x, name="below")
    out = b.op([below, weight], 7, name="out")
    tangent = b.input(7, Origin.TANGENT)
    grad_x = b.op([tangent, weight], x, name="grad_x", kind=kind)
    other = below
    if between == "a reader of grad_x":
        other = b.op([grad_x], x, name="between", kind=Kind.POINTWISE)
    elif between:
        collective = {"kind": Kind.COLLECTIVE, "never_recompute": "it communicates"}
        more = collective if between == "a collective" else {"kind": Kind.POINTWISE}
        other = b.op([below], x, name="between", pinned=Side.BACKWARD, **more)
        b.op([grad_x], 3, name="aside", kind=Kind.POINTWISE)
    grad_w = b.op([tangent, other], w, name="grad_w")
    cast = b.op([grad_w], 2 * w, name="cast", kind=Kind.POINTWISE)
    rest = b.op([grad_x], 5, name="rest")
    return b.build([out], [cast, b.op([rest], 5, name="end")])


AS_WRITTEN = ["grad_x", "grad_w", "cast", "rest", "end"]
RETURNED_FIRST = ["grad_w", "grad_x", "cast", "rest", "end"]


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({}, RETURNED_FIRST),
        ({"kind": Kind.POINTWISE}, AS_WRITTEN),  # not a product
        ({"parameter": False}, AS_WRITTEN),  # grad_x frees the weight, which is larger
        ({"parameter": False, "x": 17}, RETURNED_FIRST),
        ({"parameter": False, "x": 13}, AS_WRITTEN),
        ({"between": "an op"}, ["between", "grad_w", "grad_x", "aside", "cast", "rest", "end"]),
        (
            {"between": "a collective"},
            ["grad_x", "between", "aside", "grad_w", "cast", "rest", "end"],
        ),  # it keeps its order
        ({"between": "a reader of grad_x"}, ["grad_x", "between", "grad_w", "cast", "rest", "end"]),
    ],
)
def test_of_two_products_of_a_gradient_the_returned_one_runs_first(fields, order):
    graph = two_products(**fields)
    assert [op.name for op in graph.backward_ops] == order


@pytest.mark.parametrize(("kind", "first"), [(Kind.SCATTER, "grad_w"), (Kind.POINTWISE, "grad_x")])
def test_a_product_that_is_scattered_into_a_gradient_is_read_again_and_one_that_is_cast_is_not(kind, first):
    """As the gradient of an embedding's result: it is freed when it is scattered, unlike what is returned."""
    b = Builder()
    below = b.op([b.input(5)], 11, name="below")
    weight = b.input(7, Origin.STATIC)
    out = b.op([below, weight], 7, name="out")
    tangent = b.input(7, Origin.TANGENT)
    grad_x = b.op([tangent, weight], 11, name="grad_x")
    grad_w = b.op([tangent, below], 7, name="grad_w")
    graph = b.build([out], [grad_w, b.op([grad_x], 5, kind=kind, name="end")])
    assert graph.backward_ops[0].name == first


@given(joint_graphs())
def test_backward_ops_keep_dependencies_and_the_order_of_effects(graph):
    own = graph.backward_ops
    assert sorted(op.id for op in own) == [op.id for op in graph.ops if graph.sides[op.id] is Side.BACKWARD]
    place = {v: i for i, op in enumerate(own) for v in op.writes}
    assert all(place.get(v, -1) < i for i, op in enumerate(own) for v in op.reads)
    mutations = [op.id for op in own if op.kind is Kind.MUTATION]
    assert [op.id for op in own[len(own) - len(mutations) :]] == mutations == sorted(mutations)
    others = [op.id for op in own if op.kind is not Kind.MUTATION and op.never_recompute]
    assert others == sorted(others)


def test_producers_readers_and_touched_values():
    b = Builder()
    x = b.input(3)
    left, right = b.op([x], 5, 7)
    b.op([right, x, right], 11)
    pinned_forward(b, [left], [x])
    graph = b.build([left], [])
    assert graph.producer == (None, 0, 0, 1)
    assert graph.readers == ((0, 1, 2), (2,), (1,), ())
    assert graph.touched == ((0,), (2, 0), (1, 0))


def test_backward_reads_are_values_that_backward_does_not_write():
    graph = everything()
    read = {graph.values[v].nbytes for v in graph.backward_reads}
    # below and out, read by its ops; the argument of its effect; weight, which is returned unchanged
    assert read == {19, 11, 31, 5}


def test_a_chain_matches_its_docstring():
    graph = chain(3, [2, 3, 5])
    assert graph.sides == (Side.FORWARD,) * 3 + (Side.BACKWARD,) * 3
    assert [v.nbytes for v in graph.values] == [2, 2, 3, 5, 5, 3, 2, 2]
    assert graph.backward_reads == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("values", "stop", "ops"),
    [
        ([], [], []),
        ([0], [], []),
        ([3], [], [0, 1, 2]),
        ([2], [], [0, 1]),
        ([3], [2], [2]),
        ([3], [1], [1, 2]),
        ([3], [3], []),
        ([3, 1], [2], [0, 2]),
        ([3, 1], [1], [1, 2]),
        ([5], [2, 3], [3]),
    ],
)
def test_ancestors_stop_at_the_given_values(values, stop, ops):
    assert chain(3).ancestors(values, frozenset(stop)) == ops


def test_an_op_with_two_results_is_one_ancestor():
    b = Builder()
    x = b.input(3)
    left, right = b.op([x], 5, 7)
    graph = b.build([b.op([left, right], 11)], [])
    assert graph.ancestors([3]) == [0, 1]
    assert graph.ancestors([3], {left}) == [0, 1]
    assert graph.ancestors([3], {left, right}) == [1]
