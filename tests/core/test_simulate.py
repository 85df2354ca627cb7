import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import Builder, in_sequence, integer_costs, joint_graphs, no_costs, three_layers
from support.oracle import choices

from rematpass.core.cost import Costs
from rematpass.core.liveness import plan_of
from rematpass.core.op import Kind, Origin
from rematpass.core.schedule import Drop, Plan, Run
from rematpass.core.simulate import LiveInterval, Timeline, recompute_seconds, simulate, step_seconds
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.core.verify import verify
from rematpass.errors import PlanError

COSTS = Costs(run=(2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), keep=(19.0, 23.0, 29.0, 31.0, 37.0, *[1000.0] * 5))
RUNS = (Run(0), Run(1), Run(2), Run(3), Run(4), Run(5), Run(6))

# One column per value in memory: 2 has 7 bytes, 3 has 11, 4 (the output) 13, 5 (the tangent) 13, then 19, 17, 23, 29.
SAVE_ALL = (
    7,
    7 + 11,
    7 + 11 + 13,
    7 + 11 + 13 + 13 + 19,  # 7 is returned, so it is made before 6
    7 + 13 + 13 + 19 + 17,
    7 + 13 + 19 + 17 + 23,
    13 + 19 + 23 + 29,
)
RECOMPUTE_3 = (
    7,
    7 + 11,
    7 + 11 + 13,
    7 + 13 + 13 + 11,  # 3 is recomputed
    7 + 13 + 13 + 11 + 19,
    7 + 13 + 13 + 19 + 17,
    7 + 13 + 19 + 17 + 23,
    13 + 19 + 23 + 29,
)
RECOMPUTE_2_AND_3 = (
    7,
    7 + 11,  # 2 ends here
    11 + 13,
    13 + 13 + 7,
    13 + 13 + 7 + 11,
    13 + 13 + 7 + 11 + 19,
    13 + 13 + 7 + 19 + 17,
    13 + 7 + 19 + 17 + 23,
    13 + 19 + 23 + 29,
)


@pytest.mark.parametrize(
    ("saved", "live", "again", "kept"),
    [
        ([0, 1, 2, 3], SAVE_ALL, 0, 19 + 23 + 29 + 31),
        ([0, 1, 2], RECOMPUTE_3, 3, 19 + 23 + 29),
        ([0, 1], RECOMPUTE_2_AND_3, 2 + 3, 19 + 23),
    ],
)
def test_bytes_and_seconds_of_a_plan_by_hand(saved, live, again, kept):
    graph = three_layers()
    timeline = simulate(graph, schedule_late(graph, saved, "s"), COSTS, fuse=False)
    assert timeline.live == live
    assert timeline.peak == max(live)
    assert timeline.first_backward == 3
    assert timeline.recompute_seconds == again
    assert timeline.step_seconds == sum(COSTS.run) + again + kept


def test_a_value_that_is_computed_three_times_has_three_intervals():
    graph = three_layers()
    bwd = (Run(1, 1), Run(4), Run(3), Run(1, 2), Run(5), Run(6))
    plan = plan_of(graph, "s", (0, 1, 2), RUNS[:3], bwd)
    timeline = simulate(graph, plan, COSTS, fuse=False)
    assert [(t.born, t.end) for t in timeline.intervals if t.value == 3] == [(1, 2), (3, 4), (6, 6)]
    assert timeline.live[3:] == (
        7 + 13 + 13 + 11,
        7 + 13 + 13 + 11 + 19,
        7 + 13 + 13 + 19 + 17,
        7 + 13 + 19 + 17 + 11,  # nothing reads this copy: it ends at once
        7 + 13 + 19 + 17 + 23,
        13 + 19 + 23 + 29,
    )
    assert timeline.recompute_seconds == 2 * 3.0


def test_intervals_add_up_to_the_live_bytes_without_inputs_and_parameters():
    graph = three_layers()
    plan = schedule_late(graph, [0, 1, 2], "s")
    timeline = simulate(graph, plan, COSTS, fuse=False)
    assert {t.value for t in timeline.intervals} == {2, 3, 4, 5, 6, 7, 8, 9}
    assert all(t.nbytes == graph.values[t.value].nbytes for t in timeline.intervals)
    there = [sum(t.nbytes for t in timeline.intervals if t.born <= i <= t.end) for i in range(len(timeline.live))]
    assert tuple(there) == timeline.live


def test_values_saved_by_other_calls_count_at_every_position():
    """Of four calls, three have saved their own input and two activations; the parameter is shared by all."""
    once = three_layers()
    graph = dataclasses.replace(once, calls=4, own_inputs=(0,))
    plan = schedule_late(graph, [0, 1, 2, 3], "s")
    timeline = simulate(graph, plan, COSTS, fuse=False)
    others = 3 * sum(once.values[v].nbytes for v in (0, 2, 3))
    assert timeline.nbytes_of_others == others
    assert timeline.live == tuple(nbytes + others for nbytes in SAVE_ALL)
    assert verify(graph, plan) == timeline.peak
    assert simulate(dataclasses.replace(graph, own_inputs=()), plan, COSTS, fuse=False).nbytes_of_others == 3 * (7 + 11)


