import dataclasses
import itertools

import pytest
from graphs import Builder, chain, joint_graphs
from hypothesis import given
from hypothesis import strategies as st

from rematpass.core.cost import Costs
from rematpass.core.graph import Origin
from rematpass.core.schedule import Run
from rematpass.core.simulate import simulate
from rematpass.core.solve.baselines import recompute_all, save_all
from rematpass.core.solve.descent import State, climb, descend, fill_up
from rematpass.core.solve.just_in_time import just_in_time
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks


def equal_costs(graph, run=1.0):
    return Costs((run,) * len(graph.ops), (0.0,) * len(graph.values))


def read_at_both_ends():
    """Value 1 (7 bytes, from the input in one step) is read by backward's first op and by its last; a hill between.

    ::

        input 0 (3) ─▶ op0 ─▶ 1 (7) ─▶ op1 ─▶ 2 (5), the output
        tangent 3 (5); op2: 3, 1 ─▶ 4 (5); op3: 4 ─▶ 5 (31); op4: 5 ─▶ 6 (5); op5: 6, 1 ─▶ 7 (5), the gradient
    """
    b = Builder()
    x = b.input(3)
    h = b.op([x], 7)
    y = b.op([h], 5)
    g = b.input(5, Origin.TANGENT)
    first = b.op([g, h], 5)
    hill = b.op([first], 31)
    small = b.op([hill], 5)
    return b.build([y], [b.op([small, h], 5)])


def test_a_value_that_lies_idle_over_the_hill_is_let_go_and_made_again_by_hand():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=2.0)
    start = problem.timeline(just_in_time(graph, [0, 1], "s"))
    assert start.peak == 5 + 7 + 5 + 31  # output, value 1, and the two of op3
    plans = [plan for _, plan in descend(problem, State(frozenset([0, 1])))]
    assert [problem.timeline(p).peak for p in plans][:1] == [5 + 31 + 5]  # without value 1
    assert Run(0, 1) in plans[0].bwd
    assert 1 not in plans[0].saved or plans[0].bwd.index(Run(0, 1)) > plans[0].bwd.index(Run(4))
    verify(graph, plans[0])


def test_nothing_is_recomputed_beyond_what_is_allowed():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=0.4)  # one op of two is a half
    plans = [plan for _, plan in descend(problem, State(frozenset([0, 1])))]
    assert all(problem.timeline(p).recompute_seconds <= 0.8 for p in plans)


@pytest.mark.parametrize("n", [16, 36, 64])
def test_a_chain_takes_less_than_two_square_roots_of_it(n):
    """Chen et al. 2016 save sqrt(n) values and recompute one segment of sqrt(n) at a time: 2 sqrt(n) activations."""
    nbytes = 7
    graph = chain(n, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=1.0)
    root = round(n**0.5)
    boundaries = frozenset([0, *range(root, n, root)])
    chen = problem.timeline(just_in_time(graph, boundaries, "chen")).peak
    plans = [plan for _, plan in descend(problem, State(boundaries))]
    lowest = min(problem.timeline(p).peak for p in plans)
    assert lowest < chen
    assert lowest <= (2 * root + 2) * nbytes
    assert all(problem.timeline(p).recompute_seconds <= n for p in plans)


@given(st.data())
def test_the_way_down_goes_down_and_passes_the_judge(data):
    graph = data.draw(joint_graphs())
    problem = Problem(graph, equal_costs(graph), fuse=data.draw(st.booleans()), max_recompute=3.0)
    try:
        (first,) = save_all(problem)
    except ContradictoryMarks:
        return
    peak = problem.timeline(first).peak
    for state, plan in descend(problem, State(frozenset(first.saved))):
        verify(graph, plan)
        assert plan == state.plan(problem, "descent")
        assert problem.timeline(plan).peak <= peak
        peak = problem.timeline(plan).peak


def test_a_state_forgets_and_saves():
    state = State(frozenset([1, 2]), frozenset([(3, 0), (2, 1)]))
    after = state.after(frozenset([(1, -1), (4, 2)]))
    assert after == State(frozenset([2]), frozenset([(3, 0), (2, 1), (4, 2)]))
    assert after.saving(frozenset([4, 1])) == State(frozenset([1, 2, 4]), frozenset([(3, 0), (2, 1)]))


