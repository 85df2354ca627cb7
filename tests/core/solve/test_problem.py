"""The input of every solver."""

from dataclasses import replace

import numpy as np
from support.graphs import chain

from rematpass.core.cost import Costs
from rematpass.core.materialization import materialization
from rematpass.core.simulate import simulate
from rematpass.core.solve.baselines import recompute_all, save_all
from rematpass.core.solve.effort import Effort
from rematpass.core.solve.ladder import all_plans
from rematpass.core.solve.problem import Problem

GRAPH = chain(5)
COSTS = Costs((1.0,) * len(GRAPH.ops), (0.0,) * len(GRAPH.values))


def same(one, other):
    """Whether two materializations are equal."""
    fields = ("in_memory", "reader", "read")
    return all(np.array_equal(getattr(one, f), getattr(other, f)) for f in fields) and one.sources == other.sources


class TestProblem:
    def test_a_small_graph_gets_every_trial(self):
        assert Problem(GRAPH, COSTS).trials(80) == 80

    def test_trials_fall_as_ops_rise_but_not_below_the_least(self):
        """With twice the ops of full effort, half of the trials: the same work."""
        large = chain(2500)  # 5,000 ops
        problem = Problem(large, Costs((1.0,) * len(large.ops), (0.0,) * len(large.values)))
        assert (len(large.ops), problem.trials(80), problem.trials(1), problem.trials(2, least=2)) == (5000, 40, 1, 2)
        assert problem.trials(1, least=0) == 0

    def test_timelines_and_materializations_are_those_of_the_simulator(self):
        problem = Problem(GRAPH, COSTS)
        plans = [*save_all(problem), *recompute_all(problem)]
        for plan in (*plans, *plans):
            assert problem.timeline(plan) == simulate(GRAPH, plan, COSTS)
            assert same(problem.materialization(plan), materialization(GRAPH, plan))

    def test_simulation_follows_the_fuse_flag(self):
        problem = Problem(GRAPH, COSTS, fuse=False)
        (plan,) = save_all(problem)
        assert problem.timeline(plan) == simulate(GRAPH, plan, COSTS, fuse=False)
        assert same(problem.materialization(plan), materialization(GRAPH, plan, fuse=False))
        assert not same(problem.materialization(plan), materialization(GRAPH, plan))
        assert replace(problem, fuse=True).timeline(plan) == simulate(GRAPH, plan, COSTS)

    def test_solvers_read_the_effort_of_the_problem(self):
        """Fewer trials in the effort: fewer simulated plans."""
        graph = chain(40)
        costs = Costs((1.0,) * len(graph.ops), (0.0,) * len(graph.values))
        least = Effort(descent_trials=4, ladder_gaps=0, fill_limits=1, fill_limits_at_least=1, segment_limits=1)
        full, small = (Problem(graph, costs, fuse=False, effort=effort) for effort in (Effort(), least))
        for problem in (full, small):
            assert all_plans(problem)
        assert len(small._timelines) < len(full._timelines) / 2
