import gc

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.graphs import Builder, chain, integer_costs, joint_graphs, three_layers
from support.oracle import choices

from rematpass import Config, config
from rematpass.commands.plan_file import plan_graph
from rematpass.core import frontier
from rematpass.core.cost import Costs, estimate
from rematpass.core.frontier import SOLVERS, Ladder, Rung, build, pareto
from rematpass.core.hardware import preset
from rematpass.core.op import Kind, Origin
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline, simulate
from rematpass.core.solve import ladder
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks, PlanError

FRACTIONS = [step / 20 for step in range(21)]


def rung(seconds, peak, solver="s", recompute=0.0):
    return Rung(Plan(solver, (), (), ()), Timeline((), 0, (peak,), (), recompute, seconds))


LADDER = Ladder((rung(2, 107), rung(3, 31), rung(5, 17), rung(7, 7)))


def test_ceiling_and_floor_are_the_peaks_of_both_ends():
    assert (LADDER.ceiling, LADDER.floor) == (107, 7)


@pytest.mark.parametrize(
    ("fraction", "nbytes"), [(0, 7), (0.0, 7), (1, 107), (0.25, 32), (0.5, 57), (0.999, 106), (1e-9, 7)]
)
def test_a_fraction_is_a_part_of_the_way_from_floor_to_ceiling(fraction, nbytes):
    limit = LADDER.limit(fraction)
    assert limit == nbytes
    assert isinstance(limit, int)


@pytest.mark.parametrize(
    ("nbytes", "seconds"),
    [(6, None), (7, 7), (16, 7), (17, 5), (30, 5), (31, 3), (106, 3), (107, 2), (10**12, 2), (0, None), (-1, None)],
)
def test_the_fastest_under_a_limit(nbytes, seconds):
    found = LADDER.fastest_under(nbytes)
    assert (found and found.seconds) == seconds


def test_a_ladder_of_one_rung_has_one_answer():
    ladder = Ladder((rung(2, 11),))
    assert {ladder.limit(fraction) for fraction in FRACTIONS} == {11}


@pytest.mark.parametrize(("device", "parts"), [("cpu", 1000), ("cpu, 2 threads", 1000), ("NVIDIA H200", 100)])
def test_a_byte_budget_leaves_something_to_the_allocator(device, parts):
    assert frontier.peak_allowed(parts + 1, device) == parts
    assert frontier.least_budget(parts, device) == parts + 1
    for nbytes in (0, 1, 7, parts, 12345678):
        assert frontier.least_budget(frontier.peak_allowed(nbytes, device), device) <= nbytes
        assert frontier.peak_allowed(frontier.least_budget(nbytes, device), device) >= nbytes


def test_pareto_by_hand():
    rungs = [rung(3, 31), rung(2, 107), rung(3, 29), rung(5, 29), rung(7, 7), rung(11, 8), rung(2, 108), rung(6, 31)]
    assert [(r.seconds, r.peak) for r in pareto(rungs)] == [(2, 107), (3, 29), (7, 7)]
    assert pareto([]) == ()


