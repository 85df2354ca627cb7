"""Users' marks hold at every budget, and recomputed nodes carry the metadata of their originals."""

import dataclasses
import inspect

import pytest
import torch
import torch._functorch.config
import torch._functorch.partitioners
import torch.nn.functional as F
from support import programs
from support.programs import afresh, captured, selective
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from rematpass import ConfigError, plans
from rematpass.compiler import partitioner, select_plan
from rematpass.compiler.capture.joint_graph import capture
from rematpass.compiler.emit import emit
from rematpass.compiler.planned import records
from rematpass.core.cost import estimate
from rematpass.core.hardware import preset
from rematpass.core.op import Kind, Origin
from rematpass.core.solve.baselines import recompute_all
from rematpass.core.solve.problem import Problem
from rematpass.errors import ContradictoryMarks

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)
BUDGETS = 1, 0.5, 0.2, 0


def block():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid())


def planned(policy, ops, budget, dropout=False, **more):
    """The record of a region in which ``ops`` have ``policy`` and all others PREFER_RECOMPUTE."""
    torch._dynamo.reset()
    plans(clear=True)
    model = block()
    body = (lambda t: F.dropout(model(t).sin(), 0.4).exp()) if dropout else (lambda t: model(t).sin())

    def forward(x):
        return checkpoint(body, x * 2, use_reentrant=False, context_fn=selective(policy, ops)).exp()

    options = {"memory_budget": budget, "strict": 1, **more}
    torch.compile(forward, backend="remat_aot_eager", options=options)(torch.randn(11, 5)).sum().backward()
    (record,) = records()
    return record


def runs_again(record, name):
    return {
        record.graph.ops[r.op].name for r in record.plan.recomputed() if record.graph.ops[r.op].name.startswith(name)
    }


def saved(record, name):
    return {record.graph.values[v].name for v in record.plan.saved if record.graph.values[v].name.startswith(name)}


@pytest.mark.parametrize("budget", BUDGETS)
def test_must_save_is_saved(budget):
    record = planned(CheckpointPolicy.MUST_SAVE, [aten.addmm.default], budget)
    assert not runs_again(record, "addmm")
    assert saved(record, "addmm") >= {"addmm"}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_values_marked_to_be_recomputed_are_not_saved(policy, budget):
    record = planned(policy, [aten.addmm.default], budget)
    assert not saved(record, "addmm")
    assert runs_again(record, "addmm") >= {"addmm", "addmm_1"}


def test_prefer_save_leaves_the_decision_to_the_planner():
    """Values are saved where that is faster, and recomputed by ``recompute_all``, unlike with MUST_SAVE."""

    def again(policy, **solver):
        return runs_again(planned(policy, [aten.addmm.default], 1, **solver), "addmm")

    assert not again(CheckpointPolicy.PREFER_SAVE)
    assert again(CheckpointPolicy.PREFER_SAVE, solver="recompute_all")
    assert not again(CheckpointPolicy.MUST_SAVE, solver="recompute_all")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_RECOMPUTE, CheckpointPolicy.PREFER_RECOMPUTE])
def test_random_numbers_of_a_region_are_drawn_again(policy, budget):
    """From the random state of the first draw, which ``emit`` saves in place of the dropout mask."""
    record = planned(policy, [aten.native_dropout.default], budget, dropout=True)
    assert runs_again(record, "native_dropout") == {"native_dropout"}
    assert not saved(record, "native_dropout")


def test_random_numbers_marked_to_be_saved_are_saved():
    record = planned(CheckpointPolicy.MUST_SAVE, [aten.native_dropout.default], 0, dropout=True)
    assert not runs_again(record, "native_dropout")
    assert "native_dropout.1" in saved(record, "native_dropout")


