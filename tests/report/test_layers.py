import dataclasses

import pytest
from support.graphs import three_layers

from rematpass.core.cost import Costs
from rematpass.core.simulate import simulate
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.report.layers import NO_MODULE, ancestors, clean, totals
from rematpass.report.occupancy import occupancy
from rematpass.report.reasons import accounts

COSTS = Costs(run=(2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0), keep=(0.0,) * 10)
MODULES = ("net.0", "[0].net.1", "net.1.norm", "net.1.norm", "net.1", "net.0", "")


def rows(saved):
    graph = three_layers()
    ops = [dataclasses.replace(op, module=m) for op, m in zip(graph.ops, MODULES, strict=True)]
    graph = dataclasses.replace(graph, ops=tuple(ops))
    plan = schedule_late(graph, saved, "test")
    timeline = simulate(graph, plan, COSTS, fuse=False)
    told, who = accounts(graph, plan, timeline, COSTS), occupancy(graph, plan, timeline)
    found = totals(graph, plan, COSTS, told, who, timeline.live.index(timeline.peak))
    assert found[0].path == ""
    return {m.path: m for m in found}, timeline


def test_modules_are_in_depth_first_order():
    assert list(rows([2])[0]) == ["", "net", "net.0", "net.1", "net.1.norm", NO_MODULE]


def test_totals_include_inner_modules():
    found, timeline = rows([2])
    assert [found[p].ops for p in found] == [7, 6, 2, 4, 2, 1]
    assert (found["net.0"].saved_nbytes, found["net.1"].saved_nbytes, found["net"].saved_nbytes) == (7, 0, 7)
    assert (found["net.1"].recomputed_nbytes, found["net.1"].recompute_seconds) == (11, 3.0)
    assert found["net.1.norm"].forward_seconds == 5.0
    assert found["net"].forward_seconds == 2.0 + 3.0 + 5.0
    assert {p: m.gradient_nbytes for p, m in found.items()} == {
        **dict.fromkeys(("", "net", "net.1"), 19),
        "": 48,
        "net.0": 0,
        "net.1.norm": 0,
        NO_MODULE: 29,
    }
    assert found[""].peak_nbytes == timeline.peak


def test_tangents_and_inputs_belong_to_no_module():
    found, _ = rows([0, 2])
    assert found[""].saved_nbytes == 7  # the input belongs to the caller
    assert found[""].peak_nbytes - found["net"].peak_nbytes == found[NO_MODULE].peak_nbytes


@pytest.mark.parametrize(
    ("module", "path"),
    [("[0].model.norm", "model.norm"), ("_orig_mod.layers.3", "layers.3"), ("layers.3", "layers.3"), ("[0]", "")],
)
def test_the_prefix_of_dynamo_is_removed(module, path):
    assert clean(module) == path


def test_ancestors_are_listed_from_the_inside():
    assert list(ancestors("a.b.c")) == ["a.b.c", "a.b", "a", ""]
    assert list(ancestors(NO_MODULE)) == [NO_MODULE, ""]
    assert list(ancestors("")) == [""]
