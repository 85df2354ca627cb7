"""The Python blocks of README and the guide that are marked ``run`` do what the text around them says."""

import contextlib
import functools
import io
from typing import NamedTuple

import pytest
import torch
from support.documents import examples
from support.programs import afresh
from torch import nn

import rematpass

afresh = pytest.fixture(autouse=True)(afresh)
EXAMPLES = examples("run")


class Output(NamedTuple):
    loss: torch.Tensor
    logits: torch.Tensor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return Output(x.square().mean(), x)


def run(name, **given):
    """The names that the block leaves behind, and what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(EXAMPLES[name], given)
    return given, printed.getvalue()


def test_quickstart(monkeypatch):
    monkeypatch.setenv("REMAT_MEMORY_BUDGET", "8GiB")
    model = Model()
    run("quickstart", make_model=lambda: model, batch=torch.ones(16, 64))
    assert all(parameter.grad is not None for parameter in model.parameters())
    (summary,) = rematpass.plans()
    assert summary.budget_nbytes == 8 << 30


def test_loop():
    _, printed = run("loop")
    losses = [float(line.rpartition(" ")[2]) for line in printed.splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    assert len(rematpass.plans()) == 1


def test_options():
    names, _ = run("options", torch=torch, model=Model())
    names["model"](torch.ones(16, 64)).loss.backward()
    (summary,) = rematpass.plans()
    assert summary.budget_nbytes == 8 << 30


def test_infeasible():
    model = torch.compile(Model(), backend="remat", options={"memory_budget": "1MiB"})
    _, printed = run("infeasible", torch=torch, model=model, batch=torch.ones(65536, 64))
    assert "no plan stays under 1.00 MiB" in printed
    assert "Try memory_budget=" in printed


def test_enable():
    partitioner = torch._inductor.config.custom_partitioner_fn
    with rematpass.enable(memory_budget=1):  # restores what the block sets
        run("enable")
        torch.compile(Model())(torch.ones(16, 64)).loss.backward()
    assert torch._inductor.config.custom_partitioner_fn is partitioner
    (summary,) = rematpass.plans()
    assert summary.budget_nbytes == 8 << 30


def test_plans():
    torch.compile(Model(), backend="remat_aot_eager")(torch.ones(16, 64)).loss.backward()
    _, printed = run("plans", rematpass=rematpass)
    (summary,) = rematpass.plans()
    assert printed == f"{summary.graph} {summary.planned_peak} {summary.floor} {summary.ceiling}\n"


def test_gradient_checkpointing():
    names, _ = run("gradient_checkpointing", model=Model())
    names["model"](torch.ones(16, 64)).loss.backward()
    assert len(rematpass.plans()) == 1


def test_checkpoint():
    from torch.utils.checkpoint import checkpoint

    names, _ = run("checkpoint", torch=torch, nn=nn, checkpoint=checkpoint)
    names["model"](torch.ones(16, 64)).sum().backward()
    (summary,) = rematpass.plans()
    assert summary.recomputed_ops > 0


def test_selective():
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    given = {
        "functools": functools,
        "torch": torch,
        "checkpoint": checkpoint,
        "CheckpointPolicy": CheckpointPolicy,
        "create_selective_checkpoint_contexts": create_selective_checkpoint_contexts,
    }
    names, _ = run("selective", **given)
    x, weight = (torch.ones(64, 64, requires_grad=True) for _ in range(2))
    names["step"](x, weight).sum().backward()
    (summary,) = rematpass.plans()
    assert summary.saved_values > 0
    assert summary.recomputed_flops == 0  # the product is saved


def test_every_marked_block_has_a_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert tested - {"every_marked_block_has_a_test"} == set(EXAMPLES)
