"""Training under any budget gives the results of eager mode, program by program."""

import pytest
import torch
import torch._functorch.config
import torch.nn.functional as F
from support import programs_features
from support.programs import PROGRAMS, afresh, differences, reference, run
from torch import nn
from torch.utils.checkpoint import checkpoint

from rematpass import plans

BUDGETS = 1, 0.5, 0.2, 0

afresh = pytest.fixture(autouse=True)(afresh)

# The workspace of custom ops is not known, and the random states that they run again from are kept.
TAKE_MORE = frozenset({"a_checkpoint_region_with_custom_ops_that_draw", "ops_with_effects"})


def options(budget, **more):
    return {"memory_budget": budget, "strict": 1, **more}


@pytest.mark.parametrize(
    ("name", "budget"),
    [(n, b) for n, p in PROGRAMS.items() for b in (BUDGETS if p.make.__module__ == "support.programs" else (0.5, 0))],
)
def test_op_by_op_every_program_equals_eager_mode_bit_for_bit(name, budget):
    seen = run(PROGRAMS[name], "remat_aot_eager", options(budget))
    assert plans()
    assert not differences(seen, reference(name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_recomputing_everything_equals_eager_mode_bit_for_bit(name):
    """Without a cost model, so that what is difficult in a program is always recomputed."""
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
        ("custom_ops_that_draw_random_numbers_unsaid", 0),
        ("dropout", 0),
        ("equal_calls_that_draw", 0),
        ("symbolic_sizes", 0.5),
        ("views_of_all_sorts", 0),
        ("a_checkpoint_region_with_custom_ops_that_draw", 0),
        ("a_checkpoint_region_with_noise_of_many_kinds", 0),
        ("a_mixture_of_experts_with_masks", 0),
        ("ops_with_effects", 0),
        ("parameters_in_bfloat16", 0.5),
        ("rows_overwritten_in_place_by_their_numbers", 1),
        ("rows_overwritten_in_place_by_their_numbers", 0),
    ],
)
def test_under_inductor_a_program_equals_eager_mode_and_takes_the_planned_peak(name, budget, caplog):
    """With ``fallback_random``, Inductor draws the numbers of eager mode, so dropout can be compared too."""
    if name.endswith("noise_of_many_kinds") and torch.__version__ < "2.13":
        pytest.skip("torch 2.11's Inductor alone draws other numbers than eager mode in this program")
    with caplog.at_level("INFO", "rematpass"):
        seen = run(PROGRAMS[name], "remat", options(budget, fallback_random=True, check=1))
    measured = [r for r in caplog.records if ", measured step " in r.getMessage()]
    assert measured
    assert not [r.getMessage() for r in measured if r.levelname == "WARNING" and name not in TAKE_MORE]
    tolerance = 2e-2 if "bfloat16" in name else 1e-5
    assert plans()
    assert not differences(seen, reference(name), tolerance)


@pytest.mark.parametrize("budget", BUDGETS)
def test_an_unread_random_draw_still_advances_the_generator(budget):
    """As in eager mode and under Inductor alone. Op by op, torch drops such a draw before the graph is planned."""

    def forward(x):
        noise = checkpoint(lambda t: F.dropout(t.sin(), 0.3).cos(), x * 1, use_reentrant=False)
        F.dropout(noise.exp(), 0.2)
        return F.dropout(x.tanh(), 0.5)

    def step(function):
        torch.manual_seed(3)
        x = torch.linspace(-1, 1, 35, requires_grad=True)
        function(x).sum().backward()
        return x.grad, torch.get_rng_state()

    expected, state = step(forward)
    seen, after = step(torch.compile(forward, backend="remat", options=options(budget, fallback_random=True)))
    assert plans()
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(after, state)


def test_inductors_random_numbers_are_drawn_once():
    """Backward uses the dropout mask of forward and draws nothing."""

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
def test_the_gradient_through_a_buffer_that_forward_updates(backend):
    """torch's own partitioner gets it wrong; if aot_eager fails here, torch is fixed: update guide/measurements.md."""
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
def test_one_compilation_serves_all_batch_sizes(budget):
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


@pytest.mark.parametrize("options", [{"memory_budget": 1}, {"memory_budget": 0}, {"solver": "recompute_all"}])
def test_effects_happen_in_the_number_and_order_of_eager_mode(options):
    happened = []
    for backend, given in (("", None), ("remat_aot_eager", {"strict": 1, **options})):
        programs_features.NOTED.clear()
        run(PROGRAMS["ops_with_effects"], backend, given)
        happened.append(list(programs_features.NOTED))
    assert happened[0] == happened[1]
    assert len(happened[0]) == 12  # three times in each forward, three times in each backward, in two steps


