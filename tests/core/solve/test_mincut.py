import itertools
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import (
    BINDING,
    CONTRADICTORY,
    MARKS,
    Builder,
    chain,
    integer_costs,
    joint_graphs,
    overwritten_input,
    pinned_forward,
)
from support.oracle import choice_of, choices, hull

from rematpass.core.cost import Costs
from rematpass.core.op import Kind, Origin
from rematpass.core.solve.mincut import Network, breakpoints
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.errors import ContradictoryMarks

WORDING = re.compile(
    r"backward needs a value that can neither be saved nor recomputed: (.+) -> backward\. "
    r"Remove one of these marks, or move the op out of the checkpointed region\."
)


@pytest.mark.parametrize("marks", [MARKS, BINDING], ids=["some marks", "all marked"])
@given(st.data())
def test_the_cut_costs_what_brute_force_finds(marks, data):
    graph = data.draw(joint_graphs(marks=marks))
    costs = data.draw(integer_costs(graph))
    possible = {choice.seconds(costs.run, costs.keep, graph) for choice in choices(graph)}
    if not possible:
        with pytest.raises(ContradictoryMarks, match=WORDING):
            Network(graph).solve(costs.run, costs.keep)
        return
    cut = Network(graph).solve(costs.run, costs.keep)
    assert cut.cost == pytest.approx(min(possible), abs=1e-6)
    plan = schedule_late(graph, cut.saved, "test")
    assert choice_of(graph, plan).seconds(costs.run, costs.keep, graph) == min(possible)


@given(st.data())
def test_a_network_gives_the_same_cut_after_other_costs(data):
    graph = data.draw(joint_graphs(marks=()))
    first, second = data.draw(integer_costs(graph)), data.draw(integer_costs(graph))
    network = Network(graph)
    fresh = network.solve(first.run, first.keep)
    network.solve(second.run, second.keep)
    assert network.solve(first.run, first.keep) == fresh == Network(graph).solve(first.run, first.keep)


@given(st.data())
def test_costs_in_another_unit_give_the_same_cut(data):
    graph = data.draw(joint_graphs(marks=()))
    costs = data.draw(integer_costs(graph))
    unit = 2.0 ** data.draw(st.integers(-80, 20))  # a power of two, so that nothing is rounded on the way
    cut = Network(graph).solve(costs.run, costs.keep)
    scaled = Network(graph).solve([unit * c for c in costs.run], [unit * c for c in costs.keep])
    assert scaled.cost / unit == pytest.approx(cut.cost, abs=1e-6)
    assert scaled.saved == cut.saved


@given(st.data())
def test_the_breakpoints_are_the_corners_that_brute_force_finds(data):
    graph = data.draw(joint_graphs(max_ops=5))
    costs = data.draw(integer_costs(graph, most=5))
    points = {(c.seconds(costs.run, costs.keep, graph), c.nbytes(graph)) for c in choices(graph)}
    assume(points)
    found = [(round(v.seconds, 6), v.nbytes) for v in breakpoints(Network(graph), costs)]
    assert list(dict.fromkeys(found)) == hull(points)


@given(st.data())
def test_breakpoints_rise_in_seconds_as_they_fall_in_bytes(data):
    graph = data.draw(joint_graphs(marks=()))
    vertices = breakpoints(Network(graph), data.draw(integer_costs(graph)))
    for faster, slower in itertools.pairwise(vertices):
        assert faster.seconds <= slower.seconds + 1e-6
        assert faster.nbytes >= slower.nbytes
    for vertex in vertices:
        saved = [graph.values[v] for v in vertex.cut.saved]
        assert vertex.nbytes == sum(v.nbytes for v in saved if v.origin is not Origin.STATIC)