@pytest.mark.parametrize("strict", [0, 1])
def test_contradictory_marks_are_an_error_that_names_the_path(strict, monkeypatch, caplog):
    """There is no fall-back, since torch's own partitioner does not obey the marks either.

    Marks alone cannot contradict each other, since what cannot run again is saved whatever its mark. So the test makes
    a value that backward's op needs unsavable.
    """

    def with_unsavable_noise(*arguments, **more):
        found = capture(*arguments, **more)
        (draw,) = (op for op in found.graph.ops if op.kind is Kind.RANDOM)
        once = dataclasses.replace(draw, never_recompute="it draws random numbers", must_recompute=False)
        ops = tuple(once if op is draw else op for op in found.graph.ops)
        values = tuple(
            dataclasses.replace(v, cannot_save="it is a handle") if v.id == draw.writes[0] else v
            for v in found.graph.values
        )
        return dataclasses.replace(found, graph=dataclasses.replace(found.graph, ops=ops, values=values))

    monkeypatch.setattr(partitioner, "capture", with_unsavable_noise)
    with pytest.raises(BackendCompilerFailed) as caught:
        planned(CheckpointPolicy.MUST_RECOMPUTE, [aten.addmm.default], "64MiB", dropout=True, strict=strict)
    error = caught.value.inner_exception
    assert isinstance(error, ContradictoryMarks)
    assert str(error) == (
        "backward needs a value that can neither be saved nor recomputed: "
        "op native_dropout (never recomputed: it draws random numbers) -> "
        "value native_dropout.0 (never saved: it is a handle) -> "
        "op exp -> value exp (never saved: marked to be recomputed) -> backward. "
        "Remove one of these marks, or move the op out of the checkpointed region."
    )
    assert not [r for r in caplog.records if r.getMessage().startswith("planning failed")]
    assert not plans()


# ---- metadata of recomputed copies

HAS_AUTOGRAD_TAG = "autograd_backward" in inspect.getsource(torch._functorch.partitioners)  # torch 2.11 has none


def emitted(forward, *arguments):
    found = captured(forward, *arguments)
    problem = Problem(found.graph, estimate(found.graph, preset("cpu")), fuse=False)
    (plan,) = recompute_all(problem)
    return found, *programs.emitted(found, plan)


def test_a_recomputed_copy_carries_backward_tags_stack_traces_and_modules():
    model = nn.Sequential(nn.Linear(3, 5), nn.Sequential(nn.GELU(), nn.Linear(5, 5)), nn.Tanh())
    found, fwd, bwd = emitted(lambda x: torch.exp(model(x)), torch.randn(7, 3))
    again = [n for n in bwd.graph.nodes if "_again" in n.name]
    assert {str(n.target) for n in again} >= {"aten.addmm.default", "aten.gelu.default", "aten.tanh.default"}
    original = {n.name: n for n in found.op_node}
    for node in again:
        first = original[node.name.split("_again")[0]]
        assert node.meta["partitioner_tag"] == "is_backward"
        assert node.meta.get("autograd_backward", False) is HAS_AUTOGRAD_TAG
        assert "recompute" not in node.meta
        assert node.meta["stack_trace"] == first.meta["stack_trace"]
        assert node.meta.get("nn_module_stack") == first.meta.get("nn_module_stack")
        assert node.meta["val"].shape == first.meta["val"].shape
    gelu = next(n for n in again if n.target is aten.gelu.default)
    assert "GELU" in str(gelu.meta["nn_module_stack"])
    assert all(
        n.meta.get("partitioner_tag") != "is_backward"
        for n in fwd.graph.find_nodes(op="call_function", target=aten.gelu.default)
    )


def test_every_op_of_backward_is_tagged_as_such():
    _, _, bwd = emitted(lambda x: torch.tanh(torch.sin(x).t()[1:]).exp(), torch.randn(5, 7, requires_grad=True))
    calls = [n for n in bwd.graph.nodes if n.op == "call_function"]
    assert {n.meta.get("partitioner_tag") for n in calls} == {"is_backward"}
    assert {n.meta.get("autograd_backward", False) for n in calls} == {HAS_AUTOGRAD_TAG}


# ---- budgets of regions

region_budget = getattr(torch.autograd.graph, "region_activation_memory_budget", None)
has_region_budgets = pytest.mark.skipif(
    region_budget is None, reason="this torch has no region_activation_memory_budget"
)


def tower(x, weights):
    for w in weights:
        x = torch.tanh(x @ w)
    return x.sum()


def trained(forward, **options):
    torch._dynamo.reset()
    plans(clear=True)
    torch.manual_seed(0)
    weights = [torch.randn(16, 16, requires_grad=True) for _ in range(9)]
    options = {"strict": 1, **options}
    compiled = torch.compile(forward, backend="remat_aot_eager", options=options)
    compiled(torch.randn(512, 16), weights).backward()
    expected = torch.autograd.grad(tower(torch.randn(512, 16) * 0, weights), weights)
    assert len(expected) == len(weights)
    return plans()


