"""LoRA of peft: values that only gradients of frozen weights would need are neither saved nor recomputed."""

import pytest
import torch
from small import assert_as_planned, close, gradients, llama, tokens
from support.programs import afresh

import rematpass
from rematpass.lab.measure.memory_and_time import measure_memory, run_step

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)


def adapted(dropout=0.0):
    """The model, its step, and its trained parameters."""
    model = llama()
    torch.manual_seed(1)
    adapters = peft.LoraConfig(
        r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )  # random: with the usual zeros, half of the gradients are zero
    model = peft.get_peft_model(model, adapters).train()
    batch = torch.utils.data.default_collate(tokens(4))
    return model, lambda: model(**batch).loss, [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("budget", [1, 0])
def test_adapter_gradients_equal_eager_modes_within_the_planned_bytes(budget):
    eager, step, trained = adapted()
    run_step(step, trained)
    expected = gradients(eager)
    by_eager = measure_memory(step, trained, warm=0)

    model, step, trained = adapted()
    model.compile(backend="remat", options={"memory_budget": budget, "strict": True})
    measured = measure_memory(step, trained)
    (summary,) = rematpass.plans()
    assert summary.exact
    assert measured.gradients == sum(p.nbytes for p in trained)
    assert_as_planned(measured.peak, summary.peak_without_outputs)
    assert measured.peak < (0.6 if budget == 0 else 1) * by_eager.peak
    run_step(step, trained)
    seen = gradients(model)
    assert all("lora_" in name for name in seen)
    close(seen, expected)


@pytest.mark.parametrize("budget", [1, 0.3, 0])
def test_dropout_in_the_adapters_equals_eager_modes(budget):
    results = []
    for options in (None, {"memory_budget": budget, "strict": True}):
        model, step, trained = adapted(dropout=0.2)
        if options:
            model.compile(backend="remat_aot_eager", options=options)
        torch.manual_seed(3)
        run_step(step, trained)
        results.append(gradients(model))
    assert rematpass.plans()
    close(*reversed(results), rtol=0, atol=1e-7)


def test_frozen_weights_save_less():
    saved = []
    for frozen in (False, True):
        model, step, trained = adapted()
        if not frozen:
            model.requires_grad_(True)
            trained = list(model.parameters())
        torch._dynamo.reset()
        model.compile(backend="remat_aot_eager", options={"strict": True})
        run_step(step, trained)
        saved.append(rematpass.plans(clear=True)[-1].saved_nbytes)
    assert saved[1] < saved[0]
