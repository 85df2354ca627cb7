import dataclasses

from support.graphs import Builder, chain

from rematpass.core.cost import Costs
from rematpass.core.op import Origin
from rematpass.core.solve.local_search.fill import Headroom
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late


def headroom(graph, saved, limit, run=None, keep=None):
    costs = Costs(run or (1.0,) * len(graph.ops), keep or (0.0,) * len(graph.values))
    problem = Problem(graph, costs, fuse=False)
    timeline = problem.timeline(schedule_late(graph, saved, "s"))
    return Headroom(problem, frozenset(saved), timeline, limit)


def test_only_what_fits_is_worth_saving():
    graph = chain(3, [3, 5, 7])  # activations 1, 2, 3 of 3, 5, 7 bytes; 3 is the output
    least = headroom(graph, [0], 0).timeline.peak
    assert sorted(headroom(graph, [0], least + 100).worth_saving()) == [1, 2, 3]
    assert headroom(graph, [0], 0).worth_saving() == []


def test_a_value_has_to_fit_once_for_every_call_of_a_step():
    """With three calls, the copies of the other two are alive all the time: 3 bytes need 9, or 6 beside a dip of 3."""
    graph = dataclasses.replace(chain(3, [3, 5, 7]), calls=3)
    least = headroom(graph, [0], 0).timeline.peak
    assert headroom(graph, [0], least + 5).worth_saving() == []
    (only,) = headroom(graph, [0], least + 8).worth_saving()
    assert graph.values[only].nbytes == 3
    assert sorted(headroom(graph, [0], least + 100).worth_saving()) == [1, 2, 3]


def test_saving_a_value_spares_the_ops_that_run_only_for_it():
    """Saving value 3 spares op2 and op1, which compute it from value 1, but not op0, which computes value 1."""
    b = Builder()
    x = b.input(2)
    one = b.op([x], 3)
    two = b.op([one], 5)
    three = b.op([two], 7)
    tangent = b.input(11, Origin.TANGENT)
    graph = b.build([b.op([three], 13)], [b.op([tangent, one, three], 17)])
    found = headroom(graph, [x], 1000)
    assert found._exclusive_ops(three) == {1, 2}
    assert found._exclusive_ops(one) == {0}


def test_a_value_that_costs_more_to_keep_than_to_recompute_is_not_saved():
    graph = chain(3, [3, 5, 7])
    expensive = headroom(graph, [0], 1000, keep=(100.0,) * len(graph.values))
    assert expensive.worth_saving() == []


def test_saving_one_result_spares_nothing_if_the_op_runs_for_another():
    """Op 0 writes two values, and backward needs both."""
    b = Builder()
    x = b.input(2)
    one, other = b.op([x], 3, 5)
    tangent = b.input(7, Origin.TANGENT)
    middle = b.op([tangent, b.op([one], 11)], 13)
    graph = b.build([b.op([one, other], 17)], [b.op([middle, b.op([other], 19)], 23)])
    assert headroom(graph, [x], 1000)._exclusive_ops(one) == set()