@has_region_budgets
@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("given", [{}, {"memory_budget": 0.5}])
def test_a_regions_budget_takes_precedence_over_the_fraction_of_the_graph(fraction, given):
    def forward(x, weights):
        with region_budget(fraction):
            return tower(x, weights)

    (by_region,) = trained(forward, **given)
    (by_option,) = trained(tower, memory_budget=fraction)
    assert by_region.plan_hash == by_option.plan_hash
    assert by_region.budget == by_option.budget


@has_region_budgets
def test_the_lower_of_a_regions_budget_and_one_in_bytes_holds():
    def forward(x, weights):
        with region_budget(0.2):
            return tower(x, weights)

    (least,), (most,) = trained(tower, memory_budget=0), trained(tower, memory_budget=1)
    assert least.planned_peak < most.planned_peak
    (by_region,) = trained(forward, memory_budget="1GiB")
    assert by_region.planned_peak <= 1.001 * (least.floor + 0.2 * (most.ceiling - least.floor))
    (by_bytes,) = trained(forward, memory_budget=f"{int(1.02 * least.floor)}B")
    assert by_bytes.planned_peak == least.planned_peak


@has_region_budgets
@pytest.mark.parametrize("how", ["a part", "two"])
def test_a_region_that_is_not_the_whole_graph_is_refused(how):
    def forward(x, weights):
        with region_budget(0.5):
            h = tower(x, weights[:4])
        if how == "two":
            with region_budget(0.25):
                return h * tower(x, weights[4:])
        return h * tower(x, weights[4:])

    with pytest.raises(BackendCompilerFailed) as caught:
        trained(forward)
    error = caught.value.inner_exception
    assert isinstance(error, ConfigError)
    assert str(error).startswith("torch.autograd.graph.region_activation_memory_budget ")
    assert "torch._dynamo.graph_break()" in str(error)


# ---- values to be offloaded


@pytest.mark.skipif(
    not hasattr(CheckpointPolicy, "MUST_CPU_OFFLOAD")
    or not hasattr(torch._functorch.config, "enable_activation_offloading"),
    reason="this torch does not offload",
)
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("budget", [1, 0])
def test_must_cpu_offload_is_saved_and_passed_to_torchs_offloading(budget, enabled, monkeypatch):
    modules = []

    def keep(captured, plan, **more):
        modules.append(emit(captured, plan, **more))
        return modules[-1]

    monkeypatch.setattr(select_plan, "emit", keep)
    with torch._functorch.config.patch(enable_activation_offloading=enabled):
        record = planned(CheckpointPolicy.MUST_CPU_OFFLOAD, [aten.addmm.default], budget)
    fwd, bwd = modules[-1]
    assert not runs_again(record, "addmm")
    assert saved(record, "addmm") >= {"addmm"}
    marked = {n.name for n in fwd.graph.nodes if n.meta.get("should_offload")}
    assert marked >= {"addmm", "addmm_1"}
    moved = {n.name.removeprefix("cpu_offload_") for n in fwd.graph.nodes if n.name.startswith("cpu_offload_")}
    back = {n.name.removeprefix("gpu_reload_") for n in bwd.graph.nodes if n.name.startswith("gpu_reload_")}
    assert (moved >= {"addmm"}) is enabled
    assert moved == back <= marked


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("backend", ["remat", "remat_aot_eager"])
@pytest.mark.parametrize("activation", [F.gelu, lambda x: torch.cos(torch.sin(x))], ids=["gelu", "cos(sin)"])
def test_nothing_derived_inside_a_region_is_saved(activation, backend, budget):
    """Without this rule, backward's derivatives of the activation are computed in forward and saved."""
    torch._dynamo.reset()
    layers = nn.ModuleList(nn.Linear(7, 7) for _ in range(4))

    def forward(x):
        for layer in layers:
            x = checkpoint(lambda y, layer=layer: activation(layer(y)), x, use_reentrant=False)
        return x.sum()

    plans(clear=True)
    torch.compile(forward, backend=backend, options={"memory_budget": budget, "strict": 1})(
        torch.randn(11, 7)
    ).backward()
    (record,) = records()
    values = [record.graph.values[v] for v in record.plan.saved]
    assert (
        sum(v.nbytes for v in values if v.origin is Origin.OP) <= 3 * 11 * 7 * 4
    )  # what one region passes to the next
    assert any(run.op for run in record.plan.recomputed())
