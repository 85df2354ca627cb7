import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import chain, joint_graphs

from rematpass.core.cost import Costs
from rematpass.core.frontier import build
from rematpass.core.solve.baselines import chen_sqrt
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.segmentation.nested import nested, states
from rematpass.core.verify import verify
from rematpass.errors import ContradictoryMarks


def uniform(graph, max_recompute=1.0):
    costs = Costs((1.0,) * len(graph.ops), (0.0,) * len(graph.values))
    return Problem(graph, costs, fuse=False, max_recompute=max_recompute)


def test_one_forward_of_recomputation_gives_no_nested_boundaries():
    problem = uniform(chain(36), max_recompute=1.9)
    (plan,) = nested(problem)
    (chen,) = chen_sqrt(problem)
    assert problem.timeline(plan).peak == problem.timeline(chen).peak
    assert list(states(problem)) == []


@pytest.mark.parametrize(("layers", "peaks"), [(16, [10, 8]), (64, [18, 13, 11]), (256, [34, 19, 16])])
def test_each_further_forward_lowers_the_peak_of_a_chain(layers, peaks):
    """d n^(1/(d+1)) values and two of backward's own: for 256 layers 2 x 16 at depth 1, 3 x 6.3 at 2, 4 x 4 at 3."""
    problem = uniform(chain(layers, 1), max_recompute=len(peaks))
    timelines = [problem.timeline(plan) for plan in nested(problem)]
    assert [t.peak for t in timelines] == peaks
    for depth, timeline in enumerate(timelines, 1):
        assert (depth - 1) * layers <= timeline.recompute_seconds + layers  # about one forward per level
        assert timeline.recompute_seconds <= depth * layers


@pytest.mark.parametrize(
    ("layers", "floors"), [(16, [8, 7, 7]), (64, [13, 11, 10]), (100, [16, 12, 10]), (256, [26, 15, 11])]
)
def test_the_floor_of_a_chain_falls_with_the_forwards_of_recomputation(layers, floors):
    """Saving everything takes n + 2 values, Chen's square root 2 sqrt(n) + 2; each further forward takes less."""
    graph = chain(layers, 1)
    ladders = [build(uniform(graph, forwards)) for forwards in (1, 2, 3)]
    assert [ladder.floor for ladder in ladders] == floors
    assert {ladder.ceiling for ladder in ladders} == {layers + 2}
    for forwards, ladder in enumerate(ladders, 1):
        assert ladder.floor < 2 * layers**0.5 + 2
        assert ladder.rungs[-1].timeline.recompute_seconds <= forwards * layers


@given(joint_graphs(), st.sampled_from([1, 2, 3, 5]))
def test_every_nested_plan_is_valid(graph, forwards):
    try:
        plans = nested(uniform(graph, forwards))
    except ContradictoryMarks:
        return
    assert len(plans) <= forwards
    for plan in plans:
        verify(graph, plan)
