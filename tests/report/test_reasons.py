import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import Builder, integer_costs, joint_graphs, three_layers
from support.oracle import choices

from rematpass.core.cost import Costs
from rematpass.core.op import Kind, Origin
from rematpass.core.simulate import simulate
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.report.reasons import Fate, accounts

COSTS = Costs(run=(2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), keep=(0.0,) * 10)


def fates(graph, saved, costs=COSTS, fuse=False):
    plan = schedule_late(graph, saved, "test")
    timeline = simulate(graph, plan, costs, fuse=fuse)
    return {a.value: a for a in accounts(graph, plan, timeline, costs)}


def test_a_saved_value_costs_the_ops_that_would_run_again():
    found = fates(three_layers(), [2, 3])
    assert found[3].reason == "saved: recomputing costs 3.00 s for 11 B"
    assert found[2].reason == "saved: recomputing costs 2.00 s for 7 B"
    assert (found[3].fate, found[3].seconds) == (Fate.SAVED, 3.0)


def test_a_saved_value_costs_more_if_its_inputs_are_not_saved():
    b = Builder()
    x = b.input(3)
    middle = b.op([x], 5)
    kept = b.op([middle], 7)
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([b.op([kept], 11)], [b.op([tangent, kept], 13)])
    found = fates(graph, [kept], Costs(run=(2.0, 3.0, 5.0, 7.0), keep=(0.0,) * 6))
    assert found[kept].reason == "saved: recomputing costs 5.00 s through 2 ops for 7 B"
    assert found[middle] == dataclasses.replace(
        found[middle], fate=Fate.FREED, reason="freed after its last use: backward does not read it", seconds=0.0
    )


def test_ops_that_run_again_anyway_cost_nothing():
    found = fates(three_layers(), [3])  # 2 is recomputed, by op 0, from which 3 is one op away
    assert found[2].reason == "recomputed: costs 2.00 s instead of 7 B"
    assert found[3].reason == "saved: recomputing costs 3.00 s for 11 B"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"op1": {"never_recompute": "it draws random numbers"}},
            "saved: it must not run again: it draws random numbers",
        ),
        ({"op1": {"must_save": True}}, "saved: an annotation requires it"),
    ],
)
def test_the_reason_names_why_a_value_had_to_be_saved(fields, reason):
    assert fates(three_layers(**fields), [2, 3])[3].reason == reason


def test_the_reason_names_the_op_that_must_not_run_again():
    b = Builder()
    x = b.input(3)
    noise = b.op([x], 5, kind=Kind.RANDOM, never_recompute="it draws random numbers", name="rand")
    kept = b.op([noise], 7)
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([b.op([kept], 11)], [b.op([tangent, kept], 13)])
    found = fates(graph, [kept], Costs(run=(1.0,) * 4, keep=(0.0,) * 6))
    assert found[kept].reason == "saved: it needs rand, which must not run again: it draws random numbers"


def test_the_reason_names_why_a_value_is_recomputed():
    by_mark = fates(three_layers(op1={"must_recompute": True}), [2])[3]
    assert by_mark.reason == "recomputed: an annotation requires it; costs 3.00 s"
    unsavable = fates(three_layers(op1={"cannot_save": "SymBool is not a tensor"}), [2])[3]
    assert unsavable.reason == "recomputed: it cannot be saved: SymBool is not a tensor"


def test_a_fused_value_takes_no_memory():
    fields = {f"op{i}": {"kind": Kind.POINTWISE} for i in (1, 4)}
    found = fates(three_layers(**fields), [2], fuse=True)[3]
    assert found.reason == (
        "recomputed: costs 3.00 s instead of 11 B; fused into the kernels that read it, so it takes no memory"
    )
    assert found.in_memory  # forward's copy, which a matmul reads, does
    all_fused = {f"op{i}": {"kind": Kind.POINTWISE} for i in range(7)}
    assert not fates(three_layers(**all_fused), [2], fuse=True)[3].in_memory


def test_inputs_outputs_tangents_and_gradients_have_fates_of_their_own():
    found = fates(three_layers(), [0, 2, 3])
    assert {v: (a.fate, a.reason) for v, a in found.items() if v not in (2, 3)} == {
        0: (Fate.SAVED, "an input: it exists before the step"),
        4: (Fate.OUTPUT, "an output of forward that backward does not read"),
        5: (Fate.TEMPORARY, "a tangent: an argument of backward"),
        6: (Fate.TEMPORARY, "an intermediate gradient"),
        7: (Fate.GRADIENT, "returned by backward"),
        8: (Fate.TEMPORARY, "an intermediate gradient"),
        9: (Fate.GRADIENT, "returned by backward"),
    }


def test_saved_outputs_and_values_made_in_backward_have_reasons():
    b = Builder()
    x = b.input(3)
    y = b.op([x], 5)
    tangent = b.input(5, Origin.TANGENT)
    late = b.op([x], 7)
    graph = b.build([y], [b.op([tangent, y, late], 11)])
    found = fates(graph, [x, y], Costs(run=(1.0,) * 3, keep=(0.0,) * 5))
    assert found[y].reason == "saved: an output of forward, which exists anyway"
    assert (found[late].fate, found[late].reason) == (Fate.LATE, "made in backward: forward does not read it")


def test_values_are_sorted_by_size_and_marked_at_the_peak():
    plan = schedule_late(three_layers(), [2, 3], "test")
    timeline = simulate(three_layers(), plan, COSTS, fuse=False)
    told = accounts(three_layers(), plan, timeline, COSTS)
    sizes = [three_layers().values[a.value].nbytes for a in told]
    assert sizes == sorted(sizes, reverse=True)
    assert {a.value for a in told if a.at_peak} == {t.value for t in timeline.at_peak()}


@given(st.data())
def test_every_value_that_takes_bytes_has_one_account(data):
    graph = data.draw(joint_graphs())
    assume(next(choices(graph), None))
    costs = data.draw(integer_costs(graph))
    found = fates(graph, Network(graph).solve(costs.run, costs.keep).saved, costs)
    made = {v.id for v in graph.values if v.nbytes and v.origin in (Origin.OP, Origin.TANGENT)}
    inputs = {v.id for v in graph.values if v.origin is Origin.INPUT}
    assert made <= found.keys() <= made | inputs