@pytest.mark.parametrize("budget", BUDGETS)
def test_backward_twice_through_one_forward(budget):
    """``retain_graph`` and several losses, which torch allows if no saved buffer is donated."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Dropout(0.3), nn.LayerNorm(5), nn.Linear(5, 3), nn.Tanh())
    x = torch.randn(7, 3)
    grads = []
    with torch._functorch.config.patch(donated_buffer=False):
        for step in (model, torch.compile(model, backend="remat_aot_eager", options=options(budget))):
            model.zero_grad()
            torch.manual_seed(1)
            out = step(x)
            out.sum().backward(retain_graph=True)
            out.square().sum().backward(retain_graph=True)
            grads.append(
                [
                    *(p.grad.clone() for p in model.parameters()),
                    *torch.autograd.grad(out.exp().sum(), [*model.parameters()]),
                ]
            )
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("budget", BUDGETS)
def test_two_losses_with_separate_backwards(budget):
    """Two outputs, with a backward call for each."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 3)])

    def forward(x):
        h = F.dropout(torch.tanh(model[0](x)), 0.3)
        return model[1](h.exp()).square().sum(), model[2](h.sin()).abs().sum()

    grads = []
    with torch._functorch.config.patch(donated_buffer=False):
        for step in (forward, torch.compile(forward, backend="remat_aot_eager", options=options(budget))):
            model.zero_grad()
            torch.manual_seed(1)
            one, other = step(torch.ones(7, 3))
            one.backward(retain_graph=True)
            other.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("budget", BUDGETS)
def test_flex_attention(budget):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def forward(q, k, v):
        mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cuda")
        out = flex_attention(q.tanh(), k.sin(), v, score_mod=lambda s, b, h, q, k: s + (q - k) * 0.01, block_mask=mask)
        return out.exp().sin()

    torch.manual_seed(0)
    arguments = [torch.randn(2, 2, 128, 32, device="cuda", requires_grad=True) for _ in range(3)]
    expected = torch.autograd.grad(forward(*arguments).sum(), arguments)
    seen = torch.autograd.grad(
        torch.compile(forward, backend="remat", options=options(budget))(*arguments).sum(), arguments
    )
    assert plans()
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dropout", "a_buffer_read_and_then_updated", "hooks_on_tensors_and_modules"])
def test_under_compiled_autograd(name):
    """Compiled autograd traces the planned backward again, with its hooks."""
    backend = torch.compile(backend="remat_aot_eager", options=options(0), fullgraph=True)
    torch.manual_seed(2)
    forward, arguments = PROGRAMS[name].make()
    expected = run(PROGRAMS[name], steps=1)
    torch.manual_seed(3)
    given = [a.detach().clone().requires_grad_(a.requires_grad) for a in arguments]
    with torch._dynamo.compiled_autograd._enable(backend):
        out = backend(forward)(*given)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    grads = {f"gradient of {n}": p.grad for n, p in getattr(forward, "named_parameters", dict)()}
    grads |= {f"step 0: gradient of argument {n}": a.grad for n, a in enumerate(given) if a.requires_grad}
    assert plans()
    assert grads
    for key, grad in grads.items():
        torch.testing.assert_close(grad, expected[key], rtol=0, atol=1e-6)


def test_double_backward_is_refused_with_torchs_message():
    x = torch.randn(3, requires_grad=True)
    y = torch.compile(lambda x: x.sin().exp(), backend="remat_aot_eager", options=options(0))(x)
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        grad.sum().backward()


class DoublesItsGradient(torch.autograd.Function):
    """A backward that overwrites its argument; torch tags none of its ops as backward's."""

    @staticmethod
    def forward(ctx, x):
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        gradient.mul_(2)
        return gradient.clone()


@pytest.mark.parametrize("budget", [1, 0.5, 0])
@pytest.mark.parametrize("backend", ["remat_aot_eager", "remat"])
def test_a_backward_may_overwrite_its_argument(backend, budget):
    def seen(compile_it):
        x, given = torch.linspace(-1, 1, 35).reshape(5, 7).requires_grad_(), torch.full((5, 7), 3.0)
        options = {"memory_budget": budget, "strict": 1}
        function = torch.compile(DoublesItsGradient.apply, backend=backend, options=options) if compile_it else None
        (function or DoublesItsGradient.apply)(x).backward(given)
        return x.grad, given

    for found, expected in zip(seen(True), seen(False), strict=True):
        assert torch.equal(found, expected)
    assert plans()
