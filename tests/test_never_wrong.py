"""Training under any budget changes nothing that can be seen: compared with eager mode, program by program."""

import pytest
import torch
import torch.nn.functional as F
from programs import PROGRAMS, afresh, differences, reference, run
from torch import nn

from rematpass import plans

BUDGETS = 1, 0.5, 0.2, 0

afresh = pytest.fixture(autouse=True)(afresh)


def options(budget, **more):
    return {"memory_budget": budget, "strict": 1, **more}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("budget", BUDGETS)
def test_run_op_by_op_every_program_equals_eager_bit_for_bit(name, budget):
    seen = run(PROGRAMS[name], "remat_aot_eager", options(budget))
    assert plans()
    assert not differences(seen, reference(name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_recomputing_all_that_can_be_changes_nothing_either(name):
    """No cost model has a say here, so that each program's own difficulty is met."""
    seen = run(PROGRAMS[name], "remat_aot_eager", {"solver": "recompute_all", "strict": 1})
    assert sum(plan.recomputed_ops for plan in plans())
    assert not differences(seen, reference(name))


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("a_buffer_read_and_then_updated", 0),
        ("attention_dropout", 0.5),
        ("autocast_to_bfloat16", 0),
        ("checkpoint_region_with_dropout", 0),
        ("convolution_and_batch_norm", 0.2),
        ("dropout", 0),
        ("symbolic_sizes", 0.5),
        ("views_of_all_sorts", 0),
    ],
)
def test_compiled_by_inductor_it_equals_eager(name, budget):
    """With ``fallback_random`` Inductor draws eager mode's numbers, so that dropout can be compared as well."""
    seen = run(PROGRAMS[name], "remat", options(budget, fallback_random=True))
    tolerance = 2e-2 if "bfloat16" in name else 1e-5
    assert plans()
    assert not differences(seen, reference(name), tolerance)


def test_inductors_own_random_numbers_are_drawn_once():
    """What dropout has let through in forward is what it lets through in backward; backward draws nothing."""

    def forward(x):
        return F.dropout(torch.tanh(x).exp(), 0.5)

    x = torch.randn(31, 37, requires_grad=True)
    y = torch.compile(forward, backend="remat", options=options(0))(x)
    state = torch.get_rng_state()
    y.sum().backward()
    through = 2 * (y != 0) * torch.tanh(x).exp() * (1 - torch.tanh(x) ** 2)
    assert 0.4 < (y != 0).float().mean() < 0.6
    assert torch.allclose(x.grad, through, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert plans()[0].recomputed_ops


@pytest.mark.parametrize("backend", ["aot_eager", "remat_aot_eager"])
def test_a_gradient_that_torchs_own_partition_gets_wrong(backend):
    """If it fails for aot_eager, torch has mended it, and the README says otherwise."""
    buffer = torch.tensor([0.3])
    x = torch.tensor([0.7], requires_grad=True)

    @torch.compile(backend=backend)
    def forward(x):
        k = torch.sin(buffer)
        y = torch.sin(x * k)
        with torch.no_grad():
            buffer.add_(1)
        return y

    forward(x).sum().backward()
    k = torch.sin(torch.tensor([0.3]))
    right = torch.cos(x.detach() * k) * k
    assert torch.equal(x.grad, right) == (backend == "remat_aot_eager")


@pytest.mark.parametrize("budget", [1, 0])
def test_two_forwards_before_the_two_backwards(budget):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Dropout(0.3), nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Tanh())
    batches = torch.randn(2, 7, 3)
    grads = []
    for step in (model, torch.compile(model, backend="remat_aot_eager", options=options(budget))):
        model.zero_grad()
        torch.manual_seed(1)
        losses = [step(batch).square().sum() for batch in batches]
        for loss in reversed(losses):
            loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("budget", BUDGETS)
def test_one_compile_serves_all_batch_sizes(budget):
    def forward(w, x):
        h = torch.tanh(x @ w)
        return (h.view(-1, 5).exp() * x.shape[0]).sin().reshape(x.shape[0] * 5).sum() / x.shape[0]

    compiled = torch.compile(forward, backend="remat_aot_eager", options=options(budget), dynamic=True)
    w = torch.randn(3, 5, requires_grad=True)
    for batch in (7, 11, 2):
        x = torch.randn(batch, 3, requires_grad=True)
        expected = torch.autograd.grad(forward(w, x), (w, x))
        assert all(map(torch.equal, torch.autograd.grad(compiled(w, x), (w, x)), expected))
    assert len(plans()) == 1
