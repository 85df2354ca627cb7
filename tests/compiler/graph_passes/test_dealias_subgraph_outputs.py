"""A region compiled once returns its own arguments; the caller reads its own copies of them."""

import operator

import pytest
import torch
import torch.nn.functional as F
from support.programs import Model, Program, _randn, afresh, all_captured, differences, run
from torch import nn

from rematpass.compiler.capture.joint_graph import capture
from rematpass.core.op import Side

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


@torch.compiler.nested_compile_region
def block(x, w):
    return torch.tanh(x @ w)


def forward(x, w):
    return torch.tanh(block(block(x, w).sin(), w) @ w)


def arguments():
    return torch.randn(3, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)


def test_an_argument_that_a_region_returns_is_one_value():
    """Of the first call, backward needs the two arguments and the result; only the result is new bytes."""
    *_, found = all_captured(forward, *arguments())
    calls = [op for op in found.graph.ops if found.op_node[op.id].target is torch.ops.higher_order.invoke_subgraph]
    in_forward = [op for op in calls if found.graph.sides[op.id] is Side.FORWARD]
    in_backward = [op for op in calls if found.graph.sides[op.id] is Side.BACKWARD]
    assert (len(in_forward), len(in_backward)) == (2, 2)
    x, w = (v.id for v in found.graph.values[:2])
    first, second = in_forward
    assert first.reads == (x, w)
    assert {x, w} < set(in_backward[1].reads)
    assert w in in_backward[0].reads
    used = {v for op in found.graph.ops for v in op.reads}
    assert [len(used.intersection(call.writes)) for call in in_forward] == [1, 1]
    assert second.reads[0] in in_backward[0].reads


def test_no_view_in_the_subgraph_is_read_from_the_call():
    *_, found = all_captured(forward, *arguments())
    for call in found.module.graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph):
        subgraph = getattr(found.module, call.args[0].target)
        results = subgraph.graph.find_nodes(op="output")[0].args[0]
        read = [results[u.args[1]] for u in call.users if u.target is operator.getitem]
        assert len(read) == len(set(read))
        assert all(n.op == "call_function" and n.target is not aten.t.default for n in read)


def widened(x, w):
    return torch.cond(x.sum() > 0, lambda t: (t @ w).sin() @ w.t(), lambda t: t.cos(), (x,)).tanh()


def test_the_workspace_of_a_branch_is_that_of_the_larger_one():
    """The wider value before its sine, and without fusion also after it; the other branch takes less."""
    *_, found = all_captured(widened, torch.randn(3, 5, requires_grad=True), torch.randn(5, 7))
    unfused = capture(found.module, num_fwd_outputs=len(found.fwd_outputs), fuse=False)
    calls = [
        next(op for op in of.graph.ops if of.op_node[op.id].target is torch.ops.higher_order.cond)
        for of in (found, unfused)
    ]
    assert [call.nbytes_workspace for call in calls] == [4 * 3 * 7, 2 * 4 * 3 * 7 - 4 * 3 * 5]


def program(inside_a_checkpoint_region):
    def make():
        def body(x, w):
            return F.dropout(block(F.dropout(block(x, w), 0.4).sin(), w) @ w, 0.2).tanh()

        def step(m, x):
            x = torch.sin(x)
            if inside_a_checkpoint_region:
                return torch.utils.checkpoint.checkpoint(body, x, m.weight, use_reentrant=False).exp()
            return body(x, m.weight).exp()

        return Model(step, weight=nn.Parameter(_randn(5, 5))), [_randn(3, 5, grad=True)]

    return Program(make, compile={"fullgraph": True})


@pytest.mark.parametrize("inside_a_checkpoint_region", [False, True])
def test_inductor_does_not_overwrite_what_a_region_has_returned(inside_a_checkpoint_region):
    """Without rematpass, Inductor of torch 2.13 does, and even changes the weights."""
    of_regions = program(inside_a_checkpoint_region)
    seen = run(of_regions, "remat", {"memory_budget": 0, "strict": 1, "fallback_random": True})
    assert not differences(seen, run(of_regions), 1e-5)
