"""The simulated peak of a plan is Inductor's where kernels could overwrite an argument but do not, or write what they
could repeat: transposed and shifted losses, and soft-capped logits.
"""

import pytest
import torch
import torch.nn.functional as F
from support.peaks import look
from support.programs import afresh
from torch import nn

from rematpass.budget import Budget
from rematpass.compiler import _torch, backend
from rematpass.compiler.select_plan import Candidates
from rematpass.config import Config
from rematpass.core import frontier

afresh = pytest.fixture(autouse=True)(afresh)

VOCABULARY = 509


class TransposedLoss(nn.Module):
    """The loss reads the logits with the classes in the second dimension, and the product in the last."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 61), nn.Linear(61, VOCABULARY)

    def forward(self, x):
        return F.cross_entropy(self.head(self.embedding(x[:, :-1])).transpose(1, 2), x[:, 1:])


class SoftCapped(nn.Module):
    """The shifted loss reads a slice of the logits, which are an output; ``blocks`` residual MLPs are before them."""

    def __init__(self, blocks):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCABULARY, 29), nn.Linear(29, VOCABULARY, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(29, 251), nn.GELU(), nn.Linear(251, 29)) for _ in range(blocks)
        )

    def forward(self, x):
        h = self.embedding(x)
        for block in self.blocks:
            h = h + block(h)
        logits = torch.tanh(self.head(h) / 30) * 30
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()), logits


MODELS = {
    "transposed loss": TransposedLoss,
    "soft-capped logits": lambda: SoftCapped(0),
    "residual MLPs and soft-capped logits": lambda: SoftCapped(2),
}


@pytest.mark.parametrize("name", MODELS)
def test_simulated_peaks_are_those_of_inductor_and_none_is_above_that_of_its_own_choice(name, monkeypatch):
    ladders, captured = [], []
    build, make = frontier.build, Candidates._make

    def build_twice(problem, solver, *default):
        ladders.append(build(problem, solver))  # without the rung of torch's own choice, whose order is another one
        return build(problem, solver, *default)

    monkeypatch.setattr(frontier, "build", build_twice)
    monkeypatch.setattr(Candidates, "_make", lambda self, rung: captured.append(self.captured) or make(self, rung))

    def try_budgets(at):
        peaks = [at.choose(budget).peak for budget in (1.0, 0.5, 0.0)]
        rungs = ladders[0].rungs
        patches = backend.inductor_patches(Config.read({"memory_budget": Budget(fraction=0)}, environ={}))
        with _torch.inductor_config.patch(patches):
            candidates = [
                Candidates(captured[0], fuse=True).of(r) for r in (rungs[0], rungs[len(rungs) // 2], rungs[-1])
            ]
        return at.own, peaks, candidates

    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (3, 101))
    own, peaks, candidates = look(MODELS[name](), (tokens,), True, try_budgets)
    assert own >= peaks[0] >= peaks[1] >= peaks[2] > 0
    for candidate in candidates:
        assert candidate.exact
        assert candidate.rung.peak == pytest.approx(candidate.peak, rel=0.005)
        assert candidate.peak <= 1.005 * own
