"""The judge: valid plans, one schedule by hand that breaks each rule, and random damage to valid plans."""

import dataclasses

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
from rematpass.core.schedule import Drop, Plan, Run
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.verify import verify
from rematpass.errors import PlanError

FWD = (Run(0), Run(1), Drop(2), Run(2), Drop(3))
BWD = (Run(3), Run(0, 1), Run(1, 1), Run(4), Drop(3, 1), Drop(5), Run(5), Drop(2, 1), Drop(6), Run(6))
SAVED = (0, 1)


def reason(graph, saved, fwd, bwd):
    """Why the judge refuses, without the beginning that all refusals share."""
    with pytest.raises(PlanError) as caught:
        verify(graph, Plan("mine", tuple(saved), tuple(fwd), tuple(bwd)))
    start, message = str(caught.value).split(", at ", 1)
    assert start == "the plan of mine is not valid"
    return message


def without(steps, *removed):
    assert set(removed) <= set(steps)
    return [s for s in steps if s not in removed]


def test_a_valid_plan_passes_with_its_peak():
    # at the last run: the output, both gradients, and the argument of the last one
    assert verify(three_layers(), Plan("mine", SAVED, FWD, BWD)) == 13 + 19 + 29 + 23


def test_a_plan_without_drops_passes():
    runs = [[s for s in side if isinstance(s, Run)] for side in (FWD, BWD)]
    plan = Plan("mine", SAVED, *map(tuple, runs))
    assert verify(three_layers(), plan) == 13 + 13 + 17 + 7 + 11 + 19 + 23 + 29


@pytest.mark.parametrize(
    ("saved", "fwd", "bwd", "message"),
    [
        # inputs
        (SAVED, [Run(1)], BWD, "step 0 of forward: op 1 (op1) reads value 2, which is not alive"),
        (
            SAVED,
            [Run(0), Drop(2), Run(1), Run(2)],
            BWD,
            "step 2 of forward: op 1 (op1) reads value 2, which is not alive",
        ),
        (SAVED, FWD, [Run(3), Run(4)], "step 1 of backward: op 4 (op4) reads value 3, which is not alive"),
        ([1], FWD, BWD, "step 1 of backward: op 0 (op0) reads value 0, which is not alive"),
        (
            [0],
            FWD,
            BWD,
            "step 0 of backward: op 3 (op3) reads value 1, which is not alive",
        ),  # a parameter that is not saved
        (SAVED, FWD, [Drop(5), *BWD], "step 1 of backward: op 3 (op3) reads value 5, which is not alive"),
        # drops
        (SAVED, [Run(0), Drop(3)], BWD, "step 1 of forward: copy 0 of value 3 is dropped, but it is not alive"),
        (
            SAVED,
            [Run(0), Drop(2, 1)],
            BWD,
            "step 1 of forward: copy 1 of value 2 is dropped, but it is not alive",
        ),
        (
            SAVED,
            FWD,
            [*BWD, Drop(2, 1)],
            "step 10 of backward: copy 1 of value 2 is dropped, but it is not alive",
        ),
        (SAVED, [Drop(99), *FWD], BWD, "step 0 of forward: copy 0 of value 99 is dropped, but it is not alive"),
        # sides
        (SAVED, [*FWD, Run(3)], BWD, "step 5 of forward: op 3 (op3) belongs to backward"),
        (SAVED, [Run(99)], BWD, "step 0 of forward: there is no op 99"),
        (SAVED, FWD, [Run(-1)], "step 0 of backward: there is no op -1"),
        # copies
        (SAVED, [Run(0, 1)], BWD, "step 0 of forward: op 0 (op0) runs as copy 1, but it has run 0 times"),
        (SAVED, FWD, [Run(0)], "step 0 of backward: op 0 (op0) runs as copy 0, but it has run 1 times"),
        (SAVED, FWD, [Run(0, 2)], "step 0 of backward: op 0 (op0) runs as copy 2, but it has run 1 times"),
        (
            SAVED,
            FWD,
            [Run(0, 1), Run(0, 1)],
            "step 1 of backward: op 0 (op0) runs as copy 1, but it has run 2 times",
        ),
        # repeated runs
        (SAVED, [Run(0), Run(0, 1)], BWD, "step 1 of forward: op 0 (op0) runs a second time in forward"),
        (SAVED, FWD, [Run(3), Run(3, 1)], "step 1 of backward: op 3 (op3) runs a second time"),
        # missing runs
        (SAVED, FWD[:3], BWD, "the end of forward: op 2 (op2) has not run"),
        (SAVED, [], BWD, "the end of forward: op 0 (op0) has not run"),
        (SAVED, FWD, BWD[:-1], "the end of backward: op 6 (op6) has not run"),
        (SAVED, FWD, without(BWD, Run(3), Run(5), Drop(6), Run(6)), "the end of backward: op 3 (op3) has not run"),
        # outputs
        (SAVED, [*FWD, Drop(4)], BWD, "the end of forward: output value 4 is not alive"),
        (SAVED, FWD, [*BWD, Drop(7)], "the end of backward: output value 7 is not alive"),
        ([0, 1, 4], FWD, [*BWD, Drop(4)], "backward: an output of forward is dropped, but the caller holds it"),
        # saved values
        ([1, 0], FWD, BWD, "the end of forward: the saved values are not in ascending order, each once"),
        ([0, 0, 1], FWD, BWD, "the end of forward: the saved values are not in ascending order, each once"),
        ([0, 1, 2], FWD, BWD, "the end of forward: value 2 is saved, but it is not alive"),
        ([0, 1, 5], FWD, BWD, "the end of forward: value 5 is saved, but it is not alive"),  # a tangent
        ([0, 1, 99], FWD, BWD, "the end of forward: value 99 is saved, but it is not alive"),
    ],
)
def test_a_broken_schedule_is_refused(saved, fwd, bwd, message):
    assert reason(three_layers(), saved, fwd, bwd) == message


