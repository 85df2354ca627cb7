import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import Builder, integer_costs, joint_graphs, overwritten_input, pinned_forward, three_layers
from support.oracle import choices

from rematpass.core.liveness import plan_of, replay
from rematpass.core.op import Origin
from rematpass.core.schedule import Drop, Plan, Run
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.verify import verify
from rematpass.errors import PlanError

FORWARD = (Run(0), Run(1), Run(2))


def lives(graph, plan):
    """For each copy: where it is created, where it is read, and whether it outlives backward."""
    found = replay(graph, plan)
    return {
        name: (int(found.born[i]), found.reader[found.read == i].tolist(), bool(found.outlives[i]))
        for i, name in enumerate(names(found))
    }


def names(found):
    """Each copy as (value, number)."""
    return list(zip(found.value.tolist(), found.number.tolist(), strict=True))


def test_a_replay_finds_every_copy_and_its_readers():
    plan = Plan("s", (0, 1, 2, 3), FORWARD, (Run(3), Run(4), Run(5), Run(6)))
    found = lives(three_layers(), plan)
    tangent_born, *tangent = found.pop((5, 0))
    assert tangent_born >= 2, "a tangent exists when forward has ended"
    assert tangent == [[3, 4], False]
    assert found == {
        (0, 0): (-1, [0, 6], False),
        (1, 0): (-1, [0, 2, 3], False),
        (2, 0): (0, [1, 5], False),
        (3, 0): (1, [2, 4], False),
        (4, 0): (2, [], True),
        (6, 0): (3, [5], False),
        (7, 0): (4, [], True),
        (8, 0): (5, [6], False),
        (9, 0): (6, [], True),
    }


def test_positions_count_the_runs_of_both_sides():
    found = replay(three_layers(), Plan("s", (0, 1, 2, 3), FORWARD, (Run(3), Drop(6), Run(4))))
    assert found.runs == (Run(0), Run(1), Run(2), Run(3), Run(4))
    assert found.first_backward == 3
    reads = list(zip(found.reader.tolist(), found.value[found.read].tolist(), strict=True))
    assert reads == [(0, 0), (0, 1), (1, 2), (2, 3), (2, 1), (3, 5), (3, 1), (4, 5), (4, 3)]
    made = sorted(zip(found.born[found.made].tolist(), found.value[found.made].tolist(), strict=True))
    assert made == [(0, 2), (1, 3), (2, 4), (3, 6), (4, 7)]


@pytest.mark.parametrize(
    ("drops", "reads"),
    [
        ([], (3, 2)),  # the newest of the three
        ([Drop(3, 2)], (3, 1)),
        ([Drop(3, 0)], (3, 2)),
        ([Drop(3, 1), Drop(3, 2)], (3, 0)),
        ([Drop(3, 0), Drop(3, 2)], (3, 1)),
    ],
)
def test_a_run_reads_the_newest_living_copy(drops, reads):
    plan = Plan("s", (1, 2, 3), FORWARD, (Run(1, 1), Run(1, 2), *drops, Run(4)))
    found = replay(three_layers(), plan)
    assert names(found)[found.read[-1]] == reads


def test_the_newest_copy_of_an_output_outlives_backward():
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, out], 7), out])
    found = lives(graph, Plan("s", (0, 1), (Run(0),), (Run(0, 1), Run(1))))
    assert {copy for copy, (*_, outlives) in found.items() if outlives} == {(out, 0), (out, 1), (3, 0)}
    assert found[(out, 1)][1] == [2]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("mine", (), (Run(1),), ()), "mine: step 0 runs op 1 (op1) without its inputs"),
        (Plan("mine", (), (Run(0), Drop(2), Run(1)), ()), "mine: step 1 runs op 1 (op1) without its inputs"),
        (Plan("mine", (0, 1, 2), FORWARD, (Run(3), Run(4))), "mine: step 4 runs op 4 (op4) without its inputs"),
        (Plan("mine", (), FORWARD, (Run(3),)), "mine: step 3 runs op 3 (op3) without its inputs"),  # nor the parameter
    ],
)
def test_a_run_without_its_arguments_is_refused(plan, message):
    with pytest.raises(PlanError) as caught:
        replay(three_layers(), plan)
    assert str(caught.value) == message


def test_copies_are_dropped_right_after_their_last_use():
    plan = plan_of(three_layers(), "s", (0, 1, 2, 3), FORWARD, (Run(3), Run(4), Run(5), Run(6)))
    assert plan.saved == (0, 1, 2, 3)
    assert plan.fwd == FORWARD  # everything is saved or an output
    assert by_run(plan.bwd) == [
        (Run(3), set()),  # a parameter is never dropped
        (Run(4), {Drop(5), Drop(3)}),
        (Run(5), {Drop(6), Drop(2)}),
        (Run(6), {Drop(8), Drop(0)}),
    ]


def by_run(steps):
    """Each run with the drops that follow it, whose order does not matter."""
    grouped = []
    for step in steps:
        if isinstance(step, Run):
            grouped.append((step, set()))
        else:
            grouped[-1][1].add(step)
    return grouped


