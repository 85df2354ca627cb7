import copy
import dataclasses
import re

import pytest
import torch
from support.programs import afresh, forget
from support.reports import report_of
from torch import nn
from torch._inductor.utils import run_fw_bw_and_get_code

from rematpass import plans
from rematpass.compiler import planned
from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.default_partition import DefaultPartition
from rematpass.compiler.plan_only import plan_only
from rematpass.compiler.planned import records
from rematpass.config import Config
from rematpass.errors import PlanError
from rematpass.lab.measure.memory_and_time import measure_memory

afresh = pytest.fixture(autouse=True)(afresh)


def layer():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), torch.randn(8, 16)
    return module, lambda: module(x).sum()


def test_torch_saves_the_arguments_and_results_of_matmuls():
    torch._dynamo.reset()
    [record] = plan_only(*layer(), Config())
    graph = record.graph
    made = {v for v in record.saved_by_torch if graph.producer[v] is not None}
    assert {graph.ops[graph.producer[v]].kind.value for v in made} == {"matmul", "pointwise"}
    assert [graph.values[v].nbytes for v in made] == [8 * 32 * 4] * 2  # of the eight values of that size in forward
    assert {graph.values[v].origin.value for v in record.saved_by_torch - made} == {"static", "input"}


def test_the_comparison_does_not_change_the_plan(tmp_path):
    found = []
    for options in ({}, {"report_dir": tmp_path}):
        torch._dynamo.reset()
        torch.compile(layer()[1], backend=remat_aot_eager, options={"memory_budget": 0.5, **options})()
        found.append(records()[-1])
    without, compared = found
    assert (without.saved_by_torch, compared.saved_by_torch is None) == (None, False)
    assert (without.graph, without.plan) == (compared.graph, compared.plan)


def test_a_report_on_a_graph_from_a_file_has_no_comparison():
    assert "torch" not in " ".join(p.name for p in report_of().others)


class Block(nn.Module):
    """A residual block with a norm whose statistics forward updates."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(width), nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x):
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def training(backend, **options):
    """The code of one step, its exact peak, and its gradients."""
    forget()
    torch.manual_seed(0)
    model, x = nn.Sequential(Block(31), Block(31)), torch.randn(97, 31)
    step = torch.compile(lambda x: model(x).square().mean(), backend=backend, options=options or None)
    _, code = run_fw_bw_and_get_code(lambda: step(x))
    code = [re.sub(r"AOT ID: .*", "", text) for text in code]  # a number that counts compilations
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return code, measure_memory(lambda: step(x), list(model.parameters())).peak, gradients


def test_without_a_budget_the_code_the_peak_and_the_gradients_are_those_of_torch_compile():
    code, peak, gradients = training("inductor")
    for options in ({}, {"memory_budget": 1}):
        ours, same_peak, same_gradients = training("remat", **options)
        assert ours == code
        assert same_peak == peak
        assert all(map(torch.equal, same_gradients, gradients))
        [summary] = plans()
        assert (summary.solver, summary.exact, summary.budget_nbytes) == ("torch", True, None)
        assert summary.floor < summary.planned_peak == summary.ceiling
        assert 0 <= peak - summary.planned_peak <= 8


def test_the_ladder_and_the_dry_run_are_made_when_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(planned, "is_told", lambda is_given: is_given)  # pytest reads every log
    training("remat")
    [record] = records()
    assert not record.is_decided
    [summary] = plans()
    assert record.is_decided
    assert summary.dry_run_seconds > 0
    training("remat", memory_budget=1)  # a budget that is given is told in the log
    assert records()[-1].is_decided


def test_a_budget_at_the_peak_of_torch_compile_is_held():
    _, peak, _ = training("inductor")
    _, ours, _ = training("remat", memory_budget=f"{int(peak * 1.002)}B", strict=1)
    assert ours <= peak


class Counting(nn.Module):
    """Forward overwrites a buffer after it has read it; torch's own choice reads the new one in backward."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.full((7,), 0.5))

    def forward(self, x):
        k = torch.sin(self.seen)
        y = torch.sin(x * k)
        with torch.no_grad():
            self.seen.add_(1)
        return y.sum()


class Routed(nn.Module):
    """A discrete decision in forward, which backward has to use again instead of taking it anew."""

    def __init__(self):
        super().__init__()
        self.gate, self.body = nn.Linear(11, 5), nn.Linear(11, 11)

    def forward(self, x):
        weight, _ = self.gate(x).softmax(-1).topk(2)
        return (self.body(x).sin() * weight.sum(-1, keepdim=True)).square().sum()


@pytest.mark.parametrize("model", [Counting(), Routed()], ids=["overwritten buffer", "decision"])
def test_what_torch_gets_wrong_is_marked_and_its_choice_is_asked_for_again(model):
    expected, x = copy.deepcopy(model), torch.randn(13, 7 if isinstance(model, Counting) else 11)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    forget()
    torch.compile(model, backend="remat", options={"strict": 1})(a).backward()
    expected(b).backward()
    torch.testing.assert_close(a.grad, b.grad)
    assert [plan.solver for plan in plans()] == ["torch"]


def test_an_op_that_would_draw_anew_is_refused_whichever_op_it_is():
    [record] = plan_only(*layer(), Config())
    graph = record.graph
    everything_again = DefaultPartition((None, None), frozenset(), 0, frozenset())
    first = min(run.op for run in everything_again.plan(graph).recomputed())
    assert first == 0
    with pytest.raises(PlanError, match=r"op 0 \(.*\) runs again from another random state"):
        dataclasses.replace(everything_again, stateful=frozenset({first})).plan(graph)