def test_an_op_of_forward_must_not_run_in_backward_only():
    graph = three_layers()
    fwd = [Run(0), Run(1), Drop(3)]
    assert reason(graph, [0, 1, 2], fwd, [Run(1, 1), Run(2), *BWD]) == "the end of forward: op 2 (op2) has not run"


MARKS = [
    (
        {"never_recompute": "it draws random numbers"},
        "step 2 of backward: op 1 (op1) runs again, but must not: it draws random numbers",
    ),
    ({"must_save": True}, "step 2 of backward: op 1 (op1) runs again, but the user wants its value saved"),
]


@pytest.mark.parametrize(("mark", "message"), MARKS)
def test_a_mark_against_recomputing_is_obeyed(mark, message):
    graph = three_layers(op1=mark)
    assert reason(graph, SAVED, FWD, BWD) == message
    verify(graph, Plan("mine", (0, 1, 3), without(FWD, Drop(3)), KEEPS_3))


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"must_recompute": True}, "the end of forward: value 3 is saved, but the user wants it recomputed"),
        (
            {"cannot_save": "SymBool is not a tensor"},
            "the end of forward: value 3 is saved, but it cannot be: SymBool is not a tensor",
        ),
    ],
)
def test_a_mark_against_saving_is_obeyed(mark, message):
    graph = three_layers(op1=mark)
    assert reason(graph, [0, 1, 3], without(FWD, Drop(3)), KEEPS_3) == message
    verify(graph, Plan("mine", SAVED, FWD, BWD))


KEEPS_3 = tuple(without(BWD, Run(1, 1), Drop(3, 1)))


def test_an_input_that_cannot_be_saved_must_not_be():
    b = Builder()
    x = b.input(3, cannot_save="Generator is not a tensor")
    out = b.op([x], 5)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, out], 7)])
    message = "the end of forward: value 0 is saved, but it cannot be: Generator is not a tensor"
    assert reason(graph, [x], [Run(0)], [Run(0, 1), Run(1)]) == message


def updated_state():
    """``old`` is the clone of the input that op 2 overwrites; backward reads the clone."""
    b = Builder()
    state, old = overwritten_input(b, 5)
    out = b.op([old], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    return b.build([out], [b.op([tangent, old], 3)])


def test_the_old_version_of_an_overwritten_input_is_read_through_its_clone():
    verify(updated_state(), Plan("mine", (1,), (Run(0), Run(1), Run(2)), (Run(3),)))
    message = "step 0 of backward: op 0 (op0) runs again, but must not: its argument is overwritten after it has run"
    assert reason(updated_state(), [0], [Run(0), Run(1), Run(2)], [Run(0, 1), Run(3)]) == message


def test_an_input_must_not_be_read_after_forward_overwrites_it():
    b = Builder()
    state = b.input(5, mutated=True)
    first = b.op([state], 7)
    pinned_forward(b, [first], [state])
    second = b.op([state], 3)
    graph = b.build([first, second], [])
    verify(graph, Plan("mine", (), (Run(0), Run(2), Run(1)), ()))
    message = "step 2 of forward: op 2 (op2) reads value 0 after its bytes were overwritten"
    assert reason(graph, [], [Run(0), Run(1), Run(2)], []) == message


def test_an_overwritten_input_must_not_be_read_in_backward():
    b = Builder()
    state = b.input(5, mutated=True)
    out = b.op([state], 7)
    pinned_forward(b, [out], [state])
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, out], 3)])
    verify(graph, Plan("mine", (1,), (Run(0), Run(1)), (Run(2),)))
    message = "step 0 of backward: op 0 (op0) reads value 0 after its bytes were overwritten"
    assert reason(graph, [0], [Run(0), Run(1)], [Run(0, 1), Run(2)]) == message


