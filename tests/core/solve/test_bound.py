import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.graphs import Builder, chain, drawn_ladder, integer_costs, joint_graphs, three_layers
from support.oracle import Search, choices

from rematpass.core import frontier
from rematpass.core.cost import Costs
from rematpass.core.op import Kind, Origin
from rematpass.core.solve.bound import Bound, least_seconds, lower_bound
from rematpass.core.solve.exact import exact
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.solve.unavoidable import ConditionalBytes, UnavoidableBytes
from rematpass.errors import ContradictoryMarks, PlanError

ROUNDING = 1e-6  # seconds; costs are whole numbers


def costs_of(graph, run=1.0, keep=0.0):
    return Costs((run,) * len(graph.ops), (keep,) * len(graph.values))


# A chain of n layers of 7 bytes. Value k is the output of layer k, value n the loss. The own op of layer k reads values
# k and k - 1.


def test_unavoidable_bytes_of_a_chain():
    unavoidable = UnavoidableBytes(chain(3), fuse=False)
    # Forward: a layer's argument and result. End of forward: the output. Backward: the output, the gradient that comes
    # in, the gradient that is made, and what the own op reads (the input, value 0, takes no bytes).
    assert unavoidable.end_of_forward == 3
    assert unavoidable.nbytes.tolist() == [7, 14, 14, 7, 28, 35, 28]


def test_a_released_output_is_unavoidable_until_the_end_of_forward_and_while_it_is_read():
    unavoidable = UnavoidableBytes(dataclasses.replace(chain(3), holds_outputs=False), fuse=False)
    assert unavoidable.nbytes.tolist() == [7, 14, 14, 7, 28, 28, 21]
    saved = unavoidable.if_saved.usage(np.arange(len(unavoidable.graph.values)) == 3, unavoidable.count)
    assert not saved.any()  # backward's first op reads it, and none after that


def test_a_saved_value_lives_until_its_last_own_reader():
    unavoidable = UnavoidableBytes(chain(3), fuse=False)
    saved = unavoidable.if_saved.usage(np.isin(np.arange(len(unavoidable.graph.values)), (1, 2)), unavoidable.count)
    # Value 1 from moment 2 on (forward reads it at 1), value 2 from the end of forward on. While an own op reads a
    # value, its bytes are unavoidable and do not count again.
    assert saved.tolist() == [0, 0, 7, 14, 7, 0, 0]


def test_conditional_bytes_are_priced_by_the_moments_that_they_last():
    conditional = ConditionalBytes.of([[(0, 3, 5), (1, 2, -5)], [(2, 4, 7)], []])
    assert conditional.cost(np.array([1.0, 2.0, 4.0, 8.0])).tolist() == [25.0, 84.0, 0.0]


def test_the_bound_of_a_chain_by_hand():
    """16 layers of 7 bytes, 1 s for each op.

    While backward's first op runs, memory holds the output, its gradient, the gradient that is made, value 15, and
    k - 1 more values if k are saved: 7 (k + 3) bytes. Under this limit, 15 - k layers are recomputed.
    """
    graph = chain(16)
    problem = Problem(graph, costs_of(graph), fuse=False)
    bound = lower_bound(problem, [7 * (k + 3) for k in range(2, 16)])
    for k in range(2, 16):
        assert bound.seconds(7 * (k + 3)) == pytest.approx(32 + 15 - k, abs=ROUNDING)
    assert bound.floor == 35  # the output, two gradients, two activations
    nbytes, op = UnavoidableBytes(graph, fuse=False).working_set()
    assert (nbytes, op.id) == (35, 17)  # while backward's second op runs
    assert bound.seconds(34) == math.inf


def test_one_line_bounds_a_long_chain_at_every_peak():
    graph = chain(400)
    bound = lower_bound(Problem(graph, costs_of(graph), fuse=False), [7 * 103])
    for k in (100, 200, 399):
        assert bound.seconds(7 * (k + 3)) == pytest.approx(800 + 399 - k, abs=1e-3)


