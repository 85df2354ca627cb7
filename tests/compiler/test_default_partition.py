import torch
from support.reports import report_of
from torch import nn

from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.plan_only import plan_only
from rematpass.compiler.planned import records
from rematpass.config import Config


def layer():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)), torch.randn(8, 16)
    return module, lambda: module(x).sum()


def test_torch_saves_the_arguments_and_results_of_matmuls():
    torch._dynamo.reset()
    [record] = plan_only(*layer(), Config())
    graph = record.graph
    made = {v for v in record.saved_by_torch if graph.producer[v] is not None}
    assert {graph.ops[graph.producer[v]].kind.value for v in made} == {"matmul", "pointwise"}
    assert [graph.values[v].nbytes for v in made] == [8 * 32 * 4] * 2  # of the eight values of that size in forward
    assert {graph.values[v].origin.value for v in record.saved_by_torch - made} == {"static", "input"}


def test_the_comparison_does_not_change_the_plan(tmp_path):
    found = []
    for options in ({}, {"report_dir": tmp_path}):
        torch._dynamo.reset()
        torch.compile(layer()[1], backend=remat_aot_eager, options={"memory_budget": 0.5, **options})()
        found.append(records()[-1])
    without, compared = found
    assert (without.saved_by_torch, compared.saved_by_torch is None) == (None, False)
    assert (without.graph, without.plan) == (compared.graph, compared.plan)


def test_a_report_on_a_graph_from_a_file_has_no_comparison():
    assert "torch" not in " ".join(p.name for p in report_of().others)
