import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import (
    Builder,
    effect,
    integer_costs,
    joint_graphs,
    overwritten_input,
    pinned_backward,
    pinned_forward,
    three_layers,
)
from support.oracle import choices

from rematpass.core.op import Kind, Origin, Side
from rematpass.core.schedule import Run
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import forward_ops, schedule_late
from rematpass.core.verify import verify
from rematpass.errors import PlanError


def runs(steps):
    return [(s.op, s.copy) for s in steps if isinstance(s, Run)]


@pytest.mark.parametrize(
    ("saved", "backward"),
    [
        ([2, 3], [(4, 0), (3, 0), (5, 0), (6, 0)]),
        ([2], [(1, 1), (4, 0), (3, 0), (5, 0), (6, 0)]),
        ([3], [(4, 0), (3, 0), (0, 1), (5, 0), (6, 0)]),
        ([], [(0, 1), (1, 1), (4, 0), (3, 0), (5, 0), (6, 0)]),  # recomputed for op 4 and kept for op 5
    ],
)
def test_values_are_recomputed_just_before_they_are_read(saved, backward):
    plan = schedule_late(three_layers(), saved, "mine")
    assert plan.solver == "mine"
    assert runs(plan.fwd) == [(0, 0), (1, 0), (2, 0)]
    assert runs(plan.bwd) == backward
    assert plan.saved == (0, 1, *saved)  # inputs are saved although they are not listed


def test_values_that_backward_does_not_read_are_not_saved():
    assert schedule_late(three_layers(), range(5), "s").saved == (0, 1, 2, 3)


def graph_with_ops_of_neither_side():
    """Ops 1 and 2 belong to neither side. Op 2 reads the result of op 1, and backward reads both results."""
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    first = b.op([x], 7)
    second = b.op([first], 11)
    tangent = b.input(5, Origin.TANGENT)
    return b.build([out], [b.op([tangent, first], 13), b.op([tangent, second], 17)])


@pytest.mark.parametrize(
    ("saved", "forward", "backward"),
    [
        ([], [(0, 0)], [(1, 0), (3, 0), (2, 0), (4, 0)]),
        ([2], [(0, 0), (1, 0)], [(3, 0), (2, 0), (4, 0)]),
        ([2, 3], [(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0)]),
        ([3], [(0, 0), (1, 0), (2, 0)], [(1, 1), (3, 0), (4, 0)]),  # on both sides, in backward as a second copy
    ],
)
def test_ops_of_neither_side_run_where_they_are_needed(saved, forward, backward):
    plan = schedule_late(graph_with_ops_of_neither_side(), saved, "s")
    assert (runs(plan.fwd), runs(plan.bwd)) == (forward, backward)
    verify(graph_with_ops_of_neither_side(), plan)


def test_forward_runs_its_own_ops_and_those_that_saved_values_need():
    assert forward_ops(graph_with_ops_of_neither_side(), []) == [0]
    assert forward_ops(graph_with_ops_of_neither_side(), [3]) == [0, 1, 2]


def test_an_op_with_two_results_recomputes_both():
    b = Builder()
    x = b.input(3)
    left, right = b.op([x], 5, 7)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([left], [b.op([tangent, right], 11), b.op([tangent, left], 13)])
    plan = schedule_late(graph, [left], "s")
    assert runs(plan.bwd) == [(0, 1), (1, 0), (2, 0)]
    assert plan.saved == (x,)  # the new copy of ``left`` replaces the saved one
    other_way_round = b.build([left], [4, 5])
    assert verify(other_way_round, schedule_late(other_way_round, [right], "s")) == 5 + 5 + 5 + 7 + 11 + 13 - 7


def test_a_gradient_without_a_tangent_is_saved_or_recomputed():
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent], 7), out, x])
    kept, made = (schedule_late(graph, saved, "s") for saved in ([out], []))
    assert (kept.saved, runs(kept.bwd)) == ((x, out), [(1, 0)])
    assert (made.saved, runs(made.bwd)) == ((x,), [(1, 0), (0, 1)])


def test_an_unsaved_value_whose_op_must_run_once_is_an_error():
    graph = three_layers(op1={"never_recompute": "it draws random numbers", "name": "dropout"})
    with pytest.raises(PlanError) as caught:
        schedule_late(graph, [2], "mine")
    assert str(caught.value) == (
        "mine: backward needs op 1 (dropout) again, which must not run twice: it draws random numbers"
    )


