"""Which arguments ops read element by element, and which values lie in memory in the same order."""

import pytest
import torch
from support.programs import afresh, captured

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


def graph_of(forward):
    """The graph of ``forward``, a function of a product of 7 x 5, whose sum is the loss."""
    return captured(lambda x, w: forward(x @ w).sum(), torch.randn(7, 3), torch.randn(3, 5).requires_grad_()).graph


def read(graph, name):
    """The names of the values that op ``name`` reads, and of those that it reads elsewhere."""
    (op,) = [o for o in graph.ops if o.name == name]
    return tuple([graph.values[v].name for v in ids] for ids in (op.reads, op.reads_elsewhere))


def order(graph, name):
    (value,) = [v for v in graph.values if v.name == name]
    return value.order


def test_a_pointwise_op_reads_element_by_element_and_a_reduction_does_not():
    graph = graph_of(lambda h: h.tanh())
    assert read(graph, "tanh") == (["mm"], [])
    assert read(graph, "sum_1") == (["tanh"], ["tanh"])
    assert {v.order for v in graph.values} == {0}


def test_a_transposed_copy_has_another_order_and_transposing_it_back_restores_the_first():
    graph = graph_of(lambda h: (h.t().contiguous() + 1).t().contiguous().tanh())
    assert (order(graph, "mm"), order(graph, "clone"), order(graph, "add")) == (0, 1, 1)
    assert order(graph, "clone_1") == order(graph, "tanh") == 0
    assert read(graph, "clone")[1] == read(graph, "clone_1")[1] == []


def test_a_reshaped_value_keeps_its_order():
    graph = graph_of(lambda h: (h.reshape(5, 7) + 1).reshape(35).tanh())
    assert order(graph, "mm") == order(graph, "add") == order(graph, "tanh") == 0


def test_a_value_that_is_read_in_two_orders_is_read_elsewhere():
    graph = captured(
        lambda x, w: (lambda h: h + h.t())(x @ w).sum(), torch.randn(5, 3), torch.randn(3, 5).requires_grad_()
    ).graph
    assert read(graph, "add") == (["mm"], ["mm"])


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda h: h[1:] * 2, "mul"),
        (lambda h: h.gather(1, torch.zeros(7, 5, dtype=torch.int64)), "gather"),
        (lambda h: torch.cat([h, h]), "cat"),
    ],
    ids=["a slice", "a gather", "a concatenation"],
)
def test_what_takes_other_elements_reads_elsewhere(forward, name):
    assert "mm" in read(graph_of(forward), name)[1]


def test_an_argument_that_is_broadcast_is_read_element_by_element():
    """It is smaller than the result, which cannot be written over it."""
    graph = graph_of(lambda h: h - h.amax(1, keepdim=True))
    assert read(graph, "sub") == (["mm", "amax"], [])


def test_only_the_first_argument_of_a_slice_scatter_is_read_element_by_element():
    graph = graph_of(lambda h: torch.slice_scatter(h, h[1:3] * 2, 0, 0, 2))
    assert read(graph, "slice_scatter") == (["mm", "mul"], ["mul"])


def test_inductor_does_not_repeat_exponentials_on_a_cpu():
    graph = graph_of(lambda h: h.exp() + h.sin() + h.sigmoid())
    assert {op.name for op in graph.ops if op.slow_to_repeat} == {"exp", "sigmoid"}


def test_what_is_viewed_by_strides_is_always_written():
    graph = graph_of(lambda h: torch.as_strided(h * 2, (5, 7), (1, 5)).tanh())
    assert {op.name: op.always_written for op in graph.ops if op.name in ("mul", "tanh")} == {
        "mul": True,
        "tanh": False,
    }