def test_a_recomputed_copy_is_dropped_after_its_own_last_use():
    bwd = (Run(3), Run(1, 1), Run(4), Run(5), Run(6))
    plan = plan_of(three_layers(), "s", (0, 1, 2), FORWARD, bwd)
    assert by_run(plan.fwd) == [(Run(0), set()), (Run(1), set()), (Run(2), {Drop(3)})]
    assert by_run(plan.bwd)[2] == (Run(4), {Drop(5), Drop(3, 1)})
    assert sum(step == Drop(3) or step == Drop(3, 1) for step in (*plan.fwd, *plan.bwd)) == 2


def test_saved_is_reduced_to_what_backward_reads():
    bwd = (Run(3), Run(1, 1), Run(4), Run(5), Run(6))
    plan = plan_of(three_layers(), "s", range(5), FORWARD, bwd)
    assert plan.saved == (0, 1, 2)  # not 4, which is not read; not 3, which is recomputed


def test_copies_that_are_not_read_are_dropped_at_once():
    b = Builder()
    x = b.input(3)
    out, spare = b.op([x], 5, 7)
    tangent = b.input(5, Origin.TANGENT)
    gradient, waste = b.op([tangent], 11, 13)
    graph = b.build([out], [gradient])
    plan = plan_of(graph, "s", [], (Run(0),), (Run(1),))
    assert (plan.saved, plan.fwd) == ((), (Run(0), Drop(spare)))
    assert by_run(plan.bwd) == [(Run(1), {Drop(waste), Drop(tangent)})]
    assert x not in plan.saved


def test_outputs_and_gradients_are_not_dropped():
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, out], 7), tangent, out, x])
    plan = plan_of(graph, "s", [x, out], (Run(0),), (Run(1),))
    assert (plan.saved, plan.fwd, plan.bwd) == ((x, out), (Run(0),), (Run(1),))


def two_results():
    """``left`` is a gradient; op 1 reads it, op 2 reads ``right``."""
    b = Builder()
    x = b.input(3)
    left, right = b.op([x], 5, 7)
    tangent = b.input(5, Origin.TANGENT)
    return b.build([x], [b.op([tangent, left], 11), b.op([tangent, right], 13), left]), x, left


@pytest.mark.parametrize(
    ("bwd", "saved", "drops"),
    [
        ((Run(1), Run(0, 1), Run(2)), (0, 1), {Drop(1, 0), Drop(2, 1), Drop(3)}),  # read, then recomputed
        ((Run(0, 1), Run(1), Run(2)), (0,), {Drop(2, 1), Drop(3)}),  # recomputed before it is read
        ((Run(0, 1), Run(1), Run(0, 2), Run(2)), (0,), {Drop(1, 1), Drop(2, 1), Drop(2, 2), Drop(3)}),
    ],
)
def test_all_but_the_last_copy_of_a_gradient_are_dropped(bwd, saved, drops):
    graph, x, left = two_results()
    plan = plan_of(graph, "s", [x, left], (Run(0),), bwd)
    assert plan.saved == saved
    assert {step for step in plan.bwd if isinstance(step, Drop)} == drops
    verify(graph, plan)


def test_a_tangent_that_is_not_read_is_dropped_in_backward():
    b = Builder()
    x = b.input(3)
    first, second = b.op([x], 5, 7)
    tangent, unread = b.input(5, Origin.TANGENT), b.input(7, Origin.TANGENT)
    graph = b.build([first, second], [b.op([tangent], 11)])
    plan = plan_of(graph, "s", [], (Run(0),), (Run(1),))
    assert plan.fwd == (Run(0),)
    assert set(plan.bwd) == {Run(1), Drop(tangent), Drop(unread)}
    verify(graph, plan)


def test_an_input_that_forward_overwrites_is_not_saved():
    b = Builder()
    state, old = overwritten_input(b, 5)
    out = b.op([old], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, old], 3)])
    plan = plan_of(graph, "s", [state, old], (Run(0), Run(1), Run(2)), (Run(3),))
    assert plan.saved == (old,)


@given(st.data())
def test_only_outputs_and_parameters_are_alive_at_the_end(data):
    graph = data.draw(joint_graphs())
    assume(next(choices(graph), None))
    costs = data.draw(integer_costs(graph))
    plan = schedule_late(graph, Network(graph).solve(costs.run, costs.keep).saved, "s")
    stays = {v.id for v in graph.values if v.origin is Origin.STATIC}
    alive = set(plan.saved) | {v.id for v in graph.values if v.origin is Origin.TANGENT}
    copies = {(v, 0) for v in alive}
    for step in plan.bwd:
        if isinstance(step, Run):
            copies |= {(v, step.copy) for v in graph.ops[step.op].writes}
        else:
            copies.remove((step.value, step.copy))
    assert {v for v, _ in copies} - stays <= set(graph.bwd_outputs) | set(graph.fwd_outputs)
    assert len(copies) == len({v for v, _ in copies}), "one copy of each value"
