"""A joint graph's ops and values, read from fx nodes."""

import inspect
import operator

import pytest
import torch
from support.programs import PROGRAMS, afresh, captured, selective
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint

from rematpass.compiler.capture.joint_graph import capture
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Origin, Side
from rematpass.errors import CaptureError

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)


def randn(*shape, grad=False):
    return torch.randn(*shape).requires_grad_(grad)


def op(graph, name):
    """The op of that name."""
    (found,) = [o for o in graph.ops if o.name == name]
    return found


def names(graph, values):
    return [graph.values[v].name for v in values]


def test_a_small_graph_in_full():
    graph = captured(lambda x, w: torch.tanh(x @ w).sum(), randn(7, 3), randn(3, 5, grad=True)).graph
    assert [(v.name, v.nbytes, v.nbytes_expr, v.origin, v.dtype, v.shape) for v in graph.values] == [
        ("primals_1", 84, "84", Origin.INPUT, "float32", ("7", "3")),
        ("primals_2", 60, "60", Origin.INPUT, "float32", ("3", "5")),
        ("tangents_1", 4, "4", Origin.TANGENT, "float32", ()),
        ("mm", 140, "140", Origin.OP, "float32", ("7", "5")),
        ("tanh", 140, "140", Origin.OP, "float32", ("7", "5")),
        ("sum_1", 4, "4", Origin.OP, "float32", ()),
        ("tanh_backward", 140, "140", Origin.OP, "float32", ("7", "5")),
        ("mm_1", 60, "60", Origin.OP, "float32", ("3", "5")),
    ]
    assert [(o.name, o.kind, o.reads, o.writes, o.flops, o.nbytes_read) for o in graph.ops] == [
        ("mm", Kind.MATMUL, (0, 1), (3,), 2 * 7 * 3 * 5, 84 + 60),
        ("tanh", Kind.POINTWISE, (3,), (4,), 0, 140),
        ("sum_1", Kind.REDUCTION, (4,), (5,), 0, 140),
        ("tanh_backward", Kind.POINTWISE, (2, 4), (6,), 0, 2 * 140),  # the expanded tangent has no bytes of its own
        ("mm_1", Kind.MATMUL, (0, 6), (7,), 2 * 7 * 3 * 5, 84 + 140),
    ]
    assert (graph.fwd_outputs, graph.bwd_outputs) == ((5,), (7,))
    assert graph.sides == (Side.FORWARD,) * 3 + (Side.BACKWARD,) * 2
    assert graph.device == "cpu"


def test_parameters_and_buffers_are_static_and_other_inputs_are_not():
    graph = captured(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)), randn(7, 3)).graph
    origins = [(v.shape, v.origin) for v in graph.values if v.origin in (Origin.STATIC, Origin.INPUT)]
    assert origins.count((("7", "3"), Origin.INPUT)) == 1
    assert {origin for shape, origin in origins if shape != ("7", "3")} == {Origin.STATIC}


def test_a_view_is_the_value_it_views():
    def forward(x, w):
        h = x @ w
        a, b = torch.split(h.t()[1:], [1, 3])
        return torch.sin(a.expand(3, 7)).sum() + torch.cos(b.unbind()[1]).sum() + h.as_strided((3,), (2,)).exp().sum()

    graph = captured(forward, randn(7, 3), randn(3, 5, grad=True)).graph
    (product,) = op(graph, "mm").writes
    assert all(op(graph, name).reads == (product,) for name in ("sin", "cos", "exp"))
    in_forward = [o.name for o in graph.ops if graph.sides[o.id] is Side.FORWARD]
    assert in_forward == ["mm", "sin", "sum_1", "cos", "sum_2", "add", "exp", "sum_3", "add_1"]


def test_a_view_is_found_by_its_schema_where_its_fake_storage_is_its_own():
    """Some passes leave such nodes."""
    with FakeTensorMode():
        x = torch.randn(3, 5)
        graph = fx.Graph()
        first = graph.placeholder("primals_1")
        view = graph.call_function(aten.t.default, (first,))
        pieces = graph.call_function(aten.split.Tensor, (view, 2))
        piece = graph.call_function(operator.getitem, (pieces, 1))
        sin = graph.call_function(aten.sin.default, (piece,))
        for node, value in [(first, x), (view, torch.randn(5, 3)), (sin, torch.randn(2, 3))]:
            node.meta["val"] = value
        pieces.meta["val"] = [torch.randn(2, 3), torch.randn(2, 3), torch.randn(1, 3)]
        piece.meta["val"] = torch.randn(2, 3)
        graph.output((sin, None))
    found = capture(fx.GraphModule({}, graph), num_fwd_outputs=1).graph
    assert [(o.name, names(found, o.reads)) for o in found.ops] == [("sin_default", ["primals_1"])]