def test_an_input_overwritten_after_forward_must_not_be_read_in_backward():
    """No op overwrites it: AOTAutograd does, when forward has ended."""
    b = Builder()
    state = b.input(5, mutated=True)
    out = b.op([state], 7)
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, state], 3)])
    message = "step 0 of backward: op 1 (op1) reads value 0 after its bytes were overwritten"
    assert reason(graph, [0], [Run(0)], [Run(1)]) == message


def updates_in_backward():
    b = Builder()
    counter, weight = b.input(5), b.input(3, Origin.STATIC)
    out = b.op([weight], 7)
    tangent = b.input(7, Origin.TANGENT)
    gradient = b.op([tangent, counter], 11)
    pinned_backward(b, [gradient], [counter])
    return b.build([out], [gradient])


def test_an_input_that_backward_overwrites_must_be_alive():
    graph = updates_in_backward()
    verify(graph, Plan("mine", (0,), (Run(0),), (Run(1), Run(2))))
    assert reason(graph, [0], [Run(0)], [Run(1), Drop(0), Run(2)]) == (
        "step 2 of backward: op 2 (op2) overwrites value 0, which is not alive"
    )


def test_a_mutation_without_marks_runs_once():
    b = Builder()
    counter, weight = b.input(5), b.input(3, Origin.STATIC)
    b.op([weight], kind=Kind.MUTATION, mutates=(counter,), name="add_")
    graph = b.build([weight], [])
    message = "step 1 of backward: op 0 (add_) runs a second time"
    assert reason(graph, [0, 1], [], [Run(0), Run(0, 1)]) == message


@pytest.mark.parametrize(
    ("side", "fwd", "bwd"),
    [(Side.FORWARD, [Run(0), Run(1), Run(2)], []), (Side.BACKWARD, [Run(0)], [Run(1), Run(2)])],
)
def test_effects_keep_their_order(side, fwd, bwd):
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    effect(b, [x], side)
    effect(b, [x], side)
    graph = b.build([out], [])
    verify(graph, Plan("mine", (0,), tuple(fwd), tuple(bwd)))
    swapped = [[{Run(1): Run(2), Run(2): Run(1)}.get(s, s) for s in steps] for steps in (fwd, bwd)]
    assert reason(graph, [0], *swapped) == (
        f"the end of {side.value}: effects, mutations or collectives are not in the program's order"
    )


def with_an_op_of_neither_side():
    """A graph in which op 1 belongs to neither side."""
    b = Builder()
    x = b.input(3)
    out = b.op([x], 5)
    beside = b.op([x], 7)
    tangent = b.input(5, Origin.TANGENT)
    return b.build([out], [b.op([tangent, beside], 11)])


@pytest.mark.parametrize(
    ("saved", "fwd", "bwd", "peak"),
    [
        ([2], [Run(0), Run(1)], [Run(2)], 5 + 7 + 5 + 11),
        ([0], [Run(0)], [Run(1), Run(2)], 5 + 5 + 7 + 11),
        ([0], [Run(0), Run(1), Drop(2)], [Run(1, 1), Run(2)], 5 + 5 + 7 + 11),
    ],
)
def test_an_op_of_neither_side_may_run_on_either(saved, fwd, bwd, peak):
    assert verify(with_an_op_of_neither_side(), Plan("mine", tuple(saved), tuple(fwd), tuple(bwd))) == peak


# Random damage. Each kind of damage makes any valid plan of any graph invalid.


@st.composite
def valid_plans(draw):
    """A graph and a plan for it: a random cut, recomputed as late as possible."""
    graph = draw(joint_graphs(max_ops=5))
    assume(next(choices(graph), None))
    costs = draw(integer_costs(graph))
    plan = schedule_late(graph, Network(graph).solve(costs.run, costs.keep).saved, "mine")
    return graph, plan


def refused(graph, plan):
    with pytest.raises(PlanError, match=r"^the plan of mine is not valid, at "):
        verify(graph, plan)


def replaced(plan, side, steps):
    return dataclasses.replace(plan, **{side: tuple(steps)})


def with_steps(draw, plan, wanted):
    """A random step that ``wanted`` accepts: its side, its position, and all steps of the side."""
    found = [(side, i) for side in ("fwd", "bwd") for i, s in enumerate(getattr(plan, side)) if wanted(s)]
    assume(found)
    side, position = draw(st.sampled_from(found))
    return side, position, list(getattr(plan, side))


