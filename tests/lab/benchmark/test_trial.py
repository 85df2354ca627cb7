"""One strategy on one model: figures that can be counted, and what is refused. Nothing here is compiled by Inductor."""

import shutil
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from rematpass.compiler import source_hash
from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.planned import records
from rematpass.core.frontier import least_budget
from rematpass.errors import BudgetInfeasible, MeasureError
from rematpass.lab.benchmark import job, trial
from rematpass.lab.benchmark.job import Job, blank
from rematpass.lab.benchmark.subject import prepare, save_eager_step
from rematpass.lab.benchmark.trial import measure
from rematpass.report.measurement import FAILED, INFEASIBLE, MEASURED, Strategy
from rematpass.units import format_bytes

SIZES = {"layers": 4, "width": 16, "batch": 64}
ONE = 2 * 64 * 16 * 16  # FLOPs of a layer's forward
VALUE, LOSS = 4 * 64 * 16, 4


def tried(strategy, target="chain", sizes=SIZES, is_known=lambda _: False, **fields):
    job = Job(target, Strategy.parse(strategy), sizes=sizes, **fields)
    return measure(job, prepare(job), is_known=is_known)


@pytest.fixture(autouse=True)
def op_by_op(monkeypatch):
    """Replace remat by the backend that generates no code, which is faster."""
    torch._dynamo.reset()
    monkeypatch.setattr(trial, "remat", remat_aot_eager)


class TestEager:
    def test_figures_equal_those_computed_by_hand(self):
        found, step = tried("eager")
        assert (found.status, found.model) == (MEASURED, "chain,batch=64,layers=4,width=16")
        assert found.saved == 4 * VALUE + LOSS
        assert found.gradients == 4 * 4 * (16 * 16 + 16)
        assert (found.forward_flops, found.step_flops, found.eager_flops) == (4 * ONE, 11 * ONE, 11 * ONE)
        assert (found.recomputed_share, found.gradient_error, found.gradient_reference) == (0, 0, "eager")
        assert (found.compile_seconds, found.source, found.plan_hash) == (None, "", "")
        assert trial.warm_seconds(step, "cpu") > 0

    def test_checkpointed_blocks_run_again(self):
        found, _ = tried("eager+checkpoint")
        assert found.step_flops - found.eager_flops == 4 * ONE
        assert (found.recomputed_share, found.gradient_error) == (1, 0)

    def test_a_model_without_blocks_fails_with_the_reason(self):
        found, step = tried("eager+checkpoint", sizes=SIZES | {"layers": 1})
        assert (found.status, step) == (FAILED, None)
        assert "has no list of equal blocks" in found.error


