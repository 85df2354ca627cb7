"""Each block compiled by itself, as in torchtitan: equal blocks share one plan, under a budget per block."""

import pytest
import torch
from small import close, gradients, llama, tokens
from support.programs import afresh

import rematpass
from rematpass.lab.measure.memory_and_time import measure_memory, run_step
from rematpass.lab.models.networks import TinyGPT

pytestmark = pytest.mark.frameworks
afresh = pytest.fixture(autouse=True)(afresh)


def gpt(layers):
    torch.manual_seed(0)
    model = TinyGPT(32, layers, vocabulary=VOCABULARY, length=64)
    rows = torch.randint(VOCABULARY, (4, 64))
    return model, model.blocks, lambda: model(rows)


def of_transformers(layers):
    model = llama()
    batch = torch.utils.data.default_collate(tokens(4))
    return model, model.model.layers[:layers], lambda: model(**batch).loss


VOCABULARY = 61


@pytest.mark.parametrize("make", [gpt, of_transformers])
@pytest.mark.parametrize("budget", [1, 0])
def test_blocks_share_one_plan_and_gradients_equal_eager_modes(make, budget):
    model, _, step = make(2)
    run_step(step, model.parameters())
    expected = gradients(model)
    model, blocks, step = make(2)
    for block in blocks:
        block.compile(backend="remat", options={"memory_budget": budget, "strict": True}, fullgraph=True)
    run_step(step, model.parameters())
    close(gradients(model), expected)
    (summary,) = rematpass.plans()
    assert summary.exact
    assert bool(summary.recomputed_flops) is (budget == 0)


@pytest.mark.parametrize("budget", [1, 0])
def test_each_further_block_saves_the_planned_bytes(budget):
    """Between forward and backward, two more blocks hold twice what one saves: its input and the planned values."""
    saved = []
    for layers in (2, 4):
        torch._dynamo.reset()
        rematpass.plans(clear=True)
        model, blocks, step = gpt(layers)
        for block in blocks:
            block.compile(backend="remat", options={"memory_budget": budget, "strict": True})
        saved.append(measure_memory(step, model.parameters()).saved)
        (summary,) = rematpass.plans()
    assert summary.calls == layers
    assert saved[1] - saved[0] == 2 * summary.nbytes_of_others // (layers - 1)