@given(st.lists(st.builds(rung, st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_pareto_keeps_what_nothing_beats_and_nothing_else(rungs):
    kept = [(r.seconds, r.peak) for r in pareto(rungs)]
    points = {(r.seconds, r.peak) for r in rungs}
    beaten = {(s, p) for s, p in points for t, q in points if (t, q) != (s, p) and t <= s and q <= p}
    assert kept == sorted(points - beaten)


def possible(data, **problem):
    """A problem for a random graph that has a plan."""
    graph = data.draw(joint_graphs(max_ops=6))
    assume(next(choices(graph), None))
    return Problem(graph, data.draw(integer_costs(graph)), fuse=data.draw(st.booleans()), **problem)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@given(st.data())
@settings(max_examples=settings().max_examples // 2)
def test_every_plan_of_every_solver_passes_the_judge(solver, data):
    problem = possible(data)
    plans = SOLVERS[solver](problem)
    assert plans
    for plan in plans:
        verify(problem.graph, plan)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@given(st.data())
@settings(max_examples=settings().max_examples // 2)
def test_the_ladder_falls_in_peak_as_it_rises_in_seconds(solver, data):
    problem = possible(data)
    ladder = build(problem, solver)
    for faster, slower in zip(ladder.rungs, ladder.rungs[1:], strict=False):
        assert faster.seconds < slower.seconds
        assert faster.peak > slower.peak
    for found in ladder.rungs:
        verify(problem.graph, found.plan)
        timeline = simulate(problem.graph, found.plan, problem.costs, fuse=problem.fuse)
        assert (found.peak, found.seconds) == (timeline.peak, timeline.step_seconds)


@given(st.data())
@settings(max_examples=settings().max_examples // 2)
def test_less_budget_is_never_more_memory_nor_fewer_seconds(data):
    ladder = build(possible(data))
    found = [ladder.fastest_under(ladder.limit(fraction)) for fraction in FRACTIONS]
    peaks, seconds = [r.peak for r in found], [r.seconds for r in found]
    assert peaks == sorted(peaks)
    assert seconds == sorted(seconds, reverse=True)
    assert (found[0], found[-1]) == (ladder.rungs[-1], ladder.rungs[0])
    assert all(r.peak <= ladder.limit(fraction) for r, fraction in zip(found, FRACTIONS, strict=True))


@given(st.data())
@settings(max_examples=settings().max_examples // 2)
def test_no_solver_alone_beats_the_ladder(data):
    problem = possible(data, max_recompute=1000.0)
    assume(problem.forward_seconds)  # a thousand times nothing would leave plans out
    ladder = build(problem)
    for solver in SOLVERS:
        for alone in build(problem, solver).rungs:
            assert ladder.fastest_under(alone.peak).seconds <= alone.seconds


@given(st.data(), st.sampled_from([0.01, 0.5, 1.0]))
@settings(max_examples=settings().max_examples // 2)
def test_more_recompute_than_allowed_is_left_out_unless_there_is_nothing_else(data, allowed):
    problem = possible(data, max_recompute=allowed)
    forward = sum(problem.costs.run[op.id] for op in problem.graph.ops if problem.graph.sides[op.id] == "forward")
    rungs = build(problem).rungs
    least = min(problem.timeline(plan).recompute_seconds for plan in SOLVERS["ladder"](problem))
    if least <= allowed * forward:
        assert all(r.timeline.recompute_seconds <= allowed * forward for r in rungs)
    else:
        assert [r.timeline.recompute_seconds for r in rungs] == [least]


@pytest.mark.parametrize("seconds", [(0.1, 0.2, 0.3, 0.4, 0.5), (1e-6, 3e-6, 7e-6, 11e-6, 13e-6)])
def test_exactly_one_forward_of_recompute_is_allowed(seconds):
    """However the sum is rounded: the seconds of forward add up in one order, those of backward in another."""
    problem = Problem(chain(5), Costs(run=(*seconds, *seconds), keep=(0.0,) * 12), fuse=False)
    found = build(problem, "recompute_all").rungs[0]
    assert found in build(problem).rungs or build(problem).floor < found.peak
    assert found.timeline.recompute_seconds == pytest.approx(sum(seconds))
    assert len(build(Problem(problem.graph, problem.costs, fuse=False, max_recompute=0.5)).rungs) > 0


def test_a_chain_of_equal_layers_has_many_rungs_between_all_and_nothing():
    graph = chain(16, 2**20)
    ladder = build(Problem(graph, estimate(graph, preset("h200")), fuse=False))
    assert len(ladder.rungs) >= 4
    assert ladder.floor <= ladder.ceiling / 2


def test_the_names_that_a_user_may_set_are_those_there_are():
    assert tuple(SOLVERS) == config.SOLVERS


def test_a_contradiction_leaves_no_ladder():
    graph = three_layers(op1={"must_recompute": True, "never_recompute": "it draws random numbers"})
    with pytest.raises(ContradictoryMarks, match=r"op op1 .never recomputed: it draws random numbers. -> value v3"):
        build(Problem(graph, Costs((1.0,) * 7, (1.0,) * 10)))


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (Plan("broken", (), (), ()), "the end of forward: op 0 (op0) has not run"),
        (Plan("broken", (7,), (), ()), "the end of forward: op 0 (op0) has not run"),
    ],
)
def test_a_plan_that_the_judge_rejects_is_never_handed_on(monkeypatch, plan, why):
    monkeypatch.setitem(ladder.SOLVERS, "ladder", lambda problem: (plan,))
    with pytest.raises(PlanError) as caught:
        plan_graph(three_layers(), Config())
    assert str(caught.value) == f"the plan of broken is not valid, at {why}"


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_forward_that_only_hands_on_its_input(solver):
    b = Builder()
    x = b.input(3)
    aside = b.op([], 5, kind=Kind.CREATE)
    tangent = b.input(3, Origin.TANGENT)
    graph = b.build([x], [b.op([tangent, x, aside], 7)])
    ladder = build(Problem(graph, Costs((1.0, 1.0), (1.0,) * 4)), solver)
    assert ladder.floor == ladder.ceiling


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_graph_of_no_bytes_and_no_seconds(solver):
    graph = chain(3, 0)
    ladder = build(Problem(graph, Costs((0.0,) * 6, (0.0,) * 8)), solver)
    assert (ladder.floor, ladder.ceiling, len(ladder.rungs)) == (0, 0, 1)


@pytest.mark.parametrize("collects", [True, False])
def test_the_cycle_collector_rests_while_solvers_run_and_is_left_as_it_was(collects, monkeypatch):
    seen = []

    def solver(problem):
        seen.append(gc.isenabled())
        raise PlanError("no plan")

    monkeypatch.setitem(SOLVERS, "ladder", solver)
    was = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(PlanError, match="no plan"):
            build(Problem(chain(2), Costs((1.0,) * 4, (0.0,) * 6)))
        assert (seen, gc.isenabled()) == ([False], collects)
    finally:
        (gc.enable if was else gc.disable)()
