"""Custom ops run once, unless the user declares them to be pure."""

import pytest
import torch
from support.programs import afresh
from torch import nn

from rematpass import plans
from rematpass.config import Config
from rematpass.errors import ConfigError
from rematpass.lab.measure.memory_and_time import measure_memory

afresh = pytest.fixture(autouse=True)(afresh)
CALLS = []


@torch.library.custom_op("rematpass_pure::widened", mutates_args=())
def widened(x: torch.Tensor) -> torch.Tensor:
    """Eight times as wide, with noise, so that another run is seen by its numbers and by ``CALLS``."""
    CALLS.append(x.shape)
    return torch.cat([x + torch.rand_like(x) for _ in range(8)], 1)


widened.register_fake(lambda x: x.new_empty(x.shape[0], 8 * x.shape[1]))
widened.register_autograd(lambda ctx, gradient: gradient.unflatten(1, (8, -1)).sum(1))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
        self.down = nn.ModuleList(nn.Linear(256, 32) for _ in range(4))

    def forward(self, x):
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(widened(up(x)).tanh())
        return x.square().mean()


def planned(**options):
    """The summary, the measured peak, how often the op runs in a step, and the gradients, at the lowest budget."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model, x = Layers(), torch.randn(256, 32)
    model.compile(backend="remat_aot_eager", options={"memory_budget": 0, **options})
    measured = measure_memory(lambda: model(x), list(model.parameters())).peak
    CALLS.clear()
    torch.manual_seed(1)
    model(x).backward()
    return plans(clear=True)[0], measured, len(CALLS), [p.grad for p in model.parameters()]


def test_a_declared_op_runs_again_with_the_same_numbers_and_the_floor_falls():
    kept, peak_kept, calls_kept, expected = planned()
    free, peak_free, calls_free, found = planned(pure_ops="somebody::else, rematpass_pure::*")
    ((why, nbytes),) = kept.kept
    assert (calls_kept, nbytes) == (4, 4 * 256 * 256 * 4)
    assert "REMAT_PURE_OPS" in why
    assert f"(forbidden to recompute: 1.00 MiB: {why})" in kept.line()
    assert (calls_free > 4, free.kept) == (True, ())
    assert peak_free < peak_kept - 256 * 256 * 4
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right)


def test_other_ops_stay_undeclared():
    assert planned(pure_ops="somebody::*")[2] == 4


def test_names_are_checked():
    assert Config.read({"pure_ops": "a::b, c::*,"}, {}).pure_ops == ("a::b", "c::*")
    with pytest.raises(ConfigError, match="'scan' has no namespace, as in mylib::scan"):
        Config.read({"pure_ops": "scan"}, {})
    with pytest.raises(ConfigError, match="a value of type int is not a string"):
        Config.read({"pure_ops": 1}, {})
