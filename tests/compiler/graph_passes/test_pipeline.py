"""The order of the passes, and that none runs after the dry run."""

import pytest
import torch
from support.programs import afresh
from torch import fx, nn

from rematpass.compiler import select_plan
from rematpass.compiler.graph_passes import pipeline
from rematpass.compiler.graph_passes.clone_mutated_inputs import clone_mutated_inputs, old_versions
from rematpass.compiler.graph_passes.drop_stray_ops import drop_stray_ops
from rematpass.compiler.graph_passes.pipeline import JOINT_PASSES, STEP_PASSES, StepPass, rewrite_step
from rematpass.compiler.graph_passes.step_facts import StepFacts
from rematpass.compiler.partitioner import RematPartitioner

afresh = pytest.fixture(autouse=True)(afresh)


def test_the_passes_run_in_this_order():
    assert [run.__name__ for run in JOINT_PASSES] == [
        "eliminate_common_subexpressions",
        "force_saves",
        "infer_subgraph_results",
        "dealias_subgraph_outputs",
        "clone_mutated_inputs",
    ]
    assert [(p.run.__name__, p.if_fused) for p in STEP_PASSES] == [
        ("drop_stray_ops", False),
        ("thread_random_states", False),
        ("flatten_convolution_inputs", True),
        ("avoid_addmm", True),
        ("offload", False),
    ]


@pytest.mark.parametrize("fuse", [False, True])
def test_passes_for_a_fusing_compiler_run_only_for_one(fuse, monkeypatch):
    ran = []
    passes = [StepPass(lambda *_, name=p.run.__name__: ran.append(name), p.if_fused) for p in STEP_PASSES]
    monkeypatch.setattr(pipeline, "STEP_PASSES", passes)
    rewrite_step(None, None, None, fuse=fuse)
    assert ran == [p.run.__name__ for p in STEP_PASSES if fuse or not p.if_fused]


def test_inductor_compiles_the_modules_of_its_dry_run(monkeypatch):
    """The code of the modules is the same when they are dry-run and when they are handed to Inductor."""
    asked, returned = [], []
    dry_run = select_plan.dry_run_step

    def watched(fwd, bwd, **more):
        asked.append((fwd.code, bwd.code))
        return dry_run(fwd, bwd, **more)

    monkeypatch.setattr(select_plan, "dry_run_step", watched)
    call = RematPartitioner.__call__

    def partition(self, *args, **kwargs):
        modules = call(self, *args, **kwargs)
        returned.append(tuple(m.code for m in modules))
        return modules

    monkeypatch.setattr(RematPartitioner, "__call__", partition)
    model = nn.Sequential(nn.Conv1d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(5 * 6, 2))
    torch.compile(model, backend="remat", options={"solver": "recompute_all", "strict": 1})(
        torch.randn(2, 3, 8)
    ).sum().backward()
    assert returned[0] in asked
    assert "primals" in returned[0][1]
    assert "_flat" in returned[0][1]


def test_each_overwritten_input_gets_one_clone_for_its_readers():
    graph = fx.Graph()
    buffer = graph.placeholder("primals_1")
    buffer.meta["val"] = torch.ones(3)
    sine = graph.call_function(torch.ops.aten.sin.default, (buffer,))
    graph.call_function(torch.ops.aten.copy_.default, (buffer, sine))
    graph.output((sine,))
    module = fx.GraphModule({}, graph)
    clone_mutated_inputs(module)
    ((clone, original),) = old_versions(module).items()
    assert original is buffer
    assert sine.args == (clone,)


def test_unread_ops_that_are_not_backwards_own_are_dropped_from_backward():
    """Extraction leaves random ops without arguments in backward, since they look impure."""
    graph = fx.Graph()
    tangent = graph.placeholder("tangents_1")
    graph.call_function(torch.ops.aten.rand.default, ([5],))
    gradient = graph.call_function(torch.ops.aten.sin.default, (tangent,))
    own = graph.call_function(torch.ops.aten.copy_.default, (tangent, gradient))
    own.meta["partitioner_tag"] = "is_backward"
    graph.output((gradient,))
    bwd = fx.GraphModule({}, graph)
    drop_stray_ops(bwd, bwd, StepFacts(1))
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [gradient.target, own.target]
    assert "rand" not in bwd.code
