import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import Builder, chain, drawn_ladder, three_layers
from support.oracle import Search

from rematpass.core.cost import Costs
from rematpass.core.op import Origin
from rematpass.core.schedule import Drop, Run
from rematpass.core.simulate import simulate
from rematpass.core.solve.exact import exact
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify


def problem_of(graph, run=1.0, keep=0.0):
    costs = Costs((run,) * len(graph.ops), (keep,) * len(graph.values))
    return Problem(graph, costs, fuse=False, max_recompute=math.inf)


@pytest.mark.parametrize(
    ("peak", "again"),
    [
        (42, 0),  # the output, two gradients, values 1, 2 and 3: everything is saved
        (41, 1),  # one byte less: value 1 is dropped in forward and recomputed after the last use of value 3
        (35, 1),
        (34, math.inf),  # the second op of backward has five values in memory in every plan
    ],
)
def test_a_chain_solved_by_hand(peak, again):
    """Four layers of 7 bytes, 1 s each. Backward's ops read values (4, 3), (3, 2), (2, 1) and (1)."""
    found = exact(problem_of(chain(4)), peak)
    assert (found.seconds, found.least, found.optimal) == (8 + again, 8 + again, True)
    assert (found.plan is None) is (again == math.inf)


def test_keeping_is_weighed_against_recomputing():
    """Keeping a value costs 2 s and recomputing it 1 s: only the input is kept, even with enough memory."""
    found = exact(problem_of(chain(4), keep=2.0), 1000)
    assert found.plan.saved == (0, 4) or found.plan.saved == (0,)


def test_a_value_is_computed_as_often_as_the_limit_requires():
    """Ten layers of 7 bytes under a limit of six values: some layers run three times in all."""
    problem = problem_of(chain(10))
    found = exact(problem, 42)
    times = [sum(step == Run(op, copy) for step in found.plan.bwd for copy in range(1, 9)) for op in range(10)]
    assert found.optimal
    assert max(times) > 1
    assert found.seconds == 20 + sum(times)
    assert exact(problem, 42, max_recompute=sum(times) / 10).seconds == found.seconds
    fewer = exact(problem, 42, max_recompute=(sum(times) - 1) / 10)
    assert (fewer.plan, fewer.seconds) == (None, math.inf)


def test_two_passes_compute_a_value_twice_for_one_own_op():
    """Backward needs c and ``last``, computed from h (20 bytes) and c; 50 bytes lie on the way from h to c.

        input ─▶ h (20) ─▶ (40) ─▶ (1) ─▶ (50) ─▶ c (1) ─▶ last (1)
                 └──────────────────────────────────────────▲

    With one pass, h stays in memory beside the 50 bytes until c is computed; with two, it is dropped and recomputed.
    """
    b = Builder()
    x = b.input(1)
    h = b.op([x], 20, cannot_save="it is too large")
    v = b.op([h], 40, cannot_save="it is too large")
    for nbytes in (1, 50, 1):
        v = b.op([v], nbytes, cannot_save="it is too large")
    last = b.op([h, v], 1, cannot_save="it is too large")
    y = b.op([last, v], 1)
    tangent = b.input(1, Origin.TANGENT)
    graph = b.build([y], [b.op([tangent, last, v], 1)])
    problem = problem_of(graph)
    # While 50 bytes become 1, memory also holds the output, the tangent and, with one pass, h.
    assert [exact(problem, peak, passes=1).seconds for peak in (72, 73)] == [math.inf, 14]
    assert [exact(problem, peak, passes=2).seconds for peak in (70, 71, 73)] == [math.inf, 15, 14]


@pytest.mark.parametrize("mark", [{"never_recompute": "it draws random numbers"}, {"must_save": True}])
def test_an_op_that_must_run_once_is_not_recomputed(mark):
    found = exact(problem_of(three_layers(op1=mark)), 90)
    assert found.optimal
    assert all(run.op != 1 for run in found.plan.recomputed())


@pytest.mark.parametrize("mark", [{"must_recompute": True}, {"cannot_save": "SymBool is not a tensor"}])
def test_a_value_that_must_not_be_saved_is_recomputed(mark):
    found = exact(problem_of(three_layers(op1=mark)), 90)
    assert 3 not in found.plan.saved
    assert [run.op for run in found.plan.recomputed()] == [1]  # value 2 is saved


def test_a_saved_output_that_the_caller_holds_is_not_dropped():
    graph = chain(3)
    found = exact(problem_of(graph), 1000)
    assert found.plan.saved == (0, 1, 2, 3)
    assert not any(isinstance(step, Drop) and step.value == 3 for step in found.plan.bwd)


def test_a_saved_output_that_the_caller_releases_is_dropped():
    graph = dataclasses.replace(chain(3), holds_outputs=False)
    found = exact(problem_of(graph), 28)  # the peak while backward's first op runs: 3 and 2, tangent, gradient
    assert Drop(3) in found.plan.bwd
    assert [run.op for run in found.plan.recomputed()] == [0]  # saving value 1 too would be a fifth value


def test_without_time_nothing_is_claimed():
    found = exact(problem_of(chain(12)), 49, deterministic_time=0.0)
    assert not found.optimal
    assert found.plan is None
    assert found.least < math.inf


@settings(max_examples=120)
@given(st.data())
def test_no_rung_beats_the_oracle_and_its_plans_are_valid(data):
    if (drawn := drawn_ladder(data)) is None:
        return
    problem, ladder = drawn
    for rung, faster in itertools.pairwise((*ladder.rungs, None)):
        found = exact(problem, rung.peak)
        assert found.optimal
        assert found.seconds == found.least <= rung.seconds
        assert verify(problem.graph, found.plan) <= rung.peak
        assert simulate(problem.graph, found.plan, problem.costs, fuse=False).peak <= rung.peak
        assert faster is None or faster.peak < rung.peak


@settings(max_examples=80)
@given(st.data())
def test_the_oracle_agrees_with_a_search_over_all_schedules(data):
    """The search may reorder recomputations and could find faster plans; two passes make up for that."""
    if (drawn := drawn_ladder(data, max_ops=2)) is None:
        return
    problem, ladder = drawn
    search = Search(problem.graph, problem.costs)
    for peak in {ladder.floor - 3, ladder.floor, (ladder.floor + ladder.ceiling) // 2}:
        assert exact(problem, peak, passes=2).seconds == search.seconds(peak)
