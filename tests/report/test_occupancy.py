import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.graphs import Builder, integer_costs, joint_graphs, three_layers
from support.oracle import choices

from rematpass.core.cost import Costs
from rematpass.core.simulate import LiveInterval, Timeline, simulate
from rematpass.core.solve.mincut import Network
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.report.occupancy import ROLES, Occupant, Role, occupancy

COSTS = Costs(run=(1.0,) * 7, keep=(0.0,) * 10)


def roles_of(saved):
    graph = three_layers()
    plan = schedule_late(graph, saved, "test")
    timeline = simulate(graph, plan, COSTS, fuse=False)
    return plan, timeline, occupancy(graph, plan, timeline)


def test_each_interval_has_a_role():
    plan, _, found = roles_of([2])
    roles = {(o.value, o.copy): o.role for o in found.occupants}
    assert 3 not in plan.saved
    assert roles == {
        (2, 0): Role.SAVED,
        (3, 0): Role.TEMPORARIES,  # forward's copy, freed
        (3, 1): Role.RECOMPUTED,
        (4, 0): Role.OUTPUTS,
        (5, 0): Role.TEMPORARIES,  # the tangent
        (6, 0): Role.TEMPORARIES,
        (7, 0): Role.GRADIENTS,
        (8, 0): Role.TEMPORARIES,
        (9, 0): Role.GRADIENTS,
    }


def test_each_role_has_bytes_at_each_position():
    _, timeline, found = roles_of([2])
    by_role = dict(zip(ROLES, found.by_role, strict=True))
    runs = [(run.op, run.copy) for run in timeline.runs]
    assert by_role[Role.SAVED] == tuple(7 if r in range(runs.index((5, 0)) + 1) else 0 for r in range(len(runs)))
    at_the_end = {role: sizes[-1] for role, sizes in by_role.items()}
    assert at_the_end[Role.GRADIENTS] == 19 + 29
    assert at_the_end[Role.OUTPUTS] == 13
    recomputed = [r for r, n in enumerate(by_role[Role.RECOMPUTED]) if n]
    assert recomputed == [runs.index((1, 1)), runs.index((4, 0))]
    assert {by_role[Role.RECOMPUTED][r] for r in recomputed} == {11}


def test_occupants_at_a_position_are_sorted_by_size():
    _, timeline, found = roles_of([2])
    last = len(timeline.runs) - 1
    assert [(o.value, o.nbytes) for o in found.at(last)] == [(9, 29), (8, 23), (7, 19), (4, 13)]


@given(st.data())
def test_the_roles_add_up_to_the_timeline(data):
    graph = data.draw(joint_graphs())
    costs = data.draw(integer_costs(graph))
    assume(next(choices(graph), None))
    plan = schedule_late(graph, Network(graph).solve(costs.run, costs.keep).saved, "test")
    timeline = simulate(graph, plan, costs, fuse=data.draw(st.booleans()))
    found = occupancy(graph, plan, timeline)
    assert [sum(sizes) for sizes in zip(*found.by_role, strict=True)] == list(timeline.live)
    assert all(n >= 0 for sizes in found.by_role for n in sizes)
    assert sum(o.nbytes for o in found.occupants) == sum(t.nbytes for t in timeline.intervals)


@pytest.mark.parametrize(
    ("live", "temporaries", "saved"),
    [
        (12, 5, 7),  # exactly the intervals
        (17, 10, 7),  # five more, a workspace
        (9, 2, 7),  # three overwritten in place: of what dies here
        (3, 0, 3),  # nothing is negative
    ],
)
def test_a_difference_between_timeline_and_intervals_is_assigned(live, temporaries, saved):
    b = Builder()
    x = b.input(3)
    kept, gone = b.op([x], 7), b.op([x], 5)
    graph = b.build([], [])
    graph = dataclasses.replace(graph, bwd_outputs=())
    plan = dataclasses.replace(schedule_late(graph, [], "test"), saved=(kept,))
    intervals = (LiveInterval(kept, 0, 7, 0, 1), LiveInterval(gone, 0, 5, 0, 0))
    timeline = Timeline(plan.fwd[:2], 2, (live, 7), intervals, 0.0, 1.0)
    found = occupancy(graph, plan, timeline)
    by_role = dict(zip(ROLES, found.by_role, strict=True))
    assert (by_role[Role.TEMPORARIES][0], by_role[Role.SAVED][0]) == (temporaries, saved)
    assert found.occupants == (
        Occupant(kept, 0, Role.SAVED, 7, 0, 1),
        Occupant(gone, 0, Role.TEMPORARIES, 5, 0, 0),
    )