def test_an_overwritten_input_is_not_saved():
    b = Builder()
    state, old = overwritten_input(b, 5)
    x = b.input(3)
    out = b.op([old, x], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, old, x], 11)])
    plan = schedule_late(graph, [old], "s")
    assert plan.saved == (old, x)
    with pytest.raises(PlanError, match="which must not run twice: its argument is overwritten after it has run"):
        schedule_late(graph, [], "s")


def test_backward_mutations_run_last_and_their_targets_are_saved():
    b = Builder()
    counter = b.input(5)
    x = b.input(3)
    out = b.op([x], 7)
    tangent = b.input(7, Origin.TANGENT)
    pinned_backward(b, [tangent], [counter])
    gradient = b.op([tangent, counter], 11)
    graph = b.build([out], [gradient])
    plan = schedule_late(graph, [], "s")
    assert plan.saved == (counter,)
    assert runs(plan.bwd) == [(2, 0), (1, 0)]
    verify(graph, plan)


def test_an_input_that_both_sides_overwrite_is_saved_although_it_cannot_be_read():
    b = Builder()
    state, old = overwritten_input(b, 5)
    out = b.op([old], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    gradient = b.op([tangent], 11)
    pinned_backward(b, [gradient], [state])
    graph = b.build([out], [gradient])
    plan = schedule_late(graph, [], "s")
    assert plan.saved == (state,)
    verify(graph, plan)


def test_reads_of_an_input_run_before_backward_overwrites_it():
    """Op 2 overwrites the counter; op 0, recomputed for op 3, has to read it first."""
    b = Builder()
    counter, total = b.input(5), b.input(7)
    out = b.op([counter], 11)
    tangent = b.input(11, Origin.TANGENT)
    gradient = b.op([tangent], 3)
    pinned_backward(b, [gradient], [counter])
    pinned_backward(b, [out], [total])
    graph = b.build([out], [gradient])
    plan = schedule_late(graph, [], "s")
    assert runs(plan.bwd) == [(1, 0), (0, 1), (2, 0), (3, 0)]
    verify(graph, plan)


def test_an_effect_in_backward_stays_before_the_mutation_that_follows_it():
    b = Builder()
    counter = b.input(5)
    out = b.op([counter], 7)
    tangent = b.input(7, Origin.TANGENT)
    gradient = b.op([tangent], 3)
    effect(b, [gradient], Side.BACKWARD)
    pinned_backward(b, [gradient], [counter])
    graph = b.build([out], [gradient])
    plan = schedule_late(graph, [], "s")
    assert runs(plan.bwd) == [(1, 0), (2, 0), (3, 0)]
    verify(graph, plan)


@given(st.data())
def test_any_plan_that_saves_more_than_the_cut_is_valid(data):
    graph = data.draw(joint_graphs())
    assume(next(choices(graph), None))
    costs = data.draw(integer_costs(graph))
    cut = Network(graph).solve(costs.run, costs.keep)
    in_forward = {op.id for op in graph.ops if graph.sides[op.id] is Side.FORWARD}
    savable = [
        v.id
        for v in graph.values
        if graph.producer[v.id] in in_forward
        and not v.cannot_save
        and not graph.ops[graph.producer[v.id]].must_recompute
    ]
    more = data.draw(st.lists(st.sampled_from(savable), unique=True)) if savable else []
    plan = schedule_late(graph, {*cut.saved, *more}, "s")
    verify(graph, plan)
    again = [run.op for run in plan.recomputed()]
    assert len(again) == len(set(again)), "recomputed at most once"
    assert set(plan.saved) - {*cut.saved, *more} <= {v.id for v in graph.values if v.origin is not Origin.OP}
    own = [op for op, _ in runs(plan.bwd) if graph.sides[op] is Side.BACKWARD]
    assert own == [op.id for op in graph.backward_ops]


@given(st.data())
def test_every_recomputation_is_for_the_next_own_op_of_backward(data):
    graph = data.draw(joint_graphs(marks=()))
    saved = data.draw(st.sets(st.sampled_from([v.id for v in graph.values if not v.mutated])))
    plan = schedule_late(graph, saved.union(*(op.writes for op in graph.ops if op.never_recompute)), "s")
    wanted: set[int] = set(graph.bwd_outputs)
    for op, _ in reversed(runs(plan.bwd)):
        if graph.ops[op].kind is Kind.MUTATION:  # everything that mutations read is computed before the first of them
            wanted.update(graph.ops[op].reads)
        elif graph.sides[op] is Side.BACKWARD:
            wanted = set(graph.ops[op].reads)
        else:
            assert wanted.intersection(graph.ops[op].writes)
            wanted.update(graph.ops[op].reads)
