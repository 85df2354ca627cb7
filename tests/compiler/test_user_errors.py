import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from rematpass import BudgetInfeasible
from rematpass.compiler.user_errors import short_traceback

SCRIPT = """
import torch
class Net(torch.nn.Sequential):  # Dynamo does not compile calls of torch's own classes
    def forward(self, x):
        return super().forward(x)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
{wrap}
step(torch.ones(65536, 64)).sum().backward()
"""


def run(wrap, **environment):
    environment = {
        **os.environ,
        "REMAT_MEMORY_BUDGET": "1MiB",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
        **environment,
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{wrap}", wrap)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1
    lines = ran.stderr.splitlines()
    return lines[max(i for i, line in enumerate(lines) if line.startswith("Traceback")) :], lines


@pytest.mark.parametrize(
    "wrap",
    [
        'step = torch.compile(model, backend="remat_aot_eager")',
        'step = torch.compile(model, backend="remat")',
        "import rematpass; rematpass.enable(); step = torch.compile(model)",
        'step = Net(model); step.compile(backend="remat")',
    ],
    ids=["remat_aot_eager", "remat", "enable", "Module.compile"],
)
def test_the_traceback_of_an_infeasible_budget_is_short(wrap):
    """It has the user's call, torch's wrappers around it, and the message; none of the frames of the compiler."""
    last, lines = run(wrap)
    assert sum(line.startswith("Traceback") for line in lines) == 1
    assert len(last) <= 35
    frames = [line for line in last if line.startswith("  File ")]
    assert len(frames) <= 7
    assert not any("partitioner" in line or "aot_autograd" in line for line in frames)
    assert any(line.startswith("BudgetInfeasible: graph 0/0: no plan stays under 1.00 MiB; ") for line in last)


def test_the_whole_traceback_is_shown_when_dynamo_is_verbose():
    last, _ = run('step = torch.compile(model, backend="remat_aot_eager")', TORCHDYNAMO_VERBOSE="1")
    assert any("partitioner" in line for line in last)


def test_outside_of_dynamo_the_error_is_raised_as_it_is():
    error = BudgetInfeasible("no plan", budget=1, floor=2)
    with pytest.raises(BudgetInfeasible) as caught, short_traceback("remat"):
        raise error
    assert caught.value is error


def test_the_error_is_the_inner_exception():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64))
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": "1MiB"})
    with pytest.raises(BackendCompilerFailed) as caught:
        step(torch.ones(65536, 64))
    assert isinstance(caught.value.inner_exception, BudgetInfeasible)
    assert caught.value.__suppress_context__