def test_intervals_at_the_peak_are_sorted_by_size():
    timeline = simulate(three_layers(), schedule_late(three_layers(), [0, 1, 2, 3], "s"), COSTS, fuse=False)
    assert timeline.live.index(timeline.peak) == 6
    assert [(t.value, t.nbytes) for t in timeline.at_peak()] == [(9, 29), (8, 23), (7, 19), (4, 13)]


def test_the_first_of_equal_peaks_counts_and_ids_break_ties():
    intervals = (
        LiveInterval(7, 1, 5, 0, 1),
        LiveInterval(7, 0, 5, 0, 0),
        LiveInterval(3, 0, 5, 0, 2),
        LiveInterval(2, 0, 0, 0, 2),
    )
    timeline = Timeline((), 0, (11, 15, 15), (*intervals, LiveInterval(9, 0, 11, 2, 2)), 0.0, 0.0)
    assert [(t.value, t.copy) for t in timeline.at_peak()] == [(3, 0), (7, 1)]


def test_a_plan_without_steps_takes_no_bytes():
    timeline = Timeline((), 0, (), (), 0.0, 0.0)
    assert (timeline.peak, timeline.at_peak()) == (0, [])


def dropped_outputs(kind=Kind.MATMUL):
    """The outputs of forward are 2 (7 bytes) and 3 (11); in backward, the second op reads 3 and no op reads 2.

    ::

        input 0 (3) ─▶ op0 ─▶ 1 (5) ─▶ op1 ─▶ 2 (7) ─▶ op2 ─▶ 3 (11)
        tangent 4 (11), op3: 4 ─▶ 5 (13), op4: 5, 3 ─▶ 6 (17), op5: 6 ─▶ 7 (19), the gradient
    """
    b = Builder()
    x = b.input(3)
    y = b.op([b.op([x], 5)], 7, kind=kind)
    z = b.op([y], 11, kind=kind)
    first = b.op([b.input(11, Origin.TANGENT)], 13, kind=kind)
    return b.build([y, z], [b.op([b.op([first, z], 17, kind=kind)], 19, kind=kind)], holds_outputs=False)


@pytest.mark.parametrize(
    ("kind", "live"),
    [
        (Kind.MATMUL, (5, 5 + 7, 7 + 11, 11 + 11 + 13, 11 + 13 + 17, 17 + 19)),
        (Kind.POINTWISE, (5, 5 + 7, 7 + 11, 11 + 11, 11 + 11, 11 + 11 + 19)),  # 5 and 6 are virtual
    ],
)
def test_outputs_that_the_caller_drops_live_to_the_end_of_forward_or_while_they_are_saved(kind, live):
    graph = dropped_outputs(kind)
    plan = schedule_late(graph, [3], "s")
    assert Drop(3) in plan.bwd
    assert verify(graph, plan) == 11 + 13 + 17
    timeline = simulate(graph, plan, Costs((1.0,) * 6, (0.0,) * 8))
    assert timeline.live == live
    assert timeline.peak == timeline.peak_without_outputs


@pytest.mark.parametrize("fuse", [False, True])
def test_a_run_without_its_arguments_is_refused(fuse):
    with pytest.raises(PlanError) as caught:
        simulate(three_layers(), Plan("mine", (), (Run(0), Drop(2), Run(1)), ()), COSTS, fuse=fuse)
    assert str(caught.value) == "mine: step 1 runs op 1 (op1) without its inputs"


@given(st.data())
def test_the_judge_finds_the_same_peak(data):
    graph = data.draw(joint_graphs())
    assume(next(choices(graph), None))
    costs = data.draw(integer_costs(graph))
    plan = schedule_late(graph, Network(graph).solve(costs.run, costs.keep).saved, "s")
    timeline = simulate(graph, plan, costs, fuse=False)
    assert timeline.peak == verify(graph, plan)
    assert recompute_seconds(graph, plan, costs) == timeline.recompute_seconds
    assert step_seconds(graph, plan, costs) == timeline.step_seconds


@given(st.data())
def test_saved_values_and_outputs_are_in_memory_under_fusion(data):
    graph = data.draw(joint_graphs())
    assume(next(choices(graph), None))
    costs = data.draw(integer_costs(graph))
    plan = schedule_late(graph, Network(graph).solve(costs.run, costs.keep).saved, "s")
    fused, plain = (simulate(graph, plan, costs, fuse=fuse) for fuse in (True, False))
    assert fused.runs == plain.runs
    assert fused.first_backward == plain.first_backward
    assert (fused.recompute_seconds, fused.step_seconds) == (plain.recompute_seconds, plain.step_seconds)
    in_memory = {t.value for t in fused.intervals if t.nbytes}
    needed = {*plan.saved, *graph.fwd_outputs, *graph.bwd_outputs}
    assert {
        v.id for v in graph.values if v.id in needed and v.nbytes and v.origin not in (Origin.STATIC, Origin.INPUT)
    } <= in_memory


