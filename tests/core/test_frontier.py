import dataclasses
import gc

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.graphs import Builder, chain, integer_costs, joint_graphs, three_layers
from support.oracle import choices

from rematpass import Config, config
from rematpass.budget import Budget, BudgetKind
from rematpass.commands.plan_file import plan_graph
from rematpass.core import frontier
from rematpass.core.cost import Costs, estimate
from rematpass.core.frontier import SOLVERS, Default, Ladder, Rung, build, pareto
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


def test_ceiling_and_floor_are_the_peaks_at_both_ends():
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
def test_the_fastest_rung_under_a_limit_is_found(nbytes, seconds):
    found = LADDER.fastest_under(nbytes)
    assert (found and found.seconds) == seconds


def test_every_fraction_of_a_ladder_with_one_rung_is_its_peak():
    ladder = Ladder((rung(2, 11),))
    assert {ladder.limit(fraction) for fraction in FRACTIONS} == {11}


@pytest.mark.parametrize(("device", "parts"), [("cpu", 1000), ("cpu, 2 threads", 1000), ("NVIDIA H200", 100)])
def test_a_byte_budget_leaves_bytes_to_the_allocator(device, parts):
    assert frontier.peak_allowed(parts + 1, device) == parts
    assert frontier.least_budget(parts, device) == parts + 1
    for nbytes in (0, 1, 7, parts, 12345678):
        assert frontier.least_budget(frontier.peak_allowed(nbytes, device), device) <= nbytes
        assert frontier.peak_allowed(frontier.least_budget(nbytes, device), device) >= nbytes


@dataclasses.dataclass(frozen=True)
class Dry:
    """A rung with another peak than the simulated one."""

    rung: Rung
    peak: int


def ladder_of(*peaks):
    return Ladder(tuple(rung(seconds, peak) for seconds, peak in enumerate(peaks)))


def asking(exact):
    """A function that knows the exact peak of each simulated one, and the list of rungs that it was asked about."""
    asked, made = [], {}

    def ask(rung):
        if rung.peak not in made:
            asked.append(rung.peak)
            made[rung.peak] = Dry(rung, exact[rung.peak])
        return made[rung.peak]

    return ask, asked


def of_bytes(allowed):
    """A budget in bytes that planned peaks of up to ``allowed`` fit on a CPU."""
    return Budget(BudgetKind.BYTES, nbytes=frontier.least_budget(allowed, "cpu"))


