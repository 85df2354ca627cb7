import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import Builder, chain, integer_costs, joint_graphs
from support.oracle import choice_of, choices

from rematpass.core.cost import Costs
from rematpass.core.op import Kind, Origin
from rematpass.core.simulate import simulate
from rematpass.core.solve.baselines import chen_sqrt, recompute_all, save_all
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks

BASELINES = {"save_all": save_all, "recompute_all": recompute_all, "chen_sqrt": chen_sqrt}


def uniform(graph, run=1.0):
    return Problem(graph, Costs((run,) * len(graph.ops), (0.0,) * len(graph.values)), fuse=False)


def peak(problem, plan):
    return simulate(problem.graph, plan, problem.costs, fuse=False).peak


@pytest.mark.parametrize(("n", "root"), [(16, 4), (64, 8), (256, 16)])
def test_chen_on_a_chain_saves_a_square_root_and_recomputes_each_op_once(n, root):
    """The last value of each segment but the final one is saved, and the input, which nothing can recompute.

    The peak is where backward starts: root - 1 boundaries, the root values of the last segment (recomputed), forward's
    output, the tangent and the first gradient.
    """
    problem = uniform(chain(n, 7))
    (plan,) = chen_sqrt(problem)
    boundaries = [root * segment for segment in range(1, root)]
    assert plan.saved == (0, *boundaries)
    again = [run.op for run in plan.recomputed()]
    assert sorted(again) == [op for op in range(n) if op + 1 not in boundaries]  # op i makes value i + 1
    assert peak(problem, plan) == 7 * (root - 1 + root + 1 + 1 + 1)
    assert peak(problem, *save_all(problem)) == 7 * (n + 1 + 1)
    assert peak(problem, *recompute_all(problem)) == 7 * (n + 1 + 1 + 1)  # the output twice, since the caller holds one


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7, 11, 13, 37])
def test_chen_on_a_chain_of_any_length_keeps_segments_short(n):
    problem = uniform(chain(n, 7))
    (plan,) = chen_sqrt(problem)
    verify(problem.graph, plan)
    again = [run.op for run in plan.recomputed()]
    assert len(again) == len(set(again)) == n - (len(plan.saved) - 1)
    segments = round(n**0.5)
    assert len(plan.saved) - 1 <= segments
    width = -(-n // segments)
    saved = [0, *sorted(v for v in plan.saved if v), n]
    assert max(b - a for a, b in itertools.pairwise(saved)) <= 2 * width


def test_chen_moves_a_boundary_to_where_the_fewest_bytes_cross():
    problem = uniform(chain(9, [11, 3, 11, 11, 11, 2, 7, 7, 7]))
    assert chen_sqrt(problem)[0].saved == (0, 2, 6)
    later = uniform(chain(9, 7))
    assert chen_sqrt(later)[0].saved == (0, 3, 6)  # of equal boundaries, the last


def test_chen_counts_only_ops_that_take_time():
    graph = chain(9)
    problem = Problem(graph, Costs((0.0,) * 5 + (1.0,) * 4 + (1.0,) * 9, (0.0,) * len(graph.values)))
    # Four ops in two segments: 5 and 6, 7 and 8.
    assert chen_sqrt(problem)[0].saved == (0, 7)


def test_chen_is_valid_where_no_op_takes_time():
    problem = uniform(chain(3), run=0.0)
    (plan,) = chen_sqrt(problem)
    verify(problem.graph, plan)


def test_chen_is_valid_where_forward_returns_its_input():
    b = Builder()
    x = b.input(3)
    tangent = b.input(3, Origin.TANGENT)
    graph = b.build([x], [b.op([tangent, x], 5)])
    (plan,) = chen_sqrt(uniform(graph))
    assert (plan.saved, plan.fwd) == ((x,), ())
    verify(graph, plan)


def test_chen_saves_nothing_that_must_not_be_saved():
    b = Builder()
    last = b.input(3)
    marks = [{"must_recompute": True}, {"cannot_save": "SymBool is not a tensor"}, {}]
    made = [last := b.op([last], 7, **marks[i % 3]) for i in range(9)]
    tangent = b.input(7, Origin.TANGENT)
    graph = b.build([last], [b.op([tangent, *made], 3)])
    (plan,) = chen_sqrt(uniform(graph))
    verify(graph, plan)
    assert set(plan.saved) <= {0, *made[2::3]}


@given(st.data())
def test_save_all_recomputes_the_fewest_ops(data):
    graph = data.draw(joint_graphs())
    fewest = min((len(choice.again) for choice in choices(graph)), default=None)
    assume(fewest is not None)
    (plan,) = save_all(Problem(graph, data.draw(integer_costs(graph))))
    assert len(choice_of(graph, plan).again) == fewest


@given(st.data())
def test_recompute_all_saves_the_fewest_bytes(data):
    graph = data.draw(joint_graphs())
    fewest = min((choice.nbytes(graph) for choice in choices(graph)), default=None)
    assume(fewest is not None)
    (plan,) = recompute_all(Problem(graph, data.draw(integer_costs(graph))))
    assert choice_of(graph, plan).nbytes(graph) == fewest


@pytest.mark.parametrize("name", sorted(BASELINES))
@given(st.data())
def test_every_baseline_is_valid_or_names_the_contradiction(name, data):
    graph = data.draw(joint_graphs())
    problem = Problem(graph, data.draw(integer_costs(graph)))
    if next(choices(graph), None) is None:
        with pytest.raises(ContradictoryMarks):
            BASELINES[name](problem)
        return
    (plan,) = BASELINES[name](problem)
    assert plan.solver == name
    verify(graph, plan)


def test_recompute_all_saves_a_small_value_instead_of_a_large_input():
    b = Builder()
    x = b.input(97)
    small = b.op([x], 3, kind=Kind.REDUCTION)
    large = b.op([small], 89)
    tangent = b.input(5, Origin.TANGENT)
    graph = b.build([small], [b.op([tangent, large], 7)])
    assert recompute_all(uniform(graph))[0].saved == (small,)