def test_a_value_is_a_whole_storage():
    """The bytes of a storage, not those of the view that an op returns."""
    graph = captured(lambda x: aten.new_empty_strided(x, (3, 5), (7, 1)).copy_(x).sin().sum(), randn(3, 5, grad=True))
    (made,) = op(graph.graph, "new_empty_strided").writes
    assert graph.graph.values[made].nbytes == 4 * (2 * 7 + 5)


def test_an_op_with_several_results_writes_several_values():
    found = captured(lambda x: torch.topk(x, 3)[0].sum(), randn(7, 5, grad=True))
    graph = found.graph
    best, index = op(graph, "topk").writes
    assert names(graph, (best, index)) == ["topk.0", "topk.1"]
    assert [(graph.values[v].nbytes, graph.values[v].dtype) for v in (best, index)] == [
        (4 * 7 * 3, "float32"),
        (8 * 7 * 3, "int64"),
    ]
    assert found.value_node[best].target is operator.getitem
    assert found.stands_for[found.value_node[best]] == best
    (scatter,) = [o for o in graph.ops if index in o.reads]
    assert graph.sides[scatter.id] is Side.BACKWARD


def test_a_result_without_a_node_has_bytes():
    found = captured(lambda x: torch.topk(x, 3)[1] + x.sum(), randn(7, 5, grad=True))
    best, _ = op(found.graph, "topk").writes
    assert found.value_node[best] is None
    assert found.graph.values[best].nbytes == 4 * 7 * 3


def test_an_argument_that_a_call_returns_with_other_results_is_a_result():
    """A region that is compiled once returns what it saves, including its own arguments."""
    graph = fx.Graph()
    x = graph.placeholder("primals_1")
    call = graph.call_function(aten.topk.default, (x, 3))
    results = [graph.call_function(operator.getitem, (call, i)) for i in (0, 1)]
    sin = graph.call_function(aten.sin.default, (results[1],))
    x.meta["val"], sin.meta["val"] = randn(5), randn(5)
    call.meta["val"] = (randn(3), x.meta["val"])
    results[0].meta["val"], results[1].meta["val"] = call.meta["val"]
    graph.output((sin, None))
    found = capture(fx.GraphModule({}, graph), num_fwd_outputs=1)
    assert [v.nbytes for v in found.graph.values] == [4 * 5, 4 * 3, 4 * 5, 4 * 5]
    assert [(o.reads, o.writes) for o in found.graph.ops] == [((0,), (1, 2)), ((2,), (3,))]
    assert found.value_node[2] is results[1]


def test_an_argument_that_forward_overwrites_is_cloned_for_its_readers():
    buffer = torch.ones(5)

    def forward(x):
        k = torch.sin(buffer)
        y = torch.cos(buffer) * x * k
        with torch.no_grad():
            buffer.add_(1)
        return y

    found = captured(forward, randn(5, grad=True))
    graph = found.graph
    (argument,) = [v for v in graph.values if v.mutated]
    (clone,) = [o for o in graph.ops if argument.id in o.reads]
    assert clone.never_recompute == "its argument is overwritten after it has run"
    assert [o.name for o in graph.ops if clone.writes[0] in o.reads] == ["sin", "cos", "add"]
    (update,) = [o for o in graph.ops if argument.id in o.mutates]
    assert update.reads == op(graph, "add").writes  # it overwrites all of it, so it does not read it
    assert (update.kind, update.pinned) == (Kind.MUTATION, Side.FORWARD)
    assert {found.value_node[argument.id]} == set(found.old_versions.values())


def test_an_argument_that_is_only_read_is_not_cloned():
    found = captured(lambda x, y: torch.sin(x) * y, randn(3, grad=True), randn(3))
    assert not found.old_versions
    assert not [v for v in found.graph.values if v.mutated]


def test_a_buffer_that_backward_overwrites_stays_in_backward():
    model, arguments = PROGRAMS["buffers_updated_in_backward"].make()
    graph = captured(model, *arguments).graph
    updates = [o for o in graph.ops if o.kind is Kind.MUTATION]
    assert [o.pinned for o in updates] == [Side.BACKWARD] * 2
    assert not [v for v in graph.values if v.mutated]


@pytest.mark.parametrize(
    ("policy", "saved", "recomputed"),
    [
        (CheckpointPolicy.MUST_SAVE, ["mm"], ["sin", "exp"]),
        (CheckpointPolicy.PREFER_SAVE, [], ["sin", "exp"]),
        (CheckpointPolicy.MUST_RECOMPUTE, [], ["mm", "sin", "exp", "cos_1"]),  # cos_1: the derivative of sin(mm)
    ],
)
def test_users_marks_become_flags_of_ops_and_values(policy, saved, recomputed):
    def region(x, w):
        return torch.sin(x @ w).exp()

    def forward(x, w):
        context = selective(policy, [aten.mm.default])
        return checkpoint(region, torch.cos(x), w, use_reentrant=False, context_fn=context)

    graph = captured(forward, randn(7, 3, grad=True), randn(3, 5, grad=True)).graph
    assert [v.name for v in graph.values if v.must_save] == saved
    assert [o.name for o in graph.ops if o.must_recompute] == recomputed
    assert not op(graph, "cos").must_recompute


