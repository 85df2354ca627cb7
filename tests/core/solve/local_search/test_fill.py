import dataclasses

from support.graphs import Builder, chain

from rematpass.core.cost import Costs
from rematpass.core.op import Origin
from rematpass.core.solve.local_search.fill import Room
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late


def room(graph, saved, limit, run=None, keep=None):
    costs = Costs(run or (1.0,) * len(graph.ops), keep or (0.0,) * len(graph.values))
    problem = Problem(graph, costs, fuse=False)
    timeline = problem.timeline(schedule_late(graph, saved, "s"))
    return Room(problem, frozenset(saved), timeline, limit)


def test_what_fits_is_saved_and_what_does_not_is_not():
    graph = chain(3, [3, 5, 7])  # activations 1, 2, 3 of 3, 5, 7 bytes; 3 is the output
    least = room(graph, [0], 0).timeline.peak
    assert sorted(room(graph, [0], least + 100).worth_saving()) == [1, 2, 3]
    assert room(graph, [0], 0).worth_saving() == []


def test_what_is_saved_by_every_call_of_a_step_has_to_fit_as_often():
    """Three calls: each value takes its bytes twice more at every moment, so one of 3 needs 9 more, or 6 and a hole."""
    graph = dataclasses.replace(chain(3, [3, 5, 7]), calls=3)
    least = room(graph, [0], 0).timeline.peak
    assert room(graph, [0], least + 5).worth_saving() == []
    (only,) = room(graph, [0], least + 8).worth_saving()
    assert graph.values[only].nbytes == 3
    assert sorted(room(graph, [0], least + 100).worth_saving()) == [1, 2, 3]


def test_the_ops_that_only_one_value_wants_go_with_it():
    """Value 3 is made of 2, which is made of 1: whoever saves 3 spares op2 and op1, but not op0, which 1 needs."""
    b = Builder()
    x = b.input(2)
    one = b.op([x], 3)
    two = b.op([one], 5)
    three = b.op([two], 7)
    tangent = b.input(11, Origin.TANGENT)
    graph = b.build([b.op([three], 13)], [b.op([tangent, one, three], 17)])
    found = room(graph, [x], 1000)
    assert found._only_for(three) == {1, 2}
    assert found._only_for(one) == {0}


def test_a_value_that_costs_more_to_keep_than_to_make_is_made():
    graph = chain(3, [3, 5, 7])
    dear = room(graph, [0], 1000, keep=(100.0,) * len(graph.values))
    assert dear.worth_saving() == []


def test_a_result_of_an_op_that_runs_anyway_spares_nothing():
    """Op 0 writes two values; backward wants both."""
    b = Builder()
    x = b.input(2)
    one, other = b.op([x], 3, 5)
    tangent = b.input(7, Origin.TANGENT)
    middle = b.op([tangent, b.op([one], 11)], 13)
    graph = b.build([b.op([one, other], 17)], [b.op([middle, b.op([other], 19)], 23)])
    assert room(graph, [x], 1000)._only_for(one) == set()
