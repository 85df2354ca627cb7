import dataclasses
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematpass.core.schedule import Drop, Plan, Run, RunArrays, StepArrays
from rematpass.errors import PlanError

IDS = st.integers(0, 2**40)
STEPS = st.lists(st.builds(Run, IDS, IDS) | st.builds(Drop, IDS, IDS), max_size=5).map(tuple)
COPIES = st.lists(st.tuples(IDS, IDS), max_size=3).map(tuple)
PLANS = st.builds(Plan, st.text(), st.lists(IDS, max_size=5).map(tuple), STEPS, STEPS, COPIES)


@given(PLANS)
def test_a_plan_survives_json(plan):
    again = Plan.from_json(plan.to_json())
    assert (again, again.realized, again.digest) == (plan, plan.realized, plan.digest)
    assert hash(again) == hash(plan)


@given(PLANS)
def test_realized_copies_belong_neither_to_the_digest_nor_to_equality(plan):
    bare = dataclasses.replace(plan, realized=())
    assert bare == plan
    assert bare.digest == plan.digest == hashlib.sha256(bare.to_json().encode()).hexdigest()[:12]


def test_a_digest_is_the_same_in_every_process():
    assert Plan("s", (3,), (Run(5), Drop(7)), (Run(7, 1),)).digest == "6c6edd9b5f90"


def test_only_a_plan_with_realized_copies_lists_them_in_json():
    plan = Plan("s", (3,), (Run(5),), (Run(7),))
    assert "realized" not in plan.to_json()
    assert '"realized":[[3,1]]' in dataclasses.replace(plan, realized=((3, 1),)).to_json()


@given(STEPS)
def test_steps_survive_the_conversion_to_arrays(steps):
    arrays = StepArrays.of(steps)
    assert (tuple(arrays), len(arrays)) == (steps, len(steps))
    assert arrays == steps
    assert steps == arrays
    assert StepArrays.of(arrays) is arrays
    assert list(arrays.runs) == [step for step in steps if isinstance(step, Run)]


@given(STEPS, STEPS)
def test_step_arrays_compare_like_the_steps_in_them(some, others):
    assert (StepArrays.of(some) == StepArrays.of(others)) == (some == others)
    assert (RunArrays.of(StepArrays.of(some).runs) == StepArrays.of(others).runs) == (
        StepArrays.of(some).runs == list(StepArrays.of(others).runs)
    )


def test_a_run_and_a_drop_of_the_same_numbers_are_not_equal():
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
        (changed(format=2), "this plan has a format other than 1; make the plan again"),
        (changed(fwd=[["walk", 1, 2]]), "not a plan: 'walk' is neither a run nor a drop"),
        (changed(saved=7), "not a plan: 'int' object is not iterable"),
    ],
)
def test_text_that_is_not_a_plan_is_refused(text, message):
    with pytest.raises(PlanError) as caught:
        Plan.from_json(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "broken",
    [
        {"fwd": 7},
        {"bwd": [[]]},
        {"bwd": [["run", 1]]},
        {"fwd": [["run", 1, 2, 3]]},
        {"realized": [7]},
        {"realized": [["a", "b"]]},
    ],
)
def test_malformed_fields_are_refused(broken):
    with pytest.raises(PlanError, match=r"^not a plan: "):
        Plan.from_json(changed(**broken))


@pytest.mark.parametrize("field", ["solver", "saved", "fwd", "bwd"])
def test_a_plan_with_a_field_missing_is_refused(field):
    whole = json.loads(changed())
    del whole[field]
    with pytest.raises(PlanError) as caught:
        Plan.from_json(json.dumps(whole))
    assert str(caught.value) == f"not a plan: '{field}'"


def test_recomputed_runs_are_those_of_backward_that_repeat_another_run():
    fwd = (Run(2), Run(3), Drop(2), Run(5))
    bwd = (Run(7), Run(3, 1), Drop(3, 1), Run(11), Run(11, 1), Run(3, 2), Run(13))
    assert list(Plan("s", (), fwd, bwd).recomputed()) == [Run(3, 1), Run(11, 1), Run(3, 2)]


def test_an_op_that_runs_in_backward_only_is_not_recomputed():
    assert list(Plan("s", (), (), (Run(2), Drop(2), Run(3))).recomputed()) == []