def test_random_numbers_in_a_recomputed_region_are_drawn_again():
    model, arguments = PROGRAMS["checkpoint_region_with_dropout"].make()
    graph = captured(model, *arguments).graph
    drawn = [o for o in graph.ops if o.kind is Kind.RANDOM]
    assert drawn
    assert all(o.must_recompute and not o.never_recompute for o in drawn)


def test_sizes_are_expressions_with_a_hint_for_each_symbol():
    def forward(x, w):
        return torch.tanh(x @ w).view(x.shape[0] * 5)

    graph = captured(forward, randn(7, 3), randn(3, 5, grad=True), dynamic=True).graph
    hints = dict(graph.hints)
    assert 7 in hints.values()
    symbol = next(s for s, n in hints.items() if n == 7)
    (tanh,) = (graph.values[v] for v in op(graph, "tanh").writes)
    assert tanh.nbytes == 4 * 7 * 5
    assert symbol in tanh.nbytes_expr
    assert eval(tanh.nbytes_expr, {}, hints) == tanh.nbytes
    assert tanh.shape[0] == symbol
    sizes = [v for v in graph.values if v.dtype == "SymInt" and v.origin is not Origin.OP]
    assert {(v.nbytes, v.origin) for v in sizes} == {(0, Origin.STATIC)}


def test_a_reader_of_a_view_reads_the_sizes_of_the_view():
    def forward(x, w):
        return torch.tanh(x @ w).view(x.shape[0] * 5).sin()

    graph = captured(forward, randn(7, 3), randn(3, 5, grad=True), dynamic=True).graph
    size = next(o for o in graph.ops if o.kind is Kind.SYMBOLIC)
    assert set(op(graph, "sin").reads) == {*op(graph, "tanh").writes, *size.writes}


def test_an_output_that_is_a_view_needs_the_sizes_of_the_view():
    graph = captured(lambda x: torch.tanh(x).view(x.shape[0] * 5), randn(7, 5, grad=True), dynamic=True).graph
    size = next(o for o in graph.ops if o.kind is Kind.SYMBOLIC)
    assert set(graph.fwd_outputs) == {*op(graph, "tanh").writes, *size.writes}
    assert graph.sides[size.id] is Side.FORWARD


def test_ops_name_the_users_line_and_module():
    class Block(nn.Module):
        def forward(self, x):
            return torch.tanh(x)

    graph = captured(nn.Sequential(nn.Linear(3, 5), nn.Sequential(Block())), randn(7, 3)).graph
    line = inspect.getsourcelines(Block.forward)[1] + 1
    assert [op(graph, name).module for name in ("addmm", "tanh")] == ["0", "1.0"]
    assert op(graph, "tanh").source == f"{__file__}:{line}"


@pytest.mark.parametrize(
    "name",
    [
        "a_size_that_depends_on_data",
        "buffers_updated_in_backward",
        "checkpoint_region_with_dropout",
        "custom_ops",
        "selective_checkpoint_that_saves",
        "symbolic_sizes",
        "views_of_all_sorts",
    ],
)
def test_a_captured_graph_survives_json(name):
    program = PROGRAMS[name]
    model, arguments = program.make()
    with torch._dynamo.config.patch(**program.dynamo):
        graph = captured(model, *arguments, **program.compile).graph
    assert JointGraph.from_json(graph.to_json()) == graph


def test_a_node_without_a_result_is_refused_by_name():
    graph = fx.Graph()
    x = graph.placeholder("primals_1")
    x.meta["val"] = randn(3)
    sin = graph.call_function(aten.sin.default, (x,))
    graph.output((graph.call_function(aten.cos.default, (sin,)), None))
    with pytest.raises(CaptureError) as error:
        capture(fx.GraphModule({}, graph), num_fwd_outputs=1)
    assert str(error.value) == (
        "%sin_default : [num_users=1] = call_function[target=torch.ops.aten.sin.default]"
        "(args = (%primals_1,), kwargs = {}) has no fake result, so its bytes are not known"
    )


def test_a_node_of_another_kind_is_refused_by_name():
    graph = fx.Graph()
    x = graph.placeholder("primals_1")
    x.meta["val"] = randn(3)
    graph.output((graph.call_method("sin", (x,)), None))
    with pytest.raises(CaptureError) as error:
        capture(fx.GraphModule({}, graph), num_fwd_outputs=1)
    assert str(error.value) == (
        "a joint graph holds no call_method nodes, but this one has "
        "%sin : [num_users=1] = call_method[target=sin](args = (%primals_1,), kwargs = {})"
    )
