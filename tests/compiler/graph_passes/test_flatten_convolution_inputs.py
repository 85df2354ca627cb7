import pytest
import torch
from support.programs import afresh, captured
from torch import nn

from rematpass.compiler.emit import emit, step_facts
from rematpass.compiler.graph_passes.flatten_convolution_inputs import flatten_convolution_inputs
from rematpass.core.solve.schedule_late import schedule_late

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


def modules():
    """Two convolutions and a product; forward saves all that backward reads, and so all weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Conv2d(5, 7, 3), nn.Flatten(), nn.Linear(7 * 4 * 4, 2))
    found = captured(model, torch.randn(2, 3, 8, 8))
    return found, *emit(found, schedule_late(found.graph, found.graph.backward_reads, "save_all"))


def saved(found, fwd):
    return fwd.graph.find_nodes(op="output")[0].args[0][len(found.fwd_outputs) :]


def test_saved_inputs_of_convolutions_are_flat_and_others_are_not():
    found, fwd, bwd = modules()
    before = {n.name: tuple(n.meta["val"].shape) for n in saved(found, fwd)}
    flatten_convolution_inputs(fwd, bwd, step_facts(found))
    after = {n.name: tuple(n.meta["val"].shape) for n in saved(found, fwd)}
    flat = {name: shape for name, shape in before.items() if name.startswith("primals") and len(shape) == 4}
    assert len(flat) == 3  # both weights and the input of the first convolution
    expected = {f"{name}_flat": (torch.Size(shape).numel(),) for name, shape in flat.items()}
    assert after == {**{name: shape for name, shape in before.items() if name not in flat}, **expected}
    placeholders = [n.name for n in bwd.graph.find_nodes(op="placeholder")]
    assert placeholders[: len(after)] == list(after)


def test_the_order_of_what_is_saved_and_the_gradients_stay():
    found, fwd, bwd = modules()
    names = [n.name for n in saved(found, fwd)]
    inputs = [torch.randn(n.meta["val"].shape) for n in fwd.graph.find_nodes(op="placeholder")]
    count = len(found.fwd_outputs)

    def step():
        results = fwd(*inputs)
        return results[:count], bwd(*results[count:], torch.ones(2, 2))

    (expected,), gradients = step()
    flatten_convolution_inputs(fwd, bwd, step_facts(found))
    (output,), after = step()
    assert [n.name.removesuffix("_flat") for n in saved(found, fwd)] == names
    assert torch.equal(output, expected)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(after, gradients, strict=True))


def test_without_convolutions_nothing_changes():
    found = captured(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), torch.randn(7, 3))
    fwd, bwd = emit(found, schedule_late(found.graph, found.graph.backward_reads, "save_all"))
    code = fwd.code, bwd.code
    flatten_convolution_inputs(fwd, bwd, step_facts(found))
    assert (fwd.code, bwd.code) == code
