import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import Builder, chain, joint_graphs

from rematpass.core.cost import Costs
from rematpass.core.op import Origin
from rematpass.core.schedule import Run
from rematpass.core.simulate import simulate
from rematpass.core.solve.baselines import save_all
from rematpass.core.solve.effort import Effort
from rematpass.core.solve.local_search.evict import Search, descend
from rematpass.core.solve.problem import NOT_SAVED, Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.solve.state import State
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks


def equal_costs(graph, run=1.0):
    return Costs((run,) * len(graph.ops), (0.0,) * len(graph.values))


def read_at_both_ends():
    """Backward reads value 1 (7 bytes, one op from the input) first and last; a peak region lies in between.

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
    large = b.op([first], 31)
    small = b.op([large], 5)
    return b.build([y], [b.op([small, h], 5)])


def test_a_value_idle_over_a_peak_region_is_evicted_and_recomputed():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=2.0)
    start = problem.timeline(schedule_late(graph, [0, 1], "s"))
    assert start.peak == 5 + 7 + 5 + 31  # output, value 1, and the two of op3
    plans = [plan for _, plan in descend(problem, State(frozenset([0, 1])))]
    assert [problem.timeline(p).peak for p in plans][:1] == [5 + 31 + 5]  # without value 1
    assert Run(0, 1) in plans[0].bwd
    assert 1 not in plans[0].saved or plans[0].bwd.index(Run(0, 1)) > plans[0].bwd.index(Run(4))
    verify(graph, plans[0])


def test_descent_recomputes_no_more_than_max_recompute():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=0.4)  # one op of two is a half
    plans = [plan for _, plan in descend(problem, State(frozenset([0, 1])))]
    assert all(problem.timeline(p).recompute_seconds <= 0.8 for p in plans)


@pytest.mark.parametrize("n", [16, 36, 64])
def test_descent_on_a_chain_needs_less_than_two_square_roots(n):
    """Chen et al. 2016 save sqrt(n) values and recompute one segment of sqrt(n) ops at a time: 2 sqrt(n) values."""
    nbytes = 7
    graph = chain(n, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=1.0)
    root = round(n**0.5)
    boundaries = frozenset([0, *range(root, n, root)])
    chen = problem.timeline(schedule_late(graph, boundaries, "chen")).peak
    plans = [plan for _, plan in descend(problem, State(boundaries))]
    lowest = min(problem.timeline(p).peak for p in plans)
    assert lowest < chen
    assert lowest <= (2 * root + 2) * nbytes
    assert all(problem.timeline(p).recompute_seconds <= n for p in plans)


@given(st.data())
def test_descent_never_raises_the_peak_and_its_plans_are_valid(data):
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


def test_a_state_evicts_and_saves():
    state = State(frozenset([1, 2]), frozenset([(3, 0), (2, 1)]))
    evicting = state.evicting(frozenset([(1, NOT_SAVED), (4, 2)]))
    assert evicting == State(frozenset([2]), frozenset([(3, 0), (2, 1), (4, 2)]))
    assert evicting.saving(frozenset([4, 1])) == State(frozenset([1, 2, 4]), frozenset([(3, 0), (2, 1)]))


def test_descent_with_equal_sizes_never_raises_the_peak():
    """The graph of the first test with every value at 5 bytes: an eviction that frees nothing is not taken."""
    graph = read_at_both_ends()
    flat = dataclasses.replace(graph, values=tuple(dataclasses.replace(v, nbytes=5) for v in graph.values))
    problem = Problem(flat, equal_costs(flat), fuse=False, max_recompute=2.0)
    before = simulate(flat, schedule_late(flat, [0, 1], "s"), problem.costs, fuse=False).peak
    assert all(problem.timeline(plan).peak <= before for _, plan in descend(problem, State(frozenset([0, 1]))))


def test_a_larger_stride_lowers_the_peak_further_at_the_first_step():
    nbytes = 7
    graph = chain(64, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    start = State(frozenset(range(64)))
    small, large = (list(descend(problem, start, stride=stride)) for stride in (1.0, 4.0))
    before = problem.timeline(start.plan(problem, "s")).peak
    first = [problem.timeline(found[0][1]).peak for found in (small, large)]
    assert 0.9 * before < first[0] < before
    assert first[1] <= 0.85 * before


def test_one_stride_lowers_every_peak_region_at_once():
    """From a chain that saves everything to less than half in three simulations, where small steps take dozens."""
    nbytes = 7
    graph = chain(64, nbytes)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    start = State(frozenset(range(64)))
    search = Search(problem, start, start.plan(problem, "s"))
    limit = search.peak * 2 // 5
    assert search.lower_to(limit)
    assert search.peak <= limit
    assert search.timeline.recompute_seconds <= 64
    verify(graph, search.plan)


def test_a_stride_ends_where_nothing_more_can_be_evicted():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=2.0)
    start = State(frozenset([0, 1]))
    search = Search(problem, start, start.plan(problem, "s"))
    assert not search.lower_to(5 + 31 + 5 - 1)  # the op at the peak has its argument, its result and the output alive


def test_a_search_without_progress_ends_before_its_trials_do():
    graph = read_at_both_ends()
    effort = Effort(trials_without_progress=3)
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=2.0, effort=effort)
    start = State(frozenset([0, 1]))
    search = Search(problem, start, schedule_late(graph, [0, 1], "s"))
    for _ in range(2):
        assert search.may_try
        assert not search._try_saving(start, 0)
    assert search._try_evicting(frozenset([(1, 0)]), 41)  # progress
    for _ in range(3):
        assert search.may_try
        assert not search._try_saving(start, 0)
    assert not search.may_try
    assert search.trials_left > 0
    assert not search.take_smaller_steps()


def test_a_plan_that_recomputes_too_much_is_not_simulated():
    graph = read_at_both_ends()
    problem = Problem(graph, equal_costs(graph), fuse=False, max_recompute=0.4)
    search = Search(problem, State(frozenset([0, 1])), schedule_late(graph, [0, 1], "s"))
    simulated = len(problem._timelines)
    assert not search._try_evicting(frozenset([(1, NOT_SAVED)]), search.peak - 1)
    assert len(problem._timelines) == simulated