class TestRemat:
    @pytest.mark.parametrize(("strategy", "holds"), [("remat@0.5", True), ("remat@64MiB", False)])
    def test_a_budget_in_bytes_does_not_hold_outputs(self, strategy, holds):
        found, _ = tried(strategy)
        (record,) = records()
        assert record.graph.holds_outputs is holds
        assert found.drops_outputs is not holds

    def test_blocks_compiled_one_by_one_are_planned_together(self):
        pytest.importorskip("transformers")
        sizes = {"layers": 3, "width": 64, "mlp": 96, "vocabulary": 256, "length": 64}
        found, _ = tried("remat@0", "llama", sizes, per_block=True)
        assert {record.graph.calls for record in records()} == {3}
        assert (found.status, found.model[-11:]) == (MEASURED, ", per block")
        assert found.step_flops is None
        assert found.gradient_error < 1e-5
        assert found.peak < tried("eager", "llama", sizes)[0].peak

    @pytest.mark.parametrize(
        ("layers", "why"),
        [(1, "has no list of equal blocks"), (4, "nn.Sequential, which compile() does not compile")],
    )
    def test_blocks_that_cannot_be_compiled_alone_fail_with_the_reason(self, layers, why):
        found, step = tried("remat@0", sizes=SIZES | {"layers": layers}, per_block=True)
        assert (found.status, step) == (FAILED, None)
        assert why in found.error
        assert tried("eager", sizes=SIZES | {"layers": layers}, per_block=True)[0].status == MEASURED

    def test_the_plan_is_recorded(self):
        found, _ = tried("remat@0")
        assert found.status == MEASURED
        assert found.floor - 4 == found.planned_peak <= found.ceiling  # the floor counts the loss, an output
        assert found.budget_nbytes == found.floor
        assert len(found.plan_hash) == 12
        assert len(found.source) == len(found.carrier) == 12
        assert found.source != found.carrier
        assert found.gradient_error == 0
        assert found.planning_seconds > 0

    def test_a_known_plan_is_not_compiled(self):
        first, _ = tried("remat@1")
        torch._dynamo.reset()
        found, step = tried("remat@1", is_known={first.plan_hash}.__contains__)
        assert (found.plan_hash, found.peak, step) == (first.plan_hash, None, None)
        assert found.status == MEASURED
        assert found.planned_peak == first.planned_peak

    def test_a_plan_with_a_limit_and_without_has_two_hashes(self):
        free, _ = tried("remat@1")
        torch._dynamo.reset()
        limited, _ = tried("remat@1GiB")
        assert free.plan_hash == f"{limited.plan_hash}, no limit"

    def test_torchs_own_choice_has_one_hash_with_a_limit_and_without(self):
        plans = [types.SimpleNamespace(plan_hash="c0ffee", solver="torch", budget_nbytes=limit) for limit in (7, None)]
        assert list(map(trial._emitted_hash, plans)) == ["c0ffee, torch's own"] * 2

    def test_a_budget_below_the_floor_is_infeasible(self):
        found, step = tried("remat@1KiB")
        floor = tried("remat@0")[0].floor
        assert (found.status, found.floor, found.budget_nbytes, step) == (INFEASIBLE, floor - LOSS, 1024, None)
        assert found.error.startswith("the floor is ")

    def test_a_compiler_error_is_recorded_as_one_line(self, monkeypatch):
        def broken(module, inputs, **options):
            raise ValueError("first line\nsecond line")

        monkeypatch.setattr(trial, "remat", broken)
        found, step = tried("remat@0")
        assert (found.status, found.error, step) == (FAILED, "ValueError: first line", None)

    def test_an_infeasible_budget_is_found_inside_dynamos_error(self):
        error = RuntimeError("backend raised")
        error.inner_exception = BudgetInfeasible("none", budget=3, floor=5 * 2**20)
        assert trial._failed(blank(Job("chain", Strategy("eager"))), error).error == (
            f"the floor is {format_bytes(least_budget(5 * 2**20, 'cpu'), round_up=True)}"
        )


def test_dropout_is_compared_with_inductor_under_the_same_seed(tmp_path):
    sizes = {"width": 32, "layers": 2, "vocabulary": 64, "length": 16}
    subject = prepare(Job("gpt2", Strategy("eager"), sizes=sizes))
    assert subject.draws_random
    assert not prepare(Job("chain", Strategy("eager"), sizes=SIZES)).draws_random
    kept = str(tmp_path / "gradients")
    ours = Job("gpt2", Strategy("remat", budget="0"), sizes=sizes, inductor_gradients=kept)
    assert trial._compare_gradients(ours, subject) == (None, "")
    assert trial._compare_gradients(replace(ours, strategy=Strategy("inductor")), subject) == (None, "Inductor")
    assert trial._compare_gradients(ours, subject) == (0, "Inductor")
    assert trial._compare_gradients(replace(ours, strategy=Strategy("eager")), subject) == (0, "eager")


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)