def test_what_the_simulator_says_decides():
    """With the same seconds and other bytes the same values are let go or not."""
    graph = read_at_both_ends()
    flat = dataclasses.replace(graph, values=tuple(dataclasses.replace(v, nbytes=5) for v in graph.values))
    problem = Problem(flat, equal_costs(flat), fuse=False, max_recompute=2.0)
    before = simulate(flat, just_in_time(flat, [0, 1], "s"), problem.costs, fuse=False).peak
    assert all(problem.timeline(plan).peak <= before for _, plan in descend(problem, State(frozenset([0, 1]))))


@given(st.data())
def test_the_way_up_is_faster_at_every_step_and_stays_under_its_limits(data):
    graph = data.draw(joint_graphs())
    problem = Problem(graph, equal_costs(graph), fuse=data.draw(st.booleans()))
    try:
        (lowest,) = recompute_all(problem)
    except ContradictoryMarks:
        return
    before = problem.timeline(lowest)
    for limit in range(before.peak, before.peak + 40, 4):
        start = State(frozenset(lowest.saved))
        filled = [plan for _, plan in climb(problem, start, [limit])][1:]
        for plan in [*filled, *fill_up(problem, [(start, lowest)], [limit])]:
            verify(graph, plan)
            found = problem.timeline(plan)
            assert found.peak <= limit
            assert found.step_seconds < before.step_seconds


def test_each_limit_is_filled_from_what_the_one_before_it_saves():
    """From a chain's square root: with room for one more value at a time, more is saved at each step, and all of it."""
    nbytes = 7
    graph = chain(25, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    start = State(frozenset([0, 5, 10, 15, 20]))
    lowest = problem.timeline(start.plan(problem, "s"))
    _, *found = climb(problem, start, range(lowest.peak, lowest.peak + 4 * nbytes, nbytes))
    plans = [plan for _, plan in found]
    saved = [set(plan.saved) for plan in plans]
    assert len(plans) > 2
    assert all(fewer < more for fewer, more in itertools.pairwise(saved))
    seconds = [lowest.step_seconds, *(problem.timeline(plan).step_seconds for plan in plans)]
    assert all(slower > faster for slower, faster in itertools.pairwise(seconds))


def test_small_gains_add_up_to_a_plan():
    """From a chain's square root: one value more is 0.1% of its seconds, and every other limit is worth a plan."""
    nbytes, n = 7, 600
    graph = chain(n, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    start = State(frozenset(range(0, n, 24)))
    before = problem.timeline(start.plan(problem, "s"))
    _, *found = climb(problem, start, range(before.peak + nbytes, before.peak + 9 * nbytes, nbytes))
    seconds = [before.step_seconds, *(problem.timeline(plan).step_seconds for _, plan in found)]
    assert len(found) > 1
    assert all(faster < slower * (1 - 0.002) for slower, faster in itertools.pairwise(seconds))


def test_the_fastest_under_each_limit_is_filled_up_to_it():
    nbytes = 7
    graph = chain(25, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    slow, fast = (State(frozenset(range(0, 25, step))) for step in (5, 3))
    starts = [(state, state.plan(problem, "s")) for state in (slow, fast)]
    lower, higher = (problem.timeline(plan) for _, plan in starts)
    assert lower.peak < higher.peak
    assert list(fill_up(problem, starts, [lower.peak - 1])) == []
    (first,) = fill_up(problem, starts, [higher.peak - 1])
    assert slow.saved < set(first.saved)
    (second,) = fill_up(problem, starts, [higher.peak + 2 * nbytes])
    assert fast.saved < set(second.saved)
    assert problem.timeline(second).step_seconds < higher.step_seconds


def test_outputs_that_the_caller_lets_go_of_are_not_filled_in():
    """Backward reads the output, which is free to save as long as the caller holds it."""
    held = chain(9)
    output = held.fwd_outputs[0]
    for graph in (held, dataclasses.replace(held, holds_outputs=False)):
        problem = Problem(graph, equal_costs(graph), fuse=False)
        start = State(frozenset([0, 3, 6]))
        (plan,) = fill_up(problem, [(start, start.plan(problem, "s"))], [1000])
        assert (output in plan.saved) is graph.holds_outputs


def test_larger_steps_take_the_way_down_in_fewer_plans():
    nbytes = 7
    graph = chain(64, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    start = State(frozenset(range(64)))
    small, large = (list(descend(problem, start, stride=stride)) for stride in (1.0, 4.0))
    before = problem.timeline(start.plan(problem, "s")).peak
    first = [problem.timeline(found[0][1]).peak for found in (small, large)]
    assert 0.9 * before < first[0] < before
    assert first[1] <= 0.85 * before
