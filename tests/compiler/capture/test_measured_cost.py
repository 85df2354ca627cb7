"""Measured seconds: which ops have them and where they are stored, but not their values."""

import dataclasses
import json

import pytest
import torch
from torch import nn

import rematpass
from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.capture import measured_cost
from rematpass.compiler.ops.sample_call import sample_call_of
from rematpass.compiler.planned import listening
from rematpass.core.op import Kind

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(measured_cost._torch, "cache_directory", lambda: str(tmp_path))
    return tmp_path


def train(module, x, **options):
    """The record and the gradients of one step."""
    torch._dynamo.reset()
    planned = []
    compiled = torch.compile(module, backend=remat_aot_eager, options={"memory_budget": 0, **options})
    with listening(planned.append):
        compiled(x).sum().backward()
    gradients = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (record,) = planned
    return record, gradients


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 5))


def test_ops_with_a_kernel_of_their_own_get_measured_seconds_and_others_keep_their_estimate(cache):
    module, x = network(), torch.randn(16, 32)
    estimated, gradients = train(module, x)
    measured, same = train(module, x, cost="measure")
    assert [torch.equal(a, b) for a, b in zip(gradients, same, strict=True)] == [True] * len(gradients)
    (file,) = (cache / "rematpass").glob("seconds_cpu*.json")
    kept = set(json.loads(file.read_text()).values())
    assert measured.graph == dataclasses.replace(estimated.graph, name=measured.graph.name)
    for op in measured.graph.ops:
        ours, before = measured.problem.costs.run[op.id], estimated.problem.costs.run[op.id]
        assert (ours in kept) if op.kind is Kind.MATMUL else (ours == before)
    assert measured.problem.costs.keep == estimated.problem.costs.keep


def test_stored_seconds_are_not_measured_again(cache, monkeypatch):
    module, x = network(), torch.randn(16, 32)
    first, _ = train(module, x, cost="measure")
    monkeypatch.setattr(measured_cost, "seconds_of_call", lambda *_: pytest.fail("measured again"))
    second, _ = train(module, x, cost="measure")
    assert second.problem.costs == first.problem.costs
    assert second.summary.plan_hash == first.summary.plan_hash


def test_a_damaged_file_is_measured_again(cache):
    module, x = network(), torch.randn(16, 32)
    train(module, x, cost="measure")
    (file,) = (cache / "rematpass").glob("seconds_cpu*.json")
    good = json.loads(file.read_text())
    file.write_text(file.read_text()[:40])
    train(module, x, cost="measure")
    assert json.loads(file.read_text()).keys() == good.keys()


def test_an_op_that_cannot_be_timed_keeps_its_estimate(cache, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("no memory to spare")

    module, x = network(), torch.randn(16, 32)
    estimated, _ = train(module, x)
    monkeypatch.setattr(measured_cost, "seconds_of_call", no_memory)
    measured, _ = train(module, x, cost="measure")
    assert measured.problem.costs == estimated.problem.costs


def test_measuring_does_not_change_the_programs_random_state(cache):
    module, x = network(), torch.randn(16, 32)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    train(module, x, cost="measure")
    assert torch.equal(torch.get_rng_state(), before)


def test_keys_differ_where_seconds_may_differ():
    seen = {}

    def calls(gm, inputs):
        for node in gm.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
            seen[sample_call_of(node).key] = seen.get(sample_call_of(node).key, 0) + 1
        return gm

    from torch._functorch.aot_autograd import aot_module_simplified

    def backend(gm, inputs):
        return aot_module_simplified(gm, inputs, fw_compiler=calls)

    a, b = torch.randn(3, 5), torch.randn(5, 5)
    torch.compile(lambda x, y: (x @ y) @ y @ y.t(), backend=backend)(a, b)
    assert seen == {
        "aten.mm.default(float32[3, 5][5, 1], float32[5, 5][5, 1])": 2,
        "aten.mm.default(float32[3, 5][5, 1], float32[5, 5][1, 5])": 1,
    }


def test_all_ranks_take_the_seconds_of_rank_0(monkeypatch):
    monkeypatch.setattr(measured_cost.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(measured_cost.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(measured_cost.dist, "get_rank", lambda: 1)

    def broadcast(objects, src):
        assert (objects, src) == ([None], 0)
        objects[0] = {"mm": 3.0}

    monkeypatch.setattr(measured_cost.dist, "broadcast_object_list", broadcast)
    assert measured_cost._of_rank_0(lambda: pytest.fail("a rank measured by itself")) == {"mm": 3.0}


@pytest.mark.parametrize("value", ["measured", "", "1"])
def test_an_unknown_cost_is_refused(value):
    with pytest.raises(rematpass.ConfigError, match="Accepted: model or measure"):
        rematpass.Config.read({"cost": value}, {})
