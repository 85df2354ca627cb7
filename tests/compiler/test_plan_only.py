import torch
from torch import nn

from rematpass.compiler import _torch, devices
from rematpass.compiler.backend import enable
from rematpass.compiler.plan_only import plan_only
from rematpass.config import Config


class TwoGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x).tanh()
        torch._dynamo.graph_break()
        return self.second(x).tanh()


def test_every_graph_is_planned_and_nothing_is_compiled(monkeypatch):
    torch._dynamo.reset()
    compiled = []
    monkeypatch.setattr(_torch.inductor_graph.GraphLowering, "codegen", lambda self: compiled.append(self))
    module, x = TwoGraphs(), torch.ones(4, 16)
    found = plan_only(module, lambda: module(x), Config.read({"memory_budget": 0}, {}))
    assert len(found) == 2
    assert compiled == []
    assert [{op.module for op in record.graph.ops} - {""} for record in found] == [{"first"}, {"second"}]


def test_the_module_is_left_unchanged():
    torch._dynamo.reset()
    module, x = TwoGraphs(), torch.ones(4, 16)
    before = module(x)
    plan_only(module, lambda: module(x), Config())
    assert module._compiled_call_impl is None
    assert torch.equal(module(x), before)


def test_a_second_call_plans_again():
    """No cache is used: a hit would leave nothing to explain."""
    module, x = TwoGraphs(), torch.ones(4, 16)
    for _ in range(2):
        torch._dynamo.reset()
        assert len(plan_only(module, lambda: module(x), Config())) == 2


def test_a_module_without_gradients_has_no_plan():
    torch._dynamo.reset()
    module, x = TwoGraphs().requires_grad_(False), torch.ones(4, 16)
    assert plan_only(module, lambda: module(x), Config()) == []


def test_enable_does_not_ask_for_a_gpu_before_a_graph_is_compiled(monkeypatch):
    def fail():
        raise AssertionError("asked for the current device")

    monkeypatch.setattr(devices, "current", fail)
    before = _torch.inductor_config.custom_partitioner_fn
    with enable(memory_budget=0.5):
        assert _torch.inductor_config.custom_partitioner_fn.config.memory_budget.fraction == 0.5
    assert _torch.inductor_config.custom_partitioner_fn is before
