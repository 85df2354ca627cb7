"""What Inductor hands to libraries: bytes inside of calls, and views that keep their base alive."""

import pytest
import torch
import torch.nn.functional as F
from support.programs import afresh
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass import plans
from rematpass.compiler.devices import record
from rematpass.compiler.devices.allocator_trace import live_bytes
from rematpass.compiler.inductor.dry_run import dry_run
from rematpass.lab.measure.memory_and_time import measure_memory

afresh = pytest.fixture(autouse=True)(afresh)

X, Z = torch.randn(96, 64), torch.randn(96, 64, dtype=torch.complex64)
ROWS = torch.zeros(96, 64, dtype=torch.int64)
CALLS = {
    "transform over two dimensions": lambda: (lambda z: torch.fft.irfft2(z, s=(96, 126)), Z),
    "sort": lambda: (lambda x: torch.sort(x.flatten(), stable=True).values, X),
    "median": lambda: (lambda x: x.median(1).values, X),
    "k-th value": lambda: (lambda x: x.kthvalue(3, dim=0).values, X),
    "sums into rows": lambda: (lambda x: x.scatter_add(0, ROWS.to(x.device), x), X),
    "product of a conjugate": lambda: (lambda z: z[None] @ z[None].mT.conj(), Z),
    "multiple of a conjugate": lambda: (lambda z: z * z.conj(), Z),
    "reshape that copies": lambda: (lambda z: (z.T.reshape(-1) * 2).abs(), Z),
    "view that is returned": lambda: (lambda z: (z * 2).view(-1), Z),
}


def eager_peak(f, x):
    with torch.no_grad(), record(torch.device("cpu")) as recording:
        result = f(x)
    assert result is not None
    return max(m.nbytes for m in live_bytes(recording.events, set()))


@pytest.mark.parametrize("name", CALLS)
def test_the_peak_of_a_call_includes_what_it_takes_inside(name):
    """Eager mode makes the same calls, so it takes as much."""
    f, x = CALLS[name]()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module = make_fx(lambda x: (f(x),), tracing_mode="real")(mode.from_tensor(x))
    for node in module.graph.find_nodes(op="placeholder"):
        node.meta["val"] = mode.from_tensor(x)
    found = dry_run(module, [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")])
    assert not found.unknown
    assert found.peak.nbytes == eager_peak(f, x)


def test_a_returned_view_counts_with_the_bytes_of_its_base():
    f, x = CALLS["view that is returned"]()
    module = make_fx(lambda x: (f(x),), tracing_mode="fake")(x)
    found = dry_run(module, [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")])
    assert [nbytes for _, nbytes in found.storages] == [x.nbytes]


class Spectral(nn.Module):
    """The lowest frequencies of each channel, mixed by a complex weight."""

    def __init__(self, channels, modes):
        super().__init__()
        self.modes = modes
        self.weight = nn.Parameter(torch.randn(channels, channels, modes, modes, dtype=torch.cfloat) / channels)

    def forward(self, x):
        low = torch.fft.rfft2(x)[..., : self.modes, : self.modes]
        return torch.fft.irfft2(torch.einsum("bixy,ioxy->boxy", low, self.weight), s=x.shape[-2:])


class FourierOperator(nn.Module):
    def __init__(self, point):
        super().__init__()
        self.lift, self.out = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 1, 1)
        self.spectral = nn.ModuleList(Spectral(12, 6) for _ in range(3))
        self.point = nn.ModuleList(point() for _ in range(3))

    def forward(self, x):
        x = self.lift(x)
        for spectral, point in zip(self.spectral, self.point, strict=True):
            x = F.gelu(spectral(x) + point(x))
        return self.out(x).square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 0.3, 1])
def test_a_fourier_neural_operator_takes_what_is_planned(budget):
    torch.manual_seed(0)
    model, x = FourierOperator(lambda: nn.Conv2d(12, 12, 1)), torch.randn(4, 3, 48, 48)
    expected = torch.autograd.grad(model(x), list(model.parameters()))
    model.compile(backend="remat", options={"memory_budget": budget, "strict": 1})
    measured = measure_memory(lambda: model(x), list(model.parameters())).peak
    (summary,) = plans(clear=True)
    assert summary.exact
    assert abs(measured - summary.peak_without_outputs) <= 1024
    for found, right in zip(torch.autograd.grad(model(x), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-5)