@given(st.data())
def test_a_missing_run_is_refused(data):
    graph, plan = data.draw(valid_plans())
    side, position, steps = with_steps(data.draw, plan, lambda s: isinstance(s, Run))
    del steps[position]
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_a_repeated_run_is_refused(data):
    graph, plan = data.draw(valid_plans())
    side, position, steps = with_steps(data.draw, plan, lambda s: isinstance(s, Run))
    steps.insert(data.draw(st.integers(position, len(steps))), steps[position])
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_a_wrong_copy_number_is_refused(data):
    graph, plan = data.draw(valid_plans())
    side, position, steps = with_steps(data.draw, plan, lambda s: isinstance(s, Run))
    other = data.draw(st.integers(-1, 3).filter(lambda copy: copy != steps[position].copy))
    steps[position] = dataclasses.replace(steps[position], copy=other)
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_a_run_on_the_wrong_side_is_refused(data):
    graph, plan = data.draw(valid_plans())
    side, position, steps = with_steps(
        data.draw, plan, lambda s: isinstance(s, Run) and graph.sides[s.op] is not Side.EITHER and s.copy == 0
    )
    step = steps.pop(position)
    other = "bwd" if side == "fwd" else "fwd"
    there = list(getattr(plan, other))
    there.insert(data.draw(st.integers(0, len(there))), step)
    refused(graph, replaced(replaced(plan, side, steps), other, there))


@given(st.data())
def test_a_repeated_drop_is_refused(data):
    graph, plan = data.draw(valid_plans())
    side, position, steps = with_steps(data.draw, plan, lambda s: isinstance(s, Drop))
    steps.insert(data.draw(st.integers(position, len(steps))), steps[position])
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_a_missing_saved_value_is_refused(data):
    graph, plan = data.draw(valid_plans())
    assume(plan.saved)
    missing = data.draw(st.sampled_from(plan.saved))
    refused(graph, dataclasses.replace(plan, saved=tuple(v for v in plan.saved if v != missing)))


def copies_along(graph, plan, side):
    """For each step of a side: the copies alive before it, by value, and the copies that it reads: the newest."""
    alive = {}
    at_start = (
        plan.saved if side == "bwd" else [v.id for v in graph.values if v.origin in (Origin.STATIC, Origin.INPUT)]
    )
    tangents = [v.id for v in graph.values if v.origin is Origin.TANGENT] if side == "bwd" else []
    for v in (*at_start, *tangents):
        alive[v] = [0]
    for step in getattr(plan, side):
        before = {v: list(copies) for v, copies in alive.items() if copies}
        read = set()
        if isinstance(step, Run):
            op = graph.ops[step.op]
            read = {(v, alive[v][-1]) for v in op.reads + op.mutates}
            for v in op.writes:
                alive.setdefault(v, []).append(step.copy)
        else:
            alive[step.value].remove(step.copy)
        yield step, before, read


@given(st.data())
def test_a_drop_before_the_last_read_is_refused(data):
    graph, plan = data.draw(valid_plans())
    early = []
    for side in ("fwd", "bwd"):
        seen = list(copies_along(graph, plan, side))
        for position, (step, _, _) in enumerate(seen):
            if isinstance(step, Drop):
                early += [
                    (side, position, reader)
                    for reader, (_, before, read) in enumerate(seen[:position])
                    if (step.value, step.copy) in read and len(before[step.value]) == 1
                ]
    assume(early)
    side, position, reader = data.draw(st.sampled_from(early))
    steps = list(getattr(plan, side))
    steps.insert(reader, steps.pop(position))
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_swapping_two_dependent_steps_is_refused(data):
    graph, plan = data.draw(valid_plans())
    pairs = []
    for side in ("fwd", "bwd"):
        seen = list(copies_along(graph, plan, side))
        for first, (maker, before, _) in enumerate(seen):
            made = {(v, maker.copy) for v in graph.ops[maker.op].writes} if isinstance(maker, Run) else set()
            made = {(v, copy) for v, copy in made if not before.get(v)}  # no older copy that could be read instead
            pairs += [(side, first, i) for i, (_, _, read) in enumerate(seen) if i > first and made & read]
    assume(pairs)
    side, first, second = data.draw(st.sampled_from(pairs))
    steps = list(getattr(plan, side))
    steps[first], steps[second] = steps[second], steps[first]
    refused(graph, replaced(plan, side, steps))


@given(st.data())
def test_saving_a_dropped_value_is_refused(data):
    graph, plan = data.draw(valid_plans())
    alive = {v.id for v in graph.values if v.origin in (Origin.STATIC, Origin.INPUT)}
    for step in plan.fwd:
        if isinstance(step, Run):
            alive.update(graph.ops[step.op].writes)
        else:
            alive.discard(step.value)
    dead = sorted({v.id for v in graph.values} - alive)
    assume(dead)
    dropped = data.draw(st.sampled_from(dead))
    refused(graph, dataclasses.replace(plan, saved=tuple(sorted({*plan.saved, dropped}))))


@given(valid_plans())
def test_undamaged_plans_pass(graph_and_plan):
    assert verify(*graph_and_plan) >= 0
