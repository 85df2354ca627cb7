import psutil
import pytest
import torch

import rematpass
from rematpass.compiler.auto_budget import ROUNDING, auto_budget, free_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "parameters", "reserve", "nbytes"),
    [
        (16 * GIB, GIB, None, 13568 << 20),  # 14 GiB after Adam's two moments, less 5%, in steps of 256 MiB
        (16 * GIB, GIB, 0, 15360 << 20),
        (16 * GIB, GIB, 6 * GIB, 9728 << 20),
        (GIB, GIB, None, 0),
    ],
)
def test_the_budget_is_what_the_optimizer_leaves_less_5_percent(free, parameters, reserve, nbytes):
    assert auto_budget(free, parameters, reserve) == nbytes
    assert nbytes % ROUNDING == 0


def test_free_bytes_are_rounded_down(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3 * ROUNDING + 17}))
    assert free_bytes(torch.device("cpu")) == 3 * ROUNDING


def test_auto_plans_for_the_free_bytes(monkeypatch):
    monkeypatch.setattr("rematpass.compiler.planner.free_bytes", lambda device: GIB)
    layer = torch.nn.Linear(3, 5)
    options = {"memory_budget": "auto", "auto_reserve": "512MiB", "strict": 1}
    torch._dynamo.reset()
    torch.compile(layer, backend="remat_aot_eager", options=options)(torch.ones(7, 3)).tanh().sum().backward()
    assert rematpass.plans(clear=True)[-1].budget_nbytes == 256 << 20
