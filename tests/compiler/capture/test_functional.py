"""Graphs that read what they have overwritten are not planned, and their gradients are right."""

import logging

import pytest
import torch
from support.programs import afresh
from torch import fx

from rematpass import plans
from rematpass.compiler import _torch
from rematpass.compiler.capture.functional import check_functional, not_functional
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.config import Config
from rematpass.errors import CaptureError

afresh = pytest.fixture(autouse=True)(afresh)


def buffer_read_after_its_update(x, buffer):
    with torch.no_grad():
        buffer.mul_(3)
    return (x * buffer).sin() * buffer


def buffer_filled_by_copy(x, buffer):
    with torch.no_grad():
        buffer.copy_(x.detach() * 3)
    return x * buffer


def part_of_a_buffer(x, buffer):
    with torch.no_grad():
        buffer[0].mul_(3)
    return (x * buffer).sin() * buffer


def part_of_an_intermediate(x, buffer):
    y = x.sin().clone()
    y[0].mul_(3)
    return (y * y).exp() * buffer


def a_storage_that_is_allocated_again(x, buffer):
    torch.ops.inductor.resize_storage_bytes_(buffer, 48)
    with torch.no_grad():
        buffer.fill_(3.0)
    return (x * buffer).sin() * buffer


def an_equal_call_after_an_update(x, buffer):
    first = x.sin()
    first.mul_(2)
    return first * x.sin() * buffer


NOT_FUNCTIONAL = [
    buffer_read_after_its_update,
    buffer_filled_by_copy,
    part_of_a_buffer,
    part_of_an_intermediate,
    a_storage_that_is_allocated_again,
    an_equal_call_after_an_update,
]


def trained(step):
    x = torch.linspace(-1, 1, 12).view(3, 4).requires_grad_()
    buffer = torch.full((3, 4), 2.0)
    y = step(x, buffer)
    y.backward(torch.linspace(1, 2, 12).view(3, 4))
    return y.detach(), x.grad, buffer


def backend(budget, **more):
    """``remat_aot_eager`` as a partition function, since the backend itself always makes graphs functional."""
    partitioner = RematPartitioner(Config.read({"memory_budget": budget}, {}), fuse=False)
    return _torch.aot_autograd(
        fw_compiler=_torch.boxed_nop, partition_fn=partitioner, keep_inference_input_mutations=True, **more
    )


@pytest.mark.parametrize("budget", [1, 0])
@pytest.mark.parametrize("step", NOT_FUNCTIONAL, ids=lambda f: f.__name__)
def test_without_functionalization_a_step_equals_eager_mode(step, budget, caplog):
    expected = trained(step)
    with caplog.at_level(logging.WARNING, "rematpass"):
        seen = trained(torch.compile(step, backend=backend(budget, disable_functionalization=True)))
    assert all(map(torch.equal, seen, expected))
    assert not plans()
    (message,) = (r.getMessage() for r in caplog.records)
    assert message.startswith("planning failed (CaptureError: the graph is not functional: %")


@pytest.mark.parametrize("step", NOT_FUNCTIONAL, ids=lambda f: f.__name__)
def test_a_functional_graph_of_the_same_step_is_planned(step):
    expected = trained(step)
    seen = trained(torch.compile(step, backend=backend(0)))
    assert all(map(torch.equal, seen, expected))
    assert plans()


def test_a_graph_that_only_writes_its_inputs_at_the_end_is_functional():
    graph = fx.Graph()
    buffer = graph.placeholder("primals_1")
    buffer.meta["val"] = torch.ones(3)
    sine = graph.call_function(torch.ops.aten.sin.default, (buffer,))
    copied = graph.call_function(torch.ops.aten.copy_.default, (buffer, sine))
    graph.output((sine,))
    check_functional(graph)
    late = graph.call_function(torch.ops.aten.cos.default, (copied,))
    assert not_functional(graph) is copied
    with pytest.raises(CaptureError, match=r"the graph is not functional: %copy__default"):
        check_functional(graph)
    graph.erase_node(late)
    with graph.inserting_after(copied):
        late = graph.call_function(torch.ops.aten.cos.default, (buffer,))
    assert not_functional(graph) is None  # in backward, it means the old version
    late.meta["partitioner_tag"] = "is_forward"
    assert not_functional(graph) is late
