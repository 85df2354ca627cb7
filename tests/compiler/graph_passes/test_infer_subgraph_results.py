"""Calls of subgraphs without a fake result, as torch's auto-chunker leaves them, are planned."""

import pytest
import torch
import torch.nn.functional as F
from support.programs import afresh
from torch import nn

from rematpass import plans
from rematpass.compiler._torch import inductor_config

afresh = pytest.fixture(autouse=True)(afresh)
VOCABULARY, WIDTH, TOKENS = 1024, 8, 512

CHUNKS = {
    "auto_chunker.enable": True,
    "auto_chunker.num_chunk": 4,
    "auto_chunker.output_size_threshold": 1,
    "auto_chunker.amplify_ratio_threshold": 2,
}


def gradients(**how):
    torch._dynamo.reset()
    torch.manual_seed(0)
    embedding, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    tokens, targets = torch.randint(VOCABULARY, (2, TOKENS))

    def loss(tokens, targets):
        return F.cross_entropy(head(embedding(tokens).sin()), targets)

    (torch.compile(loss, **how) if how else loss)(tokens, targets).backward()
    return embedding.weight.grad, head.weight.grad


@pytest.mark.parametrize("budget", [1, 0])
def test_a_chunked_loss_is_planned_and_takes_less(budget):
    how = {"backend": "remat", "options": {"memory_budget": budget, "strict": 1}}
    expected, whole = gradients(), gradients(**how)
    unchunked = plans(clear=True)[-1].planned_peak
    with inductor_config.patch(CHUNKS):
        chunked = gradients(**how)
    assert plans()[-1].planned_peak < 0.6 * unchunked
    for found in (whole, chunked):
        for gradient, eager in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, eager)
