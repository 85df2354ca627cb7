import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import chain, joint_graphs

from rematpass.core.cost import Costs
from rematpass.core.solve.baselines import recompute_all, save_all
from rematpass.core.solve.local_search.refine import fill_up, hull, largest_ladder_gap, pareto, refine
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.state import State
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks


def equal_costs(graph):
    return Costs((1.0,) * len(graph.ops), (0.0,) * len(graph.values))


def chain_saving(steps, n=25):
    """A chain of ``n`` ops, and for each of ``steps`` the plan that saves every ``step``-th value."""
    graph = chain(n)
    problem = Problem(graph, equal_costs(graph), fuse=False)
    states = [State(frozenset(range(0, n, step))) for step in steps]
    return problem, [(state, state.plan(problem, "s")) for state in states]


@given(st.data())
def test_a_filled_plan_is_faster_and_stays_under_its_limit(data):
    graph = data.draw(joint_graphs())
    problem = Problem(graph, equal_costs(graph), fuse=data.draw(st.booleans()))
    try:
        (lowest,) = recompute_all(problem)
    except ContradictoryMarks:
        return
    before = problem.timeline(lowest)
    for limit in range(before.peak, before.peak + 40, 4):
        for _, plan in fill_up(problem, [(State(frozenset(lowest.saved)), lowest)], [limit]):
            verify(graph, plan)
            found = problem.timeline(plan)
            assert found.peak <= limit
            assert found.step_seconds < before.step_seconds


def test_each_limit_is_filled_starting_from_the_plan_of_the_limit_before():
    """From a chain's square root: with bytes for one more value at a time, each step saves more than the one before."""
    problem, (start,) = chain_saving([5])
    lowest = problem.timeline(start[1])
    plans = [plan for _, plan in fill_up(problem, [start], range(lowest.peak, lowest.peak + 4 * 7, 7))]
    saved = [set(plan.saved) for plan in plans]
    assert len(plans) > 2
    assert all(fewer < more for fewer, more in itertools.pairwise(saved))
    seconds = [lowest.step_seconds, *(problem.timeline(plan).step_seconds for plan in plans)]
    assert all(slower > faster for slower, faster in itertools.pairwise(seconds))


def test_the_fastest_plan_under_each_limit_is_filled():
    problem, starts = chain_saving([5, 3])
    (slow, _), (fast, _) = starts
    lower, higher = (problem.timeline(plan) for _, plan in starts)
    assert lower.peak < higher.peak
    assert list(fill_up(problem, starts, [lower.peak - 1])) == []
    ((_, first),) = fill_up(problem, starts, [higher.peak - 1])
    assert slow.saved < set(first.saved)
    ((_, second),) = fill_up(problem, starts, [higher.peak + 2 * 7])
    assert fast.saved < set(second.saved)
    assert problem.timeline(second).step_seconds < higher.step_seconds


def test_outputs_that_the_caller_releases_are_not_filled_in():
    """Backward reads the output, which costs no bytes to save as long as the caller holds it."""
    held = chain(9)
    output = held.fwd_outputs[0]
    for graph in (held, dataclasses.replace(held, holds_outputs=False)):
        problem = Problem(graph, equal_costs(graph), fuse=False)
        start = State(frozenset([0, 3, 6]))
        ((_, plan),) = fill_up(problem, [(start, start.plan(problem, "s"))], [1000])
        assert (output in plan.saved) is graph.holds_outputs


@dataclasses.dataclass(frozen=True)
class Point:
    peak: int
    seconds: float


def test_the_largest_gap_is_where_a_step_lies_furthest_above_the_hull():
    """Above the line from (100, 10) to (1600, 1): first the step up to 1600 bytes, then the one up to 400."""
    steps = [(100, 10.0), (110, 9.9), (400, 6.0), (500, 5.9), (1600, 1.0)]
    ladder = pareto([Point(*step) for step in steps])
    assert [p.peak for p in ladder] == [1600, 500, 400, 110, 100]
    # The line is 10 - 9 (b - 100) / 1500: 0.66 s under 9.9 at 210 bytes, 0.76 under 5.9 at 894, 0.15 under 10 at 105.
    first = largest_ladder_gap(ladder, set())
    assert first == (500, 1600)
    second = largest_ladder_gap(ladder, {first})
    assert second == (110, 400)
    assert largest_ladder_gap(ladder, {*itertools.pairwise([100, 110, 400, 500, 1600])}) is None


