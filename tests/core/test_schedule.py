import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematpass.core.schedule import Drop, Plan, Run, Runs, Steps
from rematpass.errors import PlanError

IDS = st.integers(0, 2**40)
STEPS = st.lists(st.builds(Run, IDS, IDS) | st.builds(Drop, IDS, IDS), max_size=5).map(tuple)
PLANS = st.builds(Plan, st.text(), st.lists(IDS, max_size=5).map(tuple), STEPS, STEPS)


@given(PLANS)
def test_a_plan_survives_json(plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)


@given(STEPS)
def test_steps_come_out_of_their_arrays_as_they_went_in(steps):
    arrays = Steps.of(steps)
    assert (tuple(arrays), len(arrays)) == (steps, len(steps))
    assert arrays == steps
    assert steps == arrays
    assert Steps.of(arrays) is arrays
    assert list(arrays.runs) == [step for step in steps if isinstance(step, Run)]


@given(STEPS, STEPS)
def test_steps_are_equal_in_arrays_where_they_are_equal(some, others):
    assert (Steps.of(some) == Steps.of(others)) == (some == others)
    assert (Runs.of(Steps.of(some).runs) == Steps.of(others).runs) == (
        Steps.of(some).runs == list(Steps.of(others).runs)
    )


def test_a_run_and_a_drop_of_the_same_numbers_are_not_the_same():
    run, drop = (Plan("s", (), (step,), ()) for step in (Run(3, 1), Drop(3, 1)))
    assert run != drop
    assert run.to_json() != drop.to_json()


def changed(**fields):
    return json.dumps({**json.loads(Plan("s", (3,), (Run(5),), (Run(7),)).to_json()), **fields})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a plan: Expecting value: line 1 column 1 (char 0)"),
        ("{}", "not a plan: 'format'"),
        ("[]", "not a plan: list indices must be integers or slices, not str"),
        ("null", "not a plan: 'NoneType' object is not subscriptable"),
        (changed(format=2), "this plan is of another format than 1; make it again"),
        (changed(fwd=[["walk", 1, 2]]), "not a plan: 'walk' is neither a run nor a drop"),
        (changed(saved=7), "not a plan: 'int' object is not iterable"),
    ],
)
def test_what_is_no_plan_is_refused(text, message):
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("broken", [{"fwd": 7}, {"bwd": [[]]}, {"bwd": [["run", 1]]}, {"fwd": [["run", 1, 2, 3]]}])
def test_steps_of_another_form_are_refused(broken):
    with pytest.raises(PlanError, match=r"^not a plan: "):
        Plan.from_json(changed(**broken))


@pytest.mark.parametrize("field", ["solver", "saved", "fwd", "bwd"])
def test_a_plan_with_a_part_missing_is_refused(field):
    whole = json.loads(changed())
    del whole[field]
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(whole))
    assert str(caught.value) == f"not a plan: '{field}'"


def test_recomputed_are_the_runs_of_backward_that_repeat_another():
    fwd = (Run(2), Run(3), Drop(2), Run(5))
    bwd = (Run(7), Run(3, 1), Drop(3, 1), Run(11), Run(11, 1), Run(3, 2), Run(13))
    assert list(Plan("s", (), fwd, bwd).recomputed()) == [Run(3, 1), Run(11, 1), Run(3, 2)]


def test_a_run_in_backward_alone_is_no_recomputation():
    assert list(Plan("s", (), (), (Run(2), Drop(2), Run(3))).recomputed()) == []
