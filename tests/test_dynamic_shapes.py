"""Symbolic sizes: one compilation is right for all sizes, and the peak is a formula of them."""

import pytest
import torch
import torch.nn.functional as F
from support.programs import afresh, captured
from torch import nn

from rematpass import plans
from rematpass.compiler.planned import listening
from rematpass.report.summary import total
from rematpass.units import format_bytes

afresh = pytest.fixture(autouse=True)(afresh)
BUDGETS = 1, 0.5, 0.2, 0


class Encoder(nn.Module):
    """Attention over a dynamic number of tokens, in batches of a dynamic size."""

    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.norm, self.mlp = nn.LayerNorm(8), nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.project(self.norm(x)).chunk(3, -1))
        weights = torch.softmax(q @ k.transpose(-1, -2) / x.shape[1], -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        positions = torch.arange(x.shape[1]).float().sin()[:, None]
        return (x + self.mlp(x * positions)).sum(1) / x.shape[0]


def gradients(model, step, x):
    model.zero_grad()
    x = x.clone().requires_grad_()
    (step(x).square() * torch.arange(8.0)).sum().backward()
    return [x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("budget", BUDGETS)
def test_one_compilation_is_right_for_all_batches_and_lengths(budget):
    torch.manual_seed(0)
    model = Encoder()
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": budget, "strict": 1}, dynamic=True)
    for batch, length in ((3, 5), (7, 11), (2, 13), (5, 4)):
        x = torch.randn(batch, length, 8)
        for mine, theirs in zip(gradients(model, step, x), gradients(model, model, x), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    (summary,) = plans()
    assert sorted(n for _, n in summary.sizes) == [3, 5]


def test_sizes_that_change_become_symbols_automatically():
    """Without ``dynamic=True``, Dynamo compiles twice, and not a third time."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": 0, "strict": 1})
    found = []
    with listening(lambda record: found.append(record.summary)):
        for batch in (4, 7, 11, 13):
            step(torch.ones(batch, 3)).sum().backward()
    assert [len(p.sizes) for p in found] == [0, 1]
    assert found[0].peak_formula == ""
    assert plans() == found[1:]


def planned(batch, dynamic, **options):
    torch._dynamo.reset()
    plans(clear=True)
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(6)))
    step = torch.compile(model, backend="remat_aot_eager", options={"strict": 1, **options}, dynamic=dynamic)
    step(torch.ones(batch, 8)).sum().backward()
    return plans()[-1]


@pytest.mark.parametrize("options", [{"memory_budget": 1}, {"solver": "chen_sqrt"}, {"solver": "recompute_all"}])
def test_the_formula_of_the_peak_holds_for_other_sizes(options):
    """Evaluated for another batch, it is the peak of a compilation for that batch alone."""
    symbolic = planned(97, True, **options)
    ((symbol, hint),) = symbolic.sizes
    assert hint == 97
    assert eval(symbolic.peak_formula, {symbol: 97}) == symbolic.planned_peak
    other = planned(501, False, **options)
    assert eval(symbolic.peak_formula, {symbol: 501}) == other.planned_peak


@pytest.mark.parametrize(("backend", "calls"), [("remat_aot_eager", 1), ("remat", 1), ("remat_aot_eager", 3)])
def test_sizes_that_exceed_the_budget_are_warned_of_once(backend, calls, caplog):
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    options = {"memory_budget": "300KiB", "calls": calls, "strict": 1}
    step = torch.compile(model, backend=backend, options=options, dynamic=True)
    warned = []
    for batch in (128, 96, 1024, 2048):
        step(torch.ones(batch, 64)).sum().backward()
        warned.append([r.getMessage() for r in caplog.records if "over the budget" in r.getMessage()])
    assert [len(found) for found in warned] == [0, 0, 1, 1]
    (plan,) = plans()
    ((symbol, hint),) = plan.sizes
    needed = plan.planned_peak + eval(plan.peak_formula, {symbol: 1024}) - eval(plan.peak_formula, {symbol: hint})
    assert (plan.nbytes_of_others > 0) is (calls > 1)
    needed += plan.nbytes_of_others * (1024 // 128 - 1)
    assert warned[-1][0].startswith(
        f"graph 0/0: with the sizes of this step ({symbol}=1024) it takes {format_bytes(needed)}, "
        f"{format_bytes(needed - 300 * 1024)} over the budget of 300.00 KiB. Let the first step have the largest sizes"
    )


def test_a_fraction_refers_to_the_sizes_planned_for(caplog):
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": 0, "strict": 1}, dynamic=True)
    for batch in (128, 1024):
        step(torch.ones(batch, 64)).sum().backward()
    assert plans()[0].sizes
    assert not [r for r in caplog.records if "over the budget" in r.getMessage()]


def test_a_measured_step_is_compared_with_the_peak_at_its_own_sizes(caplog, monkeypatch):
    monkeypatch.setenv("REMAT_CHECK", "1")
    caplog.set_level("INFO", logger="rematpass")
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": 1, "strict": 1}, dynamic=True)
    for batch in (128, 1024, 512):
        step(torch.ones(batch, 64)).sum().backward()
    told = [r.getMessage() for r in caplog.records if "measured step" in r.getMessage()]
    assert len(told) == 2
    (plan,) = plans()
    ((symbol, _),) = plan.sizes
    for message, batch in zip(told, (1024, 512), strict=True):
        assert message.endswith(f"within the {format_bytes(eval(plan.peak_formula, {symbol: batch}))} planned")


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (["20*s77", "140", "4*s77", "8"], "24*s77 + 148"),
        (["4*s0*s1", "8*s0*s1", "4*s0"], "4*s0 + 12*s0*s1"),
        (["4*s0**2", "4*s0**2"], "8*s0**2"),
        (["4*((s0//2))", "4*((s0//2))", "3"], "2*(4*((s0//2))) + 3"),
        (["s0", "s0", "0"], "2*s0"),
        (["4*s0 + 8"], "(4*s0 + 8)"),
        ([], "0"),
    ],
)
def test_formulas_are_summed(terms, expected):
    assert total(terms) == expected
    sizes = {"s0": 12, "s1": 5, "s77": 7}
    assert eval(total(terms), dict(sizes)) == sum(eval(t, dict(sizes)) for t in terms)


# ---- unbacked symbols


@pytest.fixture
def data_dependent():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        yield


@pytest.mark.usefixtures("data_dependent")
def test_an_unbacked_size_is_assumed_to_be_at_its_maximum():
    def forward(x, w):
        chosen = x[x.sum(1) > 0]
        return torch.tanh(chosen @ w).exp().sum()

    graph = captured(forward, torch.randn(13, 3), torch.randn(3, 5, requires_grad=True), fullgraph=True).graph
    assert graph.hints == (("u0", 13),)
    (product,) = [v for v in graph.values if v.name == "mm"]
    assert (product.nbytes, product.nbytes_expr) == (13 * 5 * 4, "20*u0")


@pytest.mark.usefixtures("data_dependent")
@pytest.mark.parametrize("budget", BUDGETS)
def test_one_compilation_serves_all_data_dependent_sizes(budget):
    """Few rows, all rows, no rows; a size from a computed number; symbolic and unbacked sizes in one graph."""

    def forward(x, w):
        h = torch.tanh(x @ w)
        chosen = h[h.sum(1) > 0].exp()
        count = torch.clamp(h.sum().abs(), 2, 6).long().item()
        torch._check(count >= 2)
        torch._check(count <= 6)
        padded = F.pad(chosen.sin().sum(0), (0, count)).cos()
        return padded.sum() * h.exp().mean() + chosen.cos().sum() / x.shape[0], chosen

    options = {"memory_budget": budget, "strict": 1}
    step = torch.compile(forward, backend="remat_aot_eager", options=options, fullgraph=True, dynamic=True)
    w = torch.randn(3, 5, requires_grad=True)
    for x in (torch.randn(7, 3), torch.ones(11, 3), -torch.ones(11, 3), torch.randn(5, 3)):
        grads = []
        for function in (forward, step):
            loss, chosen = function(x, w)
            grads.append((chosen.detach(), *torch.autograd.grad(loss + chosen.square().sum(), w)))
        assert all(map(torch.equal, *grads))
    assert len(plans()) == 1
