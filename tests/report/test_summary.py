import dataclasses

import pytest
from support.graphs import Builder, no_costs, three_layers

from rematpass.budget import Budget, BudgetKind
from rematpass.core.cost import Costs
from rematpass.core.frontier import Ladder, Rung, peak_allowed
from rematpass.core.op import Kind, Origin, Value
from rematpass.core.simulate import LiveInterval, Timeline, simulate
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.report.summary import describe, infeasible, summarize
from rematpass.units import parse_bytes

MIB = 2**20
COSTS = Costs(run=(2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), keep=(0.0,) * 10)


def graph_and_ladder():
    """Ceiling: everything is saved; floor: 2 and 3 are made again. The peaks are 84 bytes and, set by hand, 61."""
    graph = dataclasses.replace(
        three_layers(op0={"flops": 101}, op1={"flops": 103}, op2={"flops": 107}), name="graph 0/0"
    )
    fast, slow = (schedule_late(graph, saved, "ladder") for saved in ([2, 3], []))
    rungs = [Rung(plan, simulate(graph, plan, COSTS, fuse=False)) for plan in (fast, slow)]
    rungs[1] = Rung(slow, dataclasses.replace(rungs[1].timeline, live=(7, 61)))
    return graph, Ladder(tuple(rungs))


def summary(rung, **fields):
    graph, ladder = graph_and_ladder()
    given = {
        "budget": Budget(),
        "limit": None,
        "peaks": (ladder.rungs[rung].peak, ladder.rungs[rung].peak),
        "exact": False,
        "planning_seconds": 0.25,
        "dry_run_seconds": 0.5,
        "plan_hash": "c0ffee",
    }
    return summarize(graph, ladder, ladder.rungs[rung], **{**given, **fields})


def test_the_log_line_states_the_gap_to_the_bound():
    assert "the proven bound" not in summary(1).line()
    assert summary(1).gap is None
    near = summary(1, bound_seconds=60.0)
    assert near.gap == pytest.approx(0.05)
    assert "(+8.6% of step seconds), at most 5.0% above the proven bound, plan c0ffee by ladder" in near.line()


def test_a_summary_holds_the_numbers_of_the_plan():
    found = summary(1, budget=Budget(BudgetKind.BYTES, nbytes=64), limit=64, peaks=(62, 59), exact=True)
    assert dataclasses.asdict(found) == {
        "graph": "graph 0/0",
        "solver": "ladder",
        "budget": "64 B",
        "budget_nbytes": 64,
        "planned_peak": 62,
        "peak_without_outputs": 59,
        "exact": True,
        "floor": 61,
        "ceiling": 84,
        "saved_values": 0,  # saved inputs and parameters are not counted
        "saved_nbytes": 0,
        "recomputed_ops": 2,
        "recompute_seconds": 2.0 + 3.0,
        "step_seconds": 58.0 + 5.0,
        "recomputed_flops": 101 + 103,
        "forward_flops": 101 + 103 + 107,
        "planning_seconds": 0.25,
        "dry_run_seconds": 0.5,
        "plan_hash": "c0ffee",
        "fallback": "",
        "sizes": (),
        "peak_formula": "",
        "bound_seconds": 0.0,
        "holds_outputs": True,
        "calls": 1,
        "nbytes_of_others": 0,
        "kept": (),
    }


def test_what_is_forbidden_to_recompute_is_stated_with_the_option_that_allows_it():
    graph = three_layers(op1={"never_recompute": "a decision (REMAT_SAVE_DECISIONS=0 allows it)"})
    plan = schedule_late(graph, [2, 3], "ladder")
    rung = Rung(plan, simulate(graph, plan, COSTS, fuse=False))
    given = {"budget": Budget(fraction=0.0), "peaks": (rung.peak, rung.peak), "exact": True, "plan_hash": ""}
    found = summarize(graph, Ladder((rung,)), rung, **given, limit=90, planning_seconds=0.0, dry_run_seconds=0.0)
    assert found.kept == (("a decision (REMAT_SAVE_DECISIONS=0 allows it)", 11),)
    stated = "(forbidden to recompute: 11 B: a decision (REMAT_SAVE_DECISIONS=0 allows it))"
    assert f"saves 2 values of 18 B {stated}, recomputes" in found.line()
    assert stated not in dataclasses.replace(found, planned_peak=1101).line()  # a hundredth of the peak
    assert stated not in dataclasses.replace(found, budget_nbytes=None).line()
    text = infeasible(Problem(graph, COSTS, fuse=False), rung, rung.peak, 40)
    assert "Saved, and forbidden to recompute: 11 B: a decision (REMAT_SAVE_DECISIONS=0 allows it).\n" in text