USERS = {
    "a dict": (dict, "returned a dict; expected (module, step), a torch module and a function"),
    "a model alone": (lambda: (nn.Linear(2, 2),), "returned a tuple of Linear; expected (module, step)"),
    "no gradient": (lambda: (Frozen(), lambda: 0), "has no parameter that requires a gradient"),
    "no loss": (lambda: (nn.Linear(2, 2), lambda: None), "the step returned NoneType; return the loss"),
    "many losses": (lambda: (m := nn.Linear(2, 2), lambda: m(torch.ones(1, 2))), "a tensor of shape (1, 2)"),
    "another model": (
        lambda: (nn.Linear(2, 2), lambda: nn.Parameter(torch.ones(())) * 2),
        "backward gave none of the model's parameters a gradient",
    ),
    "a bug": (lambda: (nn.Linear(2, 2), lambda: 1 / 0), "raised ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("name", USERS)
def test_an_unusable_model_of_a_user_is_refused(name, monkeypatch):
    made, message = USERS[name]
    module = type(sys)("users")
    module.make = made
    monkeypatch.setitem(sys.modules, "users", module)
    with pytest.raises(MeasureError) as raised:
        prepare(Job("users:make", Strategy("eager")))
    assert message in str(raised.value)


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of the package's sources, hashed again each time."""
    copied = tmp_path / "rematpass"
    shutil.copytree(source_hash.ROOT, copied)
    monkeypatch.setattr(source_hash, "ROOT", copied)
    for name in ("sources_hash", "behavior_hash"):
        monkeypatch.setattr(source_hash, name, getattr(source_hash, name).__wrapped__)
    monkeypatch.setattr(job, "behavior_hash", source_hash.behavior_hash)
    return copied


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("core/solve/local_search/refine.py", False),
        ("core/frontier.py", False),
        ("core/simulate.py", True),
        ("compiler/emit.py", True),
    ],
)
def test_only_sources_that_affect_emitted_code_change_the_carrier_hash(sources, changed, matters):
    carrier, source = job.carrier_hash(torch.device("cpu")), job.source_hash(torch.device("cpu"))
    (sources / changed).write_text("changed = True\n")
    assert (job.carrier_hash(torch.device("cpu")) != carrier) == matters
    assert job.source_hash(torch.device("cpu")) != source


def test_moved_files_and_comments_do_not_change_the_hashes(sources):
    before = source_hash.sources_hash(), job.source_hash(torch.device("cpu"))
    (sources / "core" / "verify.py").rename(sources / "core" / "solve" / "judge.py")
    assert (source_hash.sources_hash(), job.source_hash(torch.device("cpu"))) == before
    text = (sources / "core" / "cost.py").read_text()
    for better in ('"""Other words."""\n' + text, "# A comment.\n" + text, "from rematpass.core import graph\n" + text):
        (sources / "core" / "cost.py").write_text(better)
        assert source_hash.sources_hash() != before[0]
        assert job.source_hash(torch.device("cpu")) == before[1]
    (sources / "core" / "cost.py").write_text(text.replace("else 2)", "else 3)"))
    assert job.source_hash(torch.device("cpu")) != before[1]


class TestSavedEagerStep:
    def test_is_read_for_a_model_of_the_catalog(self, tmp_path, monkeypatch):
        job = Job("chain", Strategy("eager"), sizes=SIZES, eager_step=str(tmp_path / "eager_step"))
        first = prepare(job)
        save_eager_step(job, first)
        assert [path.name for path in tmp_path.iterdir()] == ["eager_step"]
        monkeypatch.delattr("rematpass.lab.benchmark.subject.eager_flops")  # no further step
        second = prepare(job)
        assert (second.flops, second.draws_random) == (first.flops, False)
        assert second.gradients.keys() == first.gradients.keys()
        assert all(torch.equal(gradient, first.gradients[name]) for name, gradient in second.gradients.items())
        assert all(map(torch.equal, second.model.parameters, first.model.parameters))

    def test_is_not_used_for_a_users_function(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "users", users := types.ModuleType("users"))
        users.model = lambda: ((module := nn.Linear(2, 1)), lambda: module(torch.ones(1, 2)).sum())
        job = Job("users:model", Strategy("eager"), eager_step=str(tmp_path / "eager_step"))
        first = prepare(job)
        save_eager_step(job, first)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "eager_step").write_text("not read")
        second = prepare(job)
        assert all(map(torch.equal, first.model.parameters, second.model.parameters))  # by the seed