def test_breakpoints_of_a_chain_by_hand():
    graph = layers(("a", 5), ("b", 7), ("c", 11))
    costs = Costs(run=(3.0, 5.0, 13.0, 0.0), keep=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    vertices = breakpoints(Network(graph), costs)
    # Save a, b and c: 23 bytes. Recomputing a takes 3 s and frees 5 bytes, then b 5 s for 7, then c 13 s for 11.
    assert [(round(v.seconds, 6), v.nbytes) for v in vertices] == [(0, 23), (3, 18), (8, 11), (21, 0)]
    assert [sorted(v.cut.saved - {0}) for v in vertices] == [[1, 2, 3], [2, 3], [3], []]


def test_all_corners_are_found_on_both_sides_of_the_first_chord():
    """Five values computed from a parameter, listed in the order in which rising prices recompute them."""
    b = Builder()
    w = b.input(2, Origin.STATIC)
    made = [b.op([w], size) for size in (7, 5, 13, 11, 3)]
    tangent = b.input(2, Origin.TANGENT)
    graph = b.build(made, [b.op([tangent, *made], 3)])
    costs = Costs(run=(2.0, 3.0, 11.0, 17.0, 19.0, 0.0), keep=(0.0,) * 8)
    found = [(round(v.seconds, 6), v.nbytes) for v in breakpoints(Network(graph), costs)]
    assert found == [(0, 39), (2, 32), (5, 27), (16, 14), (33, 3), (52, 0)]
    free = breakpoints(Network(graph), costs, free=frozenset([made[2], made[4]]))  # these stay saved at any price
    assert [(round(v.seconds, 6), v.nbytes) for v in free] == [(0, 23), (2, 16), (5, 11), (22, 0)]


@pytest.mark.parametrize("most", [2, 3])
def test_the_number_of_breakpoints_is_limited_and_both_ends_stay(most):
    graph = layers(("a", 5), ("b", 7), ("c", 11))
    costs = Costs(run=(3.0, 5.0, 13.0, 0.0), keep=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    vertices = breakpoints(Network(graph), costs, most=most)
    assert len(vertices) == most
    assert (vertices[0].nbytes, vertices[-1].nbytes) == (23, 0)


def layers(*named_sizes):
    """A chain of ops on a static input; the gradient reads the value of each."""
    b = Builder()
    values = [b.input(2, Origin.STATIC)]
    for name, size in named_sizes:
        values.append(b.op([values[-1]], size, name=name))
    tangent = b.input(2, Origin.TANGENT)
    return b.build([values[-1]], [b.op([tangent, *values[1:]], 3)])


def test_a_chain_that_is_cheap_as_a_whole_is_recomputed_as_a_whole():
    graph = chain(3)
    # Recomputing one op (2) does not pay for keeping its argument (7); recomputing all of them does.
    cut = Network(graph).solve([2] * len(graph.ops), [5, 7, 7, 7, 0, 0, 0, 0])
    assert (cut.saved, round(cut.cost)) == ({0}, 5 + 3 * 2)


def test_an_op_with_two_results_is_recomputed_once_for_both():
    b = Builder()
    x = b.input(3, Origin.STATIC)
    left, right = b.op([x], 5, 7)
    tangent = b.input(3, Origin.TANGENT)
    graph = b.build([left], [b.op([tangent, left, right], 3)])
    assert round(Network(graph).solve([11, 0], [0, 6, 6, 0, 0]).cost) == 11
    assert Network(graph).solve([13, 0], [0, 6, 6, 0, 0]).saved == {left, right}


def test_an_op_of_neither_side_runs_where_that_is_cheaper():
    b = Builder()
    x = b.input(3, Origin.INPUT)
    out = b.op([x], 5)
    either = b.op([out], 7)
    tangent = b.input(3, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, either], 3)])
    run = [100, 100, 0]
    assert Network(graph).solve(run, [50, 11, 13, 0, 0]).saved == {out}  # ``either`` runs in backward
    assert Network(graph).solve(run, [50, 13, 11, 0, 0]).saved == {either}  # ``either`` runs in forward


@pytest.mark.parametrize("mark", [{"never_recompute": "it draws random numbers"}, {"must_save": True}])
def test_a_run_once_op_of_neither_side_does_not_run_on_both_sides(mark):
    """Backward needs ``draw``, and ``after``, which only forward can compute: so ``draw`` has to run in forward."""
    b = Builder()
    secret = b.input(2, cannot_save="Generator is not a tensor")
    draw = b.op([], 11, name="draw", **mark)
    after = b.op([draw, secret], 3, name="after")
    tangent = b.input(5, Origin.TANGENT)
    out = b.op([secret], 7, never_recompute="it draws random numbers")
    graph = b.build([out], [b.op([tangent, draw, after], 5)])
    cut = Network(graph).solve([0] * len(graph.ops), [v.nbytes for v in graph.values])
    assert (cut.saved, round(cut.cost)) == ({draw, after}, 11 + 3)


