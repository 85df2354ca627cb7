"""Records of what was planned: one for each graph, however often it is compiled."""

import gc
import weakref

import pytest
import torch
from support.programs import afresh
from torch import nn

from rematpass import plans
from rematpass.compiler import planned
from rematpass.compiler.planned import listening, records

afresh = pytest.fixture(autouse=True)(afresh)


class TwoGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        x = self.first(x).tanh()
        torch._dynamo.graph_break()
        return self.second(x).tanh()


def train(model, *batches, **compile):
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": 0}, **compile)
    for batch in batches:
        step(torch.ones(batch, 16)).sum().backward()


def test_each_graph_keeps_the_summary_of_its_last_compilation_oldest_first():
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh())
    with listening(lambda record: None):
        train(model, 4, 7, 11, dynamic=False)
    assert [p.graph for p in plans()] == ["graph 0/2"]
    train(TwoGraphs(), 4)
    assert [p.graph for p in plans()] == ["graph 0/2", "graph 1/0", "graph 2/0"]
    train(model, 13, dynamic=False)
    assert [p.graph for p in plans()][-1].startswith("graph 0/")


def test_records_do_not_accumulate_over_resets():
    train(nn.Linear(16, 16), 4)
    (first,) = records()
    gone = weakref.ref(first)
    del first
    for _ in range(3):
        torch._dynamo.reset()
        train(nn.Sequential(nn.Linear(16, 16), nn.Tanh()), 4)
    assert len(records()) == 1
    gc.collect()
    assert gone() is None


def test_all_graphs_of_one_compilation_are_kept():
    """A region that is compiled once, and the graph that calls it."""

    @torch.compiler.nested_compile_region
    def block(x, w):
        return torch.tanh(x @ w)

    def forward(x, w):
        return block(block(x, w), w)

    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(forward, backend="remat_aot_eager", fullgraph=True)
        compiled(torch.ones(3, 5, requires_grad=True), torch.ones(5, 5, requires_grad=True)).sum().backward()
        assert [p.graph for p in plans()] == ["graph 0/0, a region", "graph 0/0"]


def test_a_listener_gets_every_planned_graph_until_its_block_ends():
    found = []
    with listening(found.append):
        train(TwoGraphs(), 4, 7, dynamic=False)
    assert [record.summary.graph for record in found] == ["graph 0/0", "graph 1/0", "graph 0/1", "graph 1/1"]
    train(nn.Linear(16, 16), 4)
    assert len(found) == 4
    assert planned._listeners == []


def test_a_listener_that_raises_ends_the_compilation():
    class Known(BaseException):
        pass

    def stop(record):
        raise Known

    with pytest.raises(Known), listening(stop):
        train(nn.Linear(16, 16), 4)
    assert len(plans()) == 1


def test_clear_forgets_all_records():
    train(nn.Linear(16, 16), 4)
    assert len(plans(clear=True)) == 1
    assert plans() == records() == []