def test_a_value_or_what_is_computed_from_it_stays_in_memory():
    """``exp`` may be recomputed but its argument may not, so 11 bytes stay in memory until backward has used them.

    h ─▶ [exp] ─▶ e ─▶ backward's second op; backward's first op reads neither. h and e take 11 bytes each.
    """
    b = Builder()
    x = b.input(3)
    h = b.op([x], 11, never_recompute="it draws random numbers")
    e = b.op([h], 11)
    y = b.op([e], 5)
    tangent = b.input(5, Origin.TANGENT)
    first = b.op([tangent], 5)
    graph = b.build([y], [b.op([first, e], 7)])
    unavoidable = UnavoidableBytes(graph, fuse=False)
    assert unavoidable.reader_pairs == ((0,), (1,))  # op 0 is not recomputed, op 1 is
    first_own = unavoidable.end_of_forward + 1
    usage = unavoidable.if_reader_recomputed.usage(np.array([True]), unavoidable.count)
    assert usage[first_own:].tolist() == [11, 0]  # at the second own op, the bytes of e are unavoidable
    # At the first own op: the output, two gradients, and 11 bytes of h or e. At the second: 5 + 5 + 7 + 11.
    problem = Problem(graph, costs_of(graph), fuse=False)
    assert lower_bound(problem, [28]).floor == 28


def test_values_that_may_be_fused_are_not_unavoidable():
    unavoidable = UnavoidableBytes(chain(3, kind=Kind.POINTWISE), fuse=True)
    assert unavoidable.nbytes.tolist() == [0, 0, 7, 7, 14, 7, 14]  # the output, the tangent, the gradient


def test_the_curve_has_the_corners_of_the_upper_envelope():
    bound = Bound(((100.0, 2.0), (70.0, 1.0), (20.0, 0.0)), floor=10)
    assert bound.curve(0, 80) == ((10, 80.0), (30, 40.0), (50, 20.0), (80, 20.0))
    assert bound.curve(30.5, 40) == ((31, 39.0), (40, 30.0))
    assert bound.curve(0, 5) == ()
    assert (bound.gap(44.0, 30), bound.gap(39.0, 30)) == (pytest.approx(0.1), 0.0)


def test_without_a_limit_the_bound_is_the_fastest_plan():
    graph = three_layers()
    problem = Problem(graph, Costs((2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), (0.25,) * 10), fuse=False)
    fastest = frontier.build(problem).rungs[0].seconds
    assert least_seconds(problem, None) == pytest.approx(fastest, abs=ROUNDING)


def test_contradictory_marks_give_an_empty_bound():
    graph = three_layers(op1={"never_recompute": "it draws random numbers", "must_recompute": True})
    assert lower_bound(Problem(graph, costs_of(graph)), [100]) == Bound((), 0)


@settings(max_examples=500)
@given(st.data())
def test_the_bound_exceeds_neither_the_oracle_nor_any_plan(data):
    """On 500 graphs: the oracle's optimum at both ends of the ladder, and every set of saved values."""
    graph = data.draw(joint_graphs(max_ops=3))
    costs = data.draw(integer_costs(graph))
    for fuse in (False, True):
        problem = Problem(graph, costs, fuse=fuse, max_recompute=math.inf)
        try:
            ladder = frontier.build(problem)
        except ContradictoryMarks:
            return
        bound = lower_bound(problem, [rung.peak for rung in ladder.rungs])
        plans = [rung.timeline for rung in ladder.rungs]
        for choice in choices(graph):
            try:
                plans.append(problem.timeline(schedule_late(graph, choice.saved, "any")))
            except PlanError:  # backward would run an op twice that must run once
                continue
        for timeline in plans:
            assert bound.seconds(timeline.peak) <= timeline.step_seconds + ROUNDING
        if not fuse:
            for peak in {ladder.floor, ladder.ceiling}:
                assert bound.seconds(peak) <= exact(problem, peak).seconds + ROUNDING


@settings(max_examples=60)
@given(st.data())
def test_the_bound_never_exceeds_the_fastest_of_all_schedules(data):
    """Schedules that run any op at any time, as often as they like."""
    if (drawn := drawn_ladder(data, max_ops=2)) is None:
        return
    problem, ladder = drawn
    peaks = {ladder.floor - 3, ladder.floor, (ladder.floor + ladder.ceiling) // 2}
    bound, search = lower_bound(problem, peaks), Search(problem.graph, problem.costs)
    for peak in peaks:
        assert bound.seconds(peak) <= search.seconds(peak) + ROUNDING
