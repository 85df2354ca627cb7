"""Values that are saved whatever the plan: what one region passes to another, and outputs with a backward hook."""

import pytest
import torch
from support.programs import afresh
from torch.utils.checkpoint import checkpoint

from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planned import records
from rematpass.core.op import Origin

afresh = pytest.fixture(autouse=True)(afresh)


def saved_by(forward, budget):
    options = {"memory_budget": budget, "strict": 1}
    torch.compile(forward, backend="remat_aot_eager", options=options)(
        torch.ones(5, 7, requires_grad=True)
    ).sum().backward()
    (record,) = records()
    values = [record.graph.values[v] for v in record.plan.saved]
    return [v.name for v in values if v.origin is Origin.OP]


@pytest.mark.parametrize("budget", [1, 0.5, 0])
def test_what_one_region_passes_to_the_next_is_saved(budget):
    def forward(x):
        first = checkpoint(lambda t: t.sin().exp(), x, use_reentrant=False)
        return checkpoint(lambda t: t.cos().tanh(), first, use_reentrant=False)

    assert saved_by(forward, budget) == ["exp"]


@pytest.mark.parametrize("budget", [1, 0.5, 0])
@pytest.mark.parametrize(("hooked", "saved"), [("", []), ("exp", ["exp"]), ("sin", [])])
def test_a_regions_output_with_a_backward_hook_is_saved(hooked, saved, budget, monkeypatch):
    """What the hook does, its region may need to run again (FSDP's gathering of weights), so it must not wait for it.

    Dynamo notes such hooks on nodes under compiled autograd; a value that its own region reads is no output of it.
    """
    call = RematPartitioner.__call__

    def with_hook(self, joint, *args, **kwargs):
        for node in joint.graph.nodes:
            if node.name == hooked:
                node.meta["has_backward_hook"] = True
        return call(self, joint, *args, **kwargs)

    monkeypatch.setattr(RematPartitioner, "__call__", with_hook)

    def forward(x):
        return checkpoint(lambda t: t.sin().exp(), x, use_reentrant=False).cos()

    assert saved_by(forward, budget) == saved