def test_no_limit_selects_the_first_rung_whatever_its_peak():
    ask, asked = asking({100: 170, 80: 80})
    selection = frontier.select(ladder_of(100, 80), Budget(), "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.fits) == (170, None, True)
    assert asked == [100]


def test_a_simulated_peak_that_is_right_takes_one_question():
    ask, asked = asking({100: 100, 80: 81, 60: 60})
    selection = frontier.select(ladder_of(100, 80, 60), of_bytes(85), "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.fits) == (81, 86, True)
    assert asked == [80]


def test_a_rung_that_would_be_as_wrong_as_the_last_one_is_skipped():
    ask, asked = asking({80: 96, 72: 86, 60: 72})
    assert frontier.select(ladder_of(100, 80, 72, 60), of_bytes(80), "cpu", ask).candidate.rung.peak == 60
    assert asked == [80, 60]  # 80 is wrong by a fifth, so 72 would not fit


def test_a_faster_rung_is_tried_where_the_next_one_leaves_room():
    ask, asked = asking({90: 110, 80: 83, 70: 73, 60: 61})
    assert frontier.select(ladder_of(90, 80, 70, 60), of_bytes(90), "cpu", ask).candidate.rung.peak == 80
    assert asked == [90, 70, 80]  # 90 is wrong by a fifth, 70 by a twentieth


@pytest.mark.parametrize(("exact", "taken"), [(90, 80), (91, 70)])
def test_the_faster_rung_is_taken_only_if_it_fits(exact, taken):
    ask, _ = asking({90: 110, 80: exact, 70: 73})
    assert frontier.select(ladder_of(90, 80, 70, 60), of_bytes(90), "cpu", ask).candidate.rung.peak == taken


def test_a_rung_that_is_hardly_faster_is_not_asked_about():
    ladder = Ladder((rung(995, 90), rung(996, 80), rung(1000, 70)))
    ask, asked = asking({90: 110, 80: 83, 70: 73})
    assert frontier.select(ladder, of_bytes(90), "cpu", ask).candidate.rung.peak == 70
    assert asked == [90, 70]


def test_after_four_questions_only_the_floor_is_left():
    ask, asked = asking({**dict.fromkeys(range(81, 101), 101), 80: 83})
    selection = frontier.select(ladder_of(*range(100, 79, -1)), of_bytes(100), "cpu", ask)
    assert (selection.candidate.peak, selection.fits) == (83, True)
    assert asked == [100, 99, 98, 97, 80]


@pytest.mark.parametrize("fraction", [0, 0.5, 0.999])
def test_a_fraction_is_never_infeasible(fraction):
    ask, _ = asking({100: 170, 80: 160})
    selection = frontier.select(ladder_of(100, 80), Budget(fraction=fraction), "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.fits) == (160, 160, True)


def test_a_fraction_is_of_the_way_from_the_floor_that_was_found():
    ask, _ = asking({100: 101, 90: 91, 80: 87})
    selection = frontier.select(ladder_of(100, 90, 80), Budget(fraction=0.25), "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.floor) == (87, 90, 87)


def test_a_fraction_accepts_a_peak_slightly_above_its_limit():
    ask, asked = asking({1000: 1001, 500: 500})
    ladder = ladder_of(1500, 1000, 500)
    assert frontier.select(ladder, Budget(fraction=0.5), "cpu", ask).candidate.peak == 1001
    assert frontier.select(ladder, of_bytes(1000), "cpu", ask).candidate.peak == 500
    assert asked == [1000, 500]


def test_a_byte_budget_below_every_peak_selects_the_floor_and_says_so():
    ask, asked = asking({100: 100, 80: 95})
    budget = of_bytes(90)
    selection = frontier.select(ladder_of(100, 80), budget, "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.fits) == (95, budget.nbytes, False)
    assert asked == [80]


def test_the_lowest_of_all_that_were_asked_is_taken_if_the_floor_is_wrong():
    ask, asked = asking({100: 99, 90: 91, 88: 87, 86: 95, 80: 98})
    selection = frontier.select(ladder_of(100, 90, 88, 86, 80), Budget(fraction=0), "cpu", ask)
    assert (selection.candidate.peak, selection.floor, selection.limit) == (87, 87, 87)
    assert asked == [80, 88, 86]  # the middle of those below 98, then the middle of those below 87


def with_default(*peaks, seconds, peak, at_least):
    return dataclasses.replace(ladder_of(*peaks), default=Default(rung(seconds, peak), at_least))


def test_the_default_is_the_choice_where_nothing_limits():
    ask, asked = asking({100: 100, 130: 120})
    selection = frontier.select(with_default(100, 80, seconds=7, peak=130, at_least=110), Budget(), "cpu", ask)
    assert (selection.candidate.peak, selection.limit, selection.ceiling) == (120, None, 120)
    assert asked == [130]


def test_a_rung_below_what_the_default_certainly_takes_settles_the_choice():
    ask, asked = asking({100: 108, 80: 80})
    ladder = with_default(100, 80, seconds=7, peak=130, at_least=110)
    assert frontier.select(ladder, of_bytes(109), "cpu", ask).candidate.peak == 108
    assert asked == [100]


def test_a_budget_above_the_defaults_peak_never_takes_more_than_it():
    ask, asked = asking({100: 119, 80: 80, 125: 115})
    ladder = with_default(100, 80, seconds=7, peak=125, at_least=110)
    assert frontier.select(ladder, of_bytes(120), "cpu", ask).candidate.peak == 115
    assert asked == [100, 125]
    assert frontier.select(ladder, of_bytes(114), "cpu", ask).candidate.peak == 80


def test_a_default_that_fits_and_is_as_fast_is_the_only_one_asked():
    ask, asked = asking({125: 115})
    ladder = with_default(100, 80, seconds=0, peak=125, at_least=110)
    assert frontier.select(ladder, of_bytes(1000), "cpu", ask).candidate.peak == 115
    assert asked == [125]


def test_the_default_is_the_floor_where_it_is_the_lowest():
    ask, _ = asking({100: 180, 80: 160, 90: 70})
    ladder = with_default(100, 80, seconds=7, peak=90, at_least=60)
    for budget in (Budget(fraction=0), Budget(fraction=0.5), of_bytes(65)):
        selection = frontier.select(ladder, budget, "cpu", ask)
        assert (selection.candidate.peak, selection.floor) == (70, 70)
    assert not selection.fits


def test_fractions_are_of_the_way_to_the_lower_of_both_ceilings():
    assert with_default(100, 80, seconds=7, peak=90, at_least=85).limit(0.5) == 85
    assert with_default(100, 80, seconds=7, peak=130, at_least=85).limit(0.5) == 90
    assert with_default(100, 80, seconds=7, peak=60, at_least=50).limit(0.5) == 80


def test_a_rung_is_its_own_candidate():
    for nbytes, seconds in [(7, 7), (17, 5), (107, 2)]:
        selection = frontier.select(LADDER, of_bytes(nbytes), "cpu", lambda rung: rung)
        assert (selection.candidate.seconds, selection.fits) == (seconds, True)
    assert not frontier.select(LADDER, of_bytes(6), "cpu", lambda rung: rung).fits


def test_the_budget_auto_has_to_be_resolved_first():
    with pytest.raises(ValueError, match="the budget auto has no bytes yet: ask the device what is free first"):
        frontier.select(LADDER, Budget(BudgetKind.AUTO), "cpu", lambda rung: rung)


def test_pareto_drops_rungs_that_another_one_beats():
    rungs = [rung(3, 31), rung(2, 107), rung(3, 29), rung(5, 29), rung(7, 7), rung(11, 8), rung(2, 108), rung(6, 31)]
    assert [(r.seconds, r.peak) for r in pareto(rungs)] == [(2, 107), (3, 29), (7, 7)]
    assert pareto([]) == ()


@given(st.lists(st.builds(rung, st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_pareto_keeps_exactly_the_rungs_that_no_other_beats(rungs):
    kept = [(r.seconds, r.peak) for r in pareto(rungs)]
    points = {(r.seconds, r.peak) for r in rungs}
    beaten = {(s, p) for s, p in points for t, q in points if (t, q) != (s, p) and t <= s and q <= p}
    assert kept == sorted(points - beaten)


def possible(data, **problem):
    """A problem with at least one plan, for a random graph."""
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
        assert found.plan.realized == timeline.realized
        assert problem.fuse or not found.plan.realized


@given(st.data())
@settings(max_examples=settings().max_examples // 2)
def test_a_lower_budget_never_takes_more_memory_or_fewer_seconds(data):
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
    assume(problem.forward_seconds)  # otherwise a limit of 0 s would exclude plans
    ladder = build(problem)
    for solver in SOLVERS:
        for alone in build(problem, solver).rungs:
            assert ladder.fastest_under(alone.peak).seconds <= alone.seconds


@given(st.data(), st.sampled_from([0.01, 0.5, 1.0]))
@settings(max_examples=settings().max_examples // 2)
def test_plans_above_max_recompute_are_left_out_unless_there_are_no_others(data, allowed):
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
    """The seconds of forward are summed in another order than those of backward, so the sums round differently."""
    problem = Problem(chain(5), Costs(run=(*seconds, *seconds), keep=(0.0,) * 12), fuse=False)
    found = build(problem, "recompute_all").rungs[0]
    assert found in build(problem).rungs or build(problem).floor < found.peak
    assert found.timeline.recompute_seconds == pytest.approx(sum(seconds))
    assert len(build(Problem(problem.graph, problem.costs, fuse=False, max_recompute=0.5)).rungs) > 0


def test_a_chain_of_equal_layers_has_many_rungs():
    graph = chain(16, 2**20)
    ladder = build(Problem(graph, estimate(graph, preset("h200")), fuse=False))
    assert len(ladder.rungs) >= 4
    assert ladder.floor <= ladder.ceiling / 2


def test_the_solver_names_in_config_are_the_solvers():
    assert tuple(SOLVERS) == config.SOLVERS


def test_contradictory_marks_raise():
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
def test_a_plan_that_the_judge_rejects_raises(monkeypatch, plan, why):
    monkeypatch.setitem(ladder.SOLVERS, "ladder", lambda problem: (plan,))
    with pytest.raises(PlanError) as caught:
        plan_graph(three_layers(), Config())
    assert str(caught.value) == f"the plan of broken is not valid, at {why}"


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_forward_that_returns_its_input_has_one_peak(solver):
    b = Builder()
    x = b.input(3)
    aside = b.op([], 5, kind=Kind.CREATE)
    tangent = b.input(3, Origin.TANGENT)
    graph = b.build([x], [b.op([tangent, x, aside], 7)])
    ladder = build(Problem(graph, Costs((1.0, 1.0), (1.0,) * 4)), solver)
    assert ladder.floor == ladder.ceiling


@pytest.mark.parametrize("solver", sorted(SOLVERS))
def test_a_graph_without_bytes_and_seconds_has_one_rung(solver):
    graph = chain(3, 0)
    ladder = build(Problem(graph, Costs((0.0,) * 6, (0.0,) * 8)), solver)
    assert (ladder.floor, ladder.ceiling, len(ladder.rungs)) == (0, 0, 1)


@pytest.mark.parametrize("collects", [True, False])
def test_the_cycle_collector_is_off_while_solvers_run_and_restored_afterwards(collects, monkeypatch):
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