# Contradictory marks: each case leaves one path on which no arc may be cut.


def contradiction(graph):
    with pytest.raises(ContradictoryMarks) as caught:
        Network(graph).solve([1] * len(graph.ops), [1] * len(graph.values))
    return WORDING.fullmatch(str(caught.value))[1]


def two_steps(first=None, second=None, **of_input):
    b = Builder()
    x = b.input(3, **of_input)
    a = b.op([x], 5, **(first or {}))
    c = b.op([a], 7, **(second or {}))
    tangent = b.input(7, Origin.TANGENT)
    return b.build([c], [b.op([tangent, c], 3)])


RANDOM = {"never_recompute": "it draws random numbers"}
NUMBER = {"cannot_save": "SymBool is not a tensor"}


@pytest.mark.parametrize(
    ("graph", "path"),
    [
        (
            two_steps(second=RANDOM | NUMBER),
            "op op1 (never recomputed: it draws random numbers) -> value v2 (never saved: SymBool is not a tensor)",
        ),
        (
            two_steps(second={"must_save": True} | NUMBER),
            "op op1 (never recomputed: marked to be saved) -> value v2 (never saved: SymBool is not a tensor)",
        ),
        (
            two_steps(second=RANDOM | {"must_recompute": True}),
            "op op1 (never recomputed: it draws random numbers) -> value v2 (never saved: marked to be recomputed)",
        ),
        (
            two_steps(first=RANDOM | NUMBER, second={"must_recompute": True}),
            "op op0 (never recomputed: it draws random numbers) -> value v1 (never saved: SymBool is not a tensor) -> "
            "op op1 -> value v2 (never saved: marked to be recomputed)",
        ),
        (
            two_steps({"must_recompute": True}, {"must_recompute": True}, cannot_save="Generator is not a tensor"),
            "value in0 (never saved: Generator is not a tensor) -> op op0 -> "
            "value v1 (never saved: marked to be recomputed) -> op op1 -> "
            "value v2 (never saved: marked to be recomputed)",
        ),
        (
            two_steps({"must_recompute": True, "name": ""}, {"must_recompute": True}, mutated=True),
            "value in0 (never saved: forward overwrites it) -> op 0 -> "
            "value v1 (never saved: marked to be recomputed) -> op op1 -> "
            "value v2 (never saved: marked to be recomputed)",
        ),
    ],
    ids=["never, cannot", "must save, cannot", "never, must recompute", "along a chain", "an input", "overwritten"],
)
def test_a_contradiction_is_reported_as_a_path(graph, path):
    assert contradiction(graph) == path


@given(joint_graphs(max_ops=6, marks=BINDING + CONTRADICTORY))
def test_the_path_of_a_contradiction_exists_in_the_graph(graph):
    assume(next(choices(graph), None) is None)
    steps = contradiction(graph).split(" -> ")
    ops, values = {op.name: op for op in graph.ops}, {v.name: v for v in graph.values}
    path = [(step.split()[0], step.split()[1], "(never" in step) for step in steps]
    assert path[0][2], "it starts at what must not be cut"
    assert path[-1][0] == "value"
    for (what, name, _), (next_what, next_name, next_forbidden) in itertools.pairwise(path):
        if what == "op" and next_what == "value":
            assert values[next_name].id in ops[name].writes
            assert next_forbidden
        elif what == "value":
            assert values[name].id in ops[next_name].reads
        else:  # an op of neither side in forward, and the run-once op that it is computed from
            assert next_forbidden


def test_the_old_version_of_an_overwritten_input_is_saved_as_its_clone():
    b = Builder()
    state, old = overwritten_input(b, 5, Origin.STATIC)
    out = b.op([old], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, old], 3)])
    cut = Network(graph).solve([1] * len(graph.ops), [1000] * len(graph.values))
    assert cut.saved == {old}


def test_values_that_backward_does_not_need_are_not_saved():
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5, kind=Kind.POINTWISE)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent], 3)])
    assert Network(graph).solve([1, 1], [1] * 4).saved == frozenset()
