import os
import subprocess
import sys

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from support.programs import afresh
from torch._dynamo.exc import BackendCompilerFailed

import rematpass
from rematpass import ConfigError, plans
from rematpass.compiler._torch import check_version
from rematpass.errors import TorchVersionError

afresh = pytest.fixture(autouse=True)(afresh)


def train(backend="remat_aot_eager", **keywords):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
    step = torch.compile(model, backend=backend, **keywords)
    step(torch.ones(11, 5)).sum().backward()
    return [p.grad for p in model.parameters()]


def refused(**keywords):
    with pytest.raises(BackendCompilerFailed) as caught:
        train(**keywords)
    assert isinstance(caught.value.inner_exception, ConfigError)
    return str(caught.value.inner_exception)


@pytest.mark.parametrize("backend", ["remat", "remat_aot_eager"])
def test_torch_compile_finds_both_backends_by_name(backend):
    assert backend in torch._dynamo.list_backends()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_budget": 16}, "a number without a unit; did you mean 16GiB? Accepted: a fraction from 0"),
        ({"memory_budget": "lots"}, "option memory_budget='lots': "),
        ({"memory_budget": -0.5}, "option memory_budget=-0.5: negative. Accepted: a fraction from 0"),
        ({"hardware": "abacus"}, "unknown hardware 'abacus'; valid names are a100, cpu, h100, h200, l4, rtx4090"),
        (
            {"memory_bugdet": 0.5},
            "neither rematpass nor Inductor has an option 'memory_bugdet'; did you mean memory_budget?",
        ),
        ({"custom_partitioner_fn": None}, "the backend remat sets custom_partitioner_fn itself; leave it out"),
    ],
)
def test_invalid_options_are_refused(options, message):
    assert message in refused(backend="remat", options=options)


def test_remat_aot_eager_refuses_modes_and_options_of_inductor():
    assert "is for Inductor, which remat_aot_eager does not use" in refused(mode="max-autotune")
    assert "rematpass has no option 'fallback_random'" in refused(options={"fallback_random": True})


def test_the_environment_is_read_for_each_compilation(monkeypatch):
    monkeypatch.setenv("REMAT_MEMORY_BUDGET", "0.25")
    train()
    assert plans(clear=True)[-1].budget.startswith("0.25 ")
    torch._dynamo.reset()
    train(options={"memory_budget": 0.75})
    assert plans()[-1].budget.startswith("0.75 ")


def test_inference_is_not_planned():
    with torch.no_grad():
        torch.compile(torch.nn.Linear(3, 5), backend="remat", options={"memory_budget": "1MiB"})(torch.ones(7, 3))
    assert not plans()


def test_options_and_mode_reach_inductor():
    seen = []

    def look(graph):
        seen.append((torch._inductor.config.max_autotune, torch._inductor.config.fallback_random))

    options = {"post_grad_custom_post_pass": look, "fallback_random": True, "memory_budget": 1}
    expected = train("eager")
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        for mine, theirs in zip(train("remat", options=options), expected, strict=True):
            torch.testing.assert_close(mine, theirs)
        torch._dynamo.reset()
        with torch._inductor.config.patch(post_grad_custom_post_pass=look):
            train("remat", mode="max-autotune-no-cudagraphs")
    assert (False, True) in seen
    assert (True, False) in seen


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_with_cuda_graphs_train_the_same_plan_on_a_cpu(mode):
    def planned(**keywords):
        with torch._inductor.config.patch(force_disable_caches=True):
            gradients = train("remat", **keywords)
        (plan,) = plans(clear=True)
        torch._dynamo.reset()
        return gradients, plan

    expected = train("eager")
    torch._dynamo.reset()
    gradients, plan = planned(mode=mode)
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    assert plan.plan_hash == planned()[1].plan_hash
    assert not torch._inductor.config.triton.cudagraphs  # the mode's settings end with the compilation


def test_a_graph_with_a_bag_of_a_view_may_be_retained():
    """As with Inductor alone: what backward reads is not given away to it if the caller keeps the graph."""

    def forward(weight):
        rows = torch.nn.functional.embedding_bag(torch.tensor([1, 2, 4, 3]), weight.view(10, 8), torch.tensor([0, 2]))
        return rows.view(-1, 4).sin()

    def gradients(step):
        weight = torch.linspace(-1, 1, 80).requires_grad_()
        loss = step(weight).sum()
        return [*torch.autograd.grad(loss, weight, retain_graph=True), *torch.autograd.grad(loss, weight)]

    expected = gradients(forward)
    seen = gradients(torch.compile(forward, backend="remat", options={"memory_budget": 0, "strict": 1}))
    assert plans()
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_torchs_own_budget_has_no_effect_and_a_warning_says_so(caplog):
    with torch._functorch.config.patch(activation_memory_budget=0.5):
        train("remat")
    (message,) = [m for m in caplog.messages if "activation_memory_budget" in m]
    assert message.startswith("torch's activation_memory_budget=0.5 has no effect with this backend; set memory_budget")


def test_enable_plans_compilations_by_inductor():
    with rematpass.enable(memory_budget=0.5), torch._inductor.config.patch(force_disable_caches=True):
        train("inductor")
        assert plans(clear=True)[-1].budget.startswith("0.5 ")
    assert torch._inductor.config.custom_partitioner_fn is None
    with pytest.raises(ConfigError, match="has no option 'budget'"):
        rematpass.enable(budget=0.5)


def test_enable_warns_that_it_cannot_measure_steps(monkeypatch, caplog):
    monkeypatch.setenv("REMAT_CHECK", "1")
    with rematpass.enable():
        pass
    assert caplog.messages == [
        'REMAT_CHECK measures only steps of backend="remat"; it does nothing under enable() and run'
    ]


def test_torch_logs_turns_the_log_on():
    program = (
        "import torch; m = torch.nn.Linear(3, 5); "
        "torch.compile(m, backend='remat_aot_eager')(torch.ones(7, 3)).sum().backward()"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}
    for logs, shown in ({"TORCH_LOGS": "+rematpass"}, True), ({}, False), ({"REMAT_MEMORY_BUDGET": "0.5"}, True):
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment | logs, capture_output=True, text=True, check=True
        )
        assert ("planned peak" in ran.stderr) is shown, ran.stderr


@pytest.mark.parametrize("version", ["2.10.1", "2.16.0+cu130", "3.0"])
def test_unsupported_versions_of_torch_are_refused(version):
    with pytest.raises(TorchVersionError) as caught:
        check_version(version)
    assert str(caught.value) == (
        f"rematpass works with torch >= 2.11 and < 2.16, and this is torch {version}; "
        "install one of those, for example: pip install torch==2.13.0"
    )


@pytest.mark.parametrize("version", ["2.11.0", "2.13.0+cpu", "2.12.1"])
def test_supported_versions_of_torch_are_accepted(version):
    check_version(version)