def test_saved_bytes_stay_below_the_peak_however_large_a_saved_input_is():
    """Backward reads a slice of a large input, whose storage counts neither as saved nor in the peak."""
    b = Builder()
    x, tangent = b.input(4096), b.input(3, Origin.TANGENT)
    y = b.op([x], 11)
    z = b.op([y], 5)
    graph = b.build([z], [b.op([tangent, x, y], 7)])
    plan = schedule_late(graph, [x, y], "ladder")
    rung = Rung(plan, simulate(graph, plan, no_costs(graph), fuse=False))
    found = summarize(
        *(graph, Ladder((rung,)), rung),
        budget=Budget(),
        limit=None,
        peaks=(rung.peak, rung.peak),
        exact=False,
        planning_seconds=0.0,
        dry_run_seconds=0.0,
        plan_hash="",
    )
    assert (found.saved_values, found.saved_nbytes) == (1, 11)
    assert found.saved_nbytes < found.planned_peak < 4096


@pytest.mark.parametrize(
    ("rung", "fields", "line"),
    [
        (
            0,
            {},
            "graph 0/0: budget no limit, planned peak 84 B (floor 61 B, ceiling 84 B), saves 2 values of 18 B, "
            "recomputes 0 ops (+0.0% of step seconds), plan c0ffee by ladder in 250.00 ms",
        ),
        (
            1,
            {"budget": Budget(fraction=0.25), "limit": 66},
            "graph 0/0: budget 0.25 of the way from floor to ceiling, planned peak 61 B (floor 61 B, ceiling 84 B), "
            "saves 0 values of 0 B, recomputes 2 ops (+8.6% of step seconds), plan c0ffee by ladder in 250.00 ms",
        ),
        (
            1,
            {"budget": Budget(BudgetKind.BYTES, nbytes=8 * MIB), "fallback": "PlanError: it broke"},
            "graph 0/0: budget 8.00 MiB, planned peak 61 B (floor 61 B, ceiling 84 B), saves 0 values of 0 B, "
            "recomputes 2 ops (+8.6% of step seconds), plan c0ffee by ladder in 250.00 ms; "
            "fallback: PlanError: it broke",
        ),
        (
            1,
            {"peaks": (61, 47)},
            "graph 0/0: budget no limit, planned peak 61 B or 47 B if forward's outputs are dropped "
            "(REMAT_HOLD_OUTPUTS=0 plans for that) (floor 61 B, ceiling 84 B), saves 0 values of 0 B, recomputes 2 ops "
            "(+8.6% of step seconds), plan c0ffee by ladder in 250.00 ms",
        ),
    ],
)
def test_the_log_line(rung, fields, line):
    assert summary(rung, **fields).line() == line


def test_the_log_line_says_that_outputs_do_not_count():
    dropped = dataclasses.replace(summary(1, peaks=(47, 47)), holds_outputs=False)
    assert "planned peak 47 B with forward's outputs dropped (floor 61 B, " in dropped.line()


def test_the_log_line_states_the_calls_per_step():
    several = dataclasses.replace(summary(1, peaks=(83, 83)), calls=4, nbytes_of_others=36)
    assert "planned peak 83 B for 4 calls that keep 12 B each, (floor" in several.line()


def test_a_step_without_seconds_has_a_log_line():
    free = dataclasses.replace(summary(0), step_seconds=0.0, recompute_seconds=0.0)
    assert "(+0.0% of step seconds)" in free.line()


def large_values(recompute):
    """Values in MiB, named and placed as capture does, and a ladder whose floor holds them all at once."""
    b = Builder()
    x = b.input(2 * MIB)
    made = [b.op([x], size * MIB, kind=Kind.POINTWISE) for size in (3, 5, 7, 11, 13, 17)]
    graph = dataclasses.replace(b.build(made, []), name="graph 1/0")
    ops = [dataclasses.replace(op, module="layers.0.mlp", source=f"/home/me/model.py:{op.id}") for op in graph.ops]
    values = [dataclasses.replace(v, dtype="bfloat16", shape=("s0", str(v.nbytes))) for v in graph.values]
    graph = dataclasses.replace(graph, ops=tuple(ops), values=tuple(values))
    intervals = tuple(LiveInterval(v, int(v == 5), graph.values[v].nbytes, 0, 0) for v in made)
    timeline = Timeline((), 0, (56 * MIB,), intervals, 0.0, 1.0)
    costs = Costs(run=(1.0,) * len(ops), keep=(0.0,) * len(values))
    problem = Problem(graph, costs, fuse=False, max_recompute=recompute)
    return problem, Ladder((Rung(schedule_late(graph, [], "s"), timeline),))