def test_an_op_that_fuses_overwrites_an_argument_of_its_size_at_its_last_read():
    graph = in_sequence((Kind.MATMUL, 97), (Kind.POINTWISE, 97))
    assert simulated(graph, fuse=False).peak == 2 * 97
    assert simulated(graph).peak == 97 + 3


@pytest.mark.parametrize("ops", [((Kind.MATMUL, 97), (Kind.POINTWISE, 89)), ((Kind.MATMUL, 97), (Kind.MATMUL, 97))])
def test_an_op_of_another_size_or_kind_allocates(ops):
    peaks = {simulated(in_sequence(*ops), fuse=fuse).peak for fuse in (False, True)}
    assert peaks == {ops[0][1] + ops[1][1]}


def test_an_argument_that_is_read_later_is_not_overwritten():
    b = Builder()
    x = b.input(2)
    a = b.op([x], 97)
    out = b.op([a], 97, kind=Kind.POINTWISE)
    later = b.op([a, out], 5)
    tangent = b.input(0, Origin.TANGENT)
    graph = b.build([out, later], [b.op([tangent], 3)])
    assert simulated(graph).live[:3] == (97, 97 + 97, 97 + 97 + 5)


def test_an_output_is_not_overwritten():
    b = Builder()
    x = b.input(2)
    a = b.op([x], 97)
    out = b.op([a], 97, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    graph = b.build([a, out], [b.op([tangent], 3)])
    assert simulated(graph).live[:2] == (97, 97 + 97)


@pytest.mark.parametrize("how", [{"order": 1}, {"dtype": "int32"}])
def test_an_argument_in_another_order_or_of_another_dtype_is_not_overwritten(how):
    """As a result of a transposed argument, or of a cast: Inductor compares the index expressions and the dtypes."""
    graph = in_sequence((Kind.MATMUL, 97), (Kind.POINTWISE, 97))
    values = list(graph.values)
    values[1] = dataclasses.replace(values[1], **how)
    assert simulated(dataclasses.replace(graph, values=tuple(values))).live[:2] == (97, 97 + 97)


def test_an_argument_that_is_not_read_element_by_element_is_not_overwritten():
    graph = in_sequence((Kind.MATMUL, 97), (Kind.POINTWISE, 97))
    ops = list(graph.ops)
    ops[1] = dataclasses.replace(ops[1], reads_elsewhere=(1,))
    assert simulated(dataclasses.replace(graph, ops=tuple(ops))).live[:2] == (97, 97 + 97)


@pytest.mark.parametrize(
    ("orders", "elsewhere", "overwrites"),
    [
        ((0, 1, 0), (), True),  # transposed and transposed back
        ((0, 0, 1), (), False),
        ((0, 0, 0), (1,), False),  # what the virtual value in between gathers
        ((0, 0, 0), (2,), False),  # gathered from the virtual value
    ],
)
def test_orders_are_followed_through_virtual_copies(orders, elsewhere, overwrites):
    graph = in_sequence((Kind.MATMUL, 97), (Kind.POINTWISE, 97), (Kind.POINTWISE, 97))
    values, ops = list(graph.values), list(graph.ops)
    for v, order in zip((1, 2, 3), orders, strict=True):
        values[v] = dataclasses.replace(values[v], order=order)
    for v in elsewhere:
        ops[v] = dataclasses.replace(ops[v], reads_elsewhere=(v,))
    live = simulated(dataclasses.replace(graph, values=tuple(values), ops=tuple(ops))).live
    assert live[:3] == (97, 97, 97 if overwrites else 97 + 97)


def test_an_argument_that_is_also_read_elsewhere_through_a_virtual_copy_is_not_overwritten():
    """As in ``x + x.flip(0)``."""
    b = Builder()
    a = b.op([b.input(2)], 97)
    flipped = b.op([a], 97, kind=Kind.COPY, reads_elsewhere=(a,))
    out = b.op([a, flipped], 97, kind=Kind.POINTWISE)
    graph = b.build([out], [b.op([b.input(0, Origin.TANGENT)], 3)])
    assert simulated(graph).live[:3] == (97, 97, 97 + 97)


def test_only_one_result_overwrites_an_argument():
    b = Builder()
    x = b.input(2)
    a = b.op([x], 97)
    results = b.op([a], 97, 97, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    graph = b.build(results, [b.op([tangent], 3)])
    assert simulated(graph).live[:2] == (97, 97 + 97)


def simulated(graph, *, fuse=True):
    return simulate(graph, schedule_late(graph, [], "s"), no_costs(graph), fuse=fuse)