def test_one_rung_or_nearly_equal_peaks_have_no_gap():
    assert largest_ladder_gap(pareto([Point(1000, 2.0), Point(1003, 1.0)]), set()) is None
    assert largest_ladder_gap([Point(1000, 2.0)], set()) is None
    assert largest_ladder_gap([], set()) is None


def test_a_gap_that_promises_too_little_is_not_searched():
    """Between 1 and 4 bytes, a step of 1% of the seconds promises 0.3%, and a step of 0.01% promises 0.003%."""
    assert largest_ladder_gap([Point(4, 100.0), Point(1, 101.0)], set()) == (1, 4)
    assert largest_ladder_gap([Point(4, 100.0), Point(1, 100.01)], set()) is None


POINTS = st.dictionaries(st.integers(1, 1000), st.integers(1, 1000).map(float), min_size=1, max_size=30)


@given(POINTS)
def test_no_point_lies_under_the_hull(points):
    ordered = sorted(points.items())
    corners = hull(ordered)
    assert (corners[0], corners[-1]) == (ordered[0], ordered[-1])
    assert set(corners) <= set(ordered)
    xs, ys = zip(*corners, strict=True)
    assert all(y >= np.interp(x, xs, ys) - 1e-9 for x, y in ordered)
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(corners)]
    assert slopes == sorted(slopes)
    assert len(set(slopes)) == len(slopes)


@given(POINTS)
def test_a_gap_lies_between_neighbours_and_plans_left_out_of_a_ladder_are_beaten(points):
    ladder = pareto([Point(*point) for point in points.items()])
    steps = {*itertools.pairwise([p.peak for p in reversed(ladder)])}
    gap = largest_ladder_gap(ladder, set())
    corners = hull([(p.peak, p.seconds) for p in reversed(ladder)])
    whole = ladder[0].seconds * math.log(ladder[0].peak / ladder[-1].peak)

    def promised(low, high):
        on_the_hull = np.interp(math.sqrt(low * high), *zip(*corners, strict=True))
        return (next(p.seconds for p in ladder if p.peak == low) - on_the_hull) * math.log(high / low)

    left = [step for step in steps if step[1] > 1.004 * step[0] and promised(*step) > 4e-4 * whole]
    assert gap in steps if left else gap is None
    assert all(any(p.peak <= peak and p.seconds <= seconds for p in ladder) for peak, seconds in points.items())


def test_the_gap_between_save_all_and_a_square_root_is_closed():
    """On a chain of 64 that saves everything or every eighth value, plans in between recompute a part."""
    problem, starts = chain_saving([1, 8], n=64)
    high, low = (problem.timeline(plan) for _, plan in starts)
    found = [problem.timeline(plan) for _, plan in refine(problem, starts, trials=6)]
    between = [t for t in found if low.peak < t.peak < high.peak and high.step_seconds < t.step_seconds]
    assert len(between) >= 4
    middle = min((t for t in between if t.peak <= (high.peak + low.peak) / 2), key=lambda t: t.step_seconds)
    assert middle.step_seconds <= (high.step_seconds + low.step_seconds) / 2


@given(st.data(), st.integers(0, 8))
def test_plans_that_close_gaps_are_valid_and_stay_below_the_highest_peak(data, trials):
    graph = data.draw(joint_graphs())
    problem = Problem(graph, equal_costs(graph), fuse=data.draw(st.booleans()), max_recompute=2.0)
    try:
        plans = [*save_all(problem), *recompute_all(problem)]
    except ContradictoryMarks:
        return
    starts = [(State(frozenset(plan.saved)), plan) for plan in plans]
    found = list(refine(problem, starts, trials))
    assert len(found) <= 2 * trials
    highest = max(problem.timeline(plan).peak for plan in plans)
    for state, plan in found:
        verify(graph, plan)
        assert plan == state.plan(problem, "descent")
        assert problem.timeline(plan).peak <= highest


@pytest.mark.parametrize("trials", [0, 3])
def test_one_plan_has_no_gap(trials):
    problem, starts = chain_saving([1])
    assert list(refine(problem, starts, trials)) == []