def test_an_infeasible_budget_names_the_largest_values_and_what_to_try():
    problem, ladder = large_values(recompute=1.0)
    assert infeasible(problem, ladder.rungs[0], 56 * MIB, 40 * MIB) == (
        "graph 1/0: no plan stays under 40.00 MiB; the lowest peak is 56.00 MiB with at most 1 extra forwards of "
        "recompute. The largest values at that moment:\n"
        "  17.00 MiB  v6 bfloat16[s0, 17825792], module layers.0.mlp, at /home/me/model.py:5\n"
        "  13.00 MiB  v5 bfloat16[s0, 13631488], recomputed copy 1, module layers.0.mlp, at /home/me/model.py:4\n"
        "  11.00 MiB  v4 bfloat16[s0, 11534336], module layers.0.mlp, at /home/me/model.py:3\n"
        "  7.00 MiB  v3 bfloat16[s0, 7340032], module layers.0.mlp, at /home/me/model.py:2\n"
        "  5.00 MiB  v2 bfloat16[s0, 5242880], module layers.0.mlp, at /home/me/model.py:1\n"
        "Every plan takes 56.00 MiB, in op5, module layers.0.mlp, at /home/me/model.py:5.\n"
        "Try memory_budget=56.06MiB or more, a smaller batch, or REMAT_MAX_RECOMPUTE=2."
    )


def test_an_infeasible_budget_mentions_large_outputs():
    problem, ladder = large_values(recompute=1.0)
    (rung,) = ladder.rungs
    rung = dataclasses.replace(rung, timeline=dataclasses.replace(rung.timeline, returned=(7 * MIB,)))
    assert infeasible(problem, rung, 56 * MIB, 40 * MIB).endswith(
        "or REMAT_MAX_RECOMPUTE=2. Forward's outputs are counted; if the caller drops them before backward, "
        "set REMAT_HOLD_OUTPUTS=0."
    )


def test_an_infeasible_budget_of_regions_suggests_a_fraction():
    problem, ladder = large_values(recompute=1.0)
    ops = tuple(dataclasses.replace(op, name=f"invoke_subgraph_{op.id}") for op in problem.graph.ops)
    graph = dataclasses.replace(problem.graph, ops=ops)
    text = infeasible(dataclasses.replace(problem, graph=graph), ladder.rungs[0], 56 * MIB, 40 * MIB)
    assert text.endswith("a fraction, such as memory_budget=0.3, applies to each region and to the rest.")


def test_an_infeasible_budget_states_what_other_calls_have_saved():
    problem, ladder = large_values(recompute=1.0)
    lowest = ladder.rungs[0]
    graph = dataclasses.replace(problem.graph, calls=3)
    timeline = dataclasses.replace(lowest.timeline, nbytes_of_others=8 * MIB)
    text = infeasible(
        dataclasses.replace(problem, graph=graph), dataclasses.replace(lowest, timeline=timeline), 64 * MIB, 40 * MIB
    )
    assert "  8.00 MiB  saved by 2 other calls of the same step\n" in text
    assert "other calls" not in infeasible(problem, lowest, 56 * MIB, 40 * MIB)


def test_the_suggested_budget_is_feasible():
    problem, ladder = large_values(recompute=1.5)
    text = infeasible(problem, ladder.rungs[0], 57 * MIB + 1, 40 * MIB)
    assert "with at most 1.5 extra forwards" in text
    suggested = text.split("Try memory_budget=")[1].split(" or more")[0]
    assert suggested == "57.06MiB"
    assert peak_allowed(parse_bytes(suggested), "cpu") >= 57 * MIB + 1


def test_a_value_without_a_producer_is_described_by_its_name():
    b = Builder()
    b.input(3, Origin.TANGENT)
    graph = b.build([], [])
    value = Value(0, 3, Origin.TANGENT, name="tangents_1", dtype="float32", shape=())
    graph = dataclasses.replace(graph, values=(value,))
    assert describe(graph, LiveInterval(0, 0, 3, 0, 0)) == "tangents_1 float32[]"
