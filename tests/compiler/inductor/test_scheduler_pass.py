"""Kernels run in the order of the plan, duplicates stay apart, and kernels are fused only where there is memory."""

import shutil

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass.compiler import _torch, source_hash
from rematpass.compiler.inductor import buffer_liveness, scheduler_pass
from rematpass.compiler.inductor.buffer_liveness import predecessors
from rematpass.compiler.inductor.dry_run import dry_run
from rematpass.compiler.inductor.realize_op import REALIZE

DEFAULT, OURS = {}, scheduler_pass.config_patches()


def traced(f, *shapes, planned=True):
    module = make_fx(f, tracing_mode="fake")(*(torch.empty(shape) for shape in shapes))
    if planned:
        scheduler_pass.follow_plan(module)
    return module


def dry(module, patches):
    """A dry run under ``patches``; the bytes of the arguments are not counted."""
    inputs = [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]
    with _torch.inductor_config.patch(patches):
        return dry_run(module, inputs, is_backward=True)


def kernels(module, patches):
    return [entry.name for entry in dry(module, patches).timeline[1:-1]]


# float32: x takes 64 * 7 * 4 = 1792 bytes, g 64 * 5 * 4 = 1280, one product 7 * 5 * 4 = 140.
SHAPES = [(64, 7), (64, 5), (5, 5), (5, 5), (5, 5)]


def recomputed_thrice(x, g, *weights):
    """cos(x) is computed just before each reader, as in a plan with three copies."""
    products = []
    for w in weights:
        products.append(torch.cos(x).permute(1, 0) @ g)
        g = g @ w
    return (*products, g)


def test_copies_of_one_value_run_where_the_plan_puts_them():
    module = traced(recomputed_thrice, *SHAPES)
    assert kernels(module, OURS) == ["cos", "mm", "mm_1", "cos_1", "mm_2", "mm_3", "cos_2", "mm_4", "mm_5"]
    assert dry(module, OURS).peak.nbytes == 3 * 140 + 1280 + 1792  # three products, g, one copy


def test_a_graph_that_no_plan_has_made_is_left_to_inductor():
    module = traced(recomputed_thrice, *SHAPES, planned=False)
    alone, beside_ours = (dry(module, patches) for patches in (DEFAULT, OURS))
    assert beside_ours.timeline == alone.timeline
    assert dry(traced(recomputed_thrice, *SHAPES), OURS).timeline != alone.timeline


@pytest.mark.parametrize("patches", [DEFAULT, {"reorder_for_peak_memory": False}])
def test_inductor_by_itself_computes_all_copies_at_the_front(patches):
    module = traced(recomputed_thrice, *SHAPES)
    assert kernels(module, patches)[0] == "cos cos_1 cos_2"
    assert dry(module, patches).peak.nbytes == 3 * 1792 + 140


def test_copies_are_fused_where_memory_is_free():
    def with_a_peak_elsewhere(x, g, big, *rest):
        return (*recomputed_thrice(x, g, *rest), torch.cos(big).permute(1, 0) @ g)

    module = traced(with_a_peak_elsewhere, *SHAPES[:2], (64, 97), *SHAPES[2:])
    assert "cos cos_1 cos_2" in kernels(module, OURS)
    assert dry(module, OURS).peak.nbytes == 64 * 97 * 4 + 97 * 5 * 4 + 3 * 140 + 1280


def two_loops(x, g):
    """Two kernels that cannot be fused, since their loops differ; x can be freed after the first."""
    return torch.cos(x).sum(1), torch.sin(g).sum(1)


def test_loops_are_written_into_one_function_where_memory_is_free():
    def after_a_peak(x, g, big):
        return (torch.cos(big).permute(1, 0) @ big, *two_loops(x, g))

    alone, with_room = traced(two_loops, (63, 7), (31, 5)), traced(after_a_peak, (63, 7), (31, 5), (64, 97))
    assert kernels(alone, OURS) == ["sum_1", "sum_2"]
    assert kernels(with_room, OURS) == ["cos", "mm", "sum_1 sum_2"]
    assert dry(with_room, OURS).peak.nbytes == (64 + 97) * 97 * 4


def two_segments(x, *weights):
    """A saved x, two segments of two layers recomputed in turn, with two copies of the first segment's chain."""
    a, b, c, d = weights
    second = torch.tanh(torch.tanh(torch.tanh(torch.tanh(x @ a) @ b) @ c) @ d)
    gradient = second @ d.permute(1, 0)
    first = torch.tanh(torch.tanh(x @ a) @ b)
    return (gradient * first,)


@pytest.mark.parametrize("reorder", [False, True])
def test_two_copies_of_a_chain_of_products_are_not_merged(reorder):
    module = traced(two_segments, (64, 5), *[(5, 5)] * 4)
    names = kernels(module, {**OURS, "reorder_for_peak_memory": reorder})
    assert names[:4] == ["mm", "tanh", "mm_1", "tanh_1"]
    again = ["mm_4", "mm_5", "tanh_4", "mm_6"]  # the gradient, and the chain's second copy
    assert [n for n in names if n in again] == again


def test_a_gradient_accumulates_in_the_order_of_the_plan():
    def accumulated(g, *weights):
        total = g
        for w in weights:
            total = total + torch.tanh(g @ w)
        return (total @ weights[0],)

    module = traced(accumulated, (64, 5), *[(5, 5)] * 3)
    assert kernels(module, OURS)[0] == "mm"
    assert dry(module, OURS).peak.nbytes <= dry(module, DEFAULT).peak.nbytes


class Kernel:
    """The part of a scheduler's node that sorting uses."""

    def __init__(self, name, *reads):
        self.name = name
        self.unmet_dependencies = [Kernel(read) for read in reads]

    def get_buffer_names(self):
        return [self.name]


def test_the_ready_kernel_that_comes_first_in_the_plan_runs_next():
    a, b, c, d = Kernel("a"), Kernel("b", "d"), Kernel("c"), Kernel("d", "a")
    assert scheduler_pass._sorted([b, d, c, a], {a: 3, b: 0, c: 2, d: 1}) == [c, a, d, b]
    assert predecessors([a, b, c, d]) == {a: set(), b: {d}, c: set(), d: {a}}


def test_kernels_that_wait_for_each_other_are_an_error():
    a, b = Kernel("a", "b"), Kernel("b", "a")
    with pytest.raises(ValueError, match="2 of 2 kernels wait for each other"):
        scheduler_pass._sorted([a, b], {a: 0, b: 1})


def halved_in_place(x, keys):
    """Each result can overwrite its operand, except the first, which is read again at the end."""
    first = torch.sin(x @ keys)
    second = torch.cos(first) @ keys
    return (torch.exp(torch.tanh(second)) @ keys, first.permute(1, 0) @ second)


def softmax_backward(gradient, keys, queries, values):
    """As in attention: a matrix of scores for each head, and the backward of a function of their rows."""
    shares = torch.sigmoid(torch.bmm(queries, keys)).view(2, 4, 60, 60)
    first = torch.bmm(shares.view(8, 60, 60).permute(0, 2, 1), values)
    given = torch.bmm(gradient, keys).view(2, 4, 60, 60) * shares
    result = (given - shares * given.sum(-1, keepdim=True)).view(8, 60, 60)
    return first, torch.bmm(result, values), torch.bmm(result.permute(0, 2, 1), values)


def soft_cap_backward(gradient, of_caller, hidden, weight):
    """As before a loss: the gradient of capped logits, whose kernel can overwrite only the logits."""
    total = REALIZE(torch.cos(gradient) * of_caller)
    logits = hidden @ weight
    return (REALIZE(total * torch.cos(logits)) @ weight.permute(1, 0),)


def recurrent_backward(gates, products, gradient, weight):
    """As in a recurrent network: saved gates are only read in slices, and the gradients of steps are concatenated."""
    found = []
    for part in range(2):
        of_gate, of_product = (t[:, 48 * part : 48 * (part + 1)] for t in (gates, products))
        given = gradient[:, 48 * part : 48 * (part + 1)]
        steps = [torch.sin(of_gate) * given, torch.cos(of_gate) * given, torch.exp(of_product) * given]
        found.append(REALIZE(torch.tanh(torch.cat(steps, 1))) @ weight)
    return (found[0] @ found[1].permute(1, 0), torch.cat([f.sum(0) for f in found]))


@pytest.mark.parametrize("part", ["common_positions", "move", "__init__", "allocated"])
def test_an_error_during_fusion_does_not_abort_training(part, monkeypatch, caplog):
    def broken(*_):
        raise IndexError("7 of 5")

    monkeypatch.setattr(buffer_liveness.KernelTimeline, part, broken)
    module = traced(softmax_backward, (8, 60, 11), (8, 11, 60), (8, 60, 11), (8, 60, 7))
    expected = dry(module, {"reorder_for_peak_memory": False})
    with pytest.raises(Exception, match="7 of 5"):
        dry(module, OURS)
    found = dry(module, scheduler_pass.config_patches(strict=False))
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    assert record.getMessage().startswith(
        "Inductor could not be kept to the plan's order (IndexError: 7 of 5); it orders"
    )
    assert [e.name for e in found.timeline][-2:] == [e.name for e in expected.timeline][-2:]


def freed(module):
    """A dry run in which the arguments are saved values, which are freed after their last use."""
    inputs = [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]
    given = [(str(i), t.untyped_storage().nbytes()) for i, t in enumerate(inputs)]
    with _torch.inductor_config.patch(OURS):
        return dry_run(module, inputs, is_backward=True, given=given)


def test_the_kernel_timeline_equals_what_the_wrapper_allocates(monkeypatch):
    """To the byte, with moved, fused and overwritten buffers; the arguments are saved values, which can be freed."""
    timelines = []

    class Recorded(buffer_liveness.KernelTimeline):
        def __init__(self, *args):
            super().__init__(*args)
            timelines.append(self)

    monkeypatch.setattr(scheduler_pass, "KernelTimeline", Recorded)
    for module in (
        traced(halved_in_place, (64, 64), (64, 64)),
        traced(two_loops, (64, 64), (64, 64)),
        traced(softmax_backward, (8, 60, 11), (8, 11, 60), (8, 60, 11), (8, 60, 7)),
        traced(soft_cap_backward, (64, 640), (64, 640), (64, 8), (8, 640)),
        traced(recurrent_backward, (64, 96), (64, 96), (64, 96), (144, 7)),
    ):
        found = freed(module)
        assert timelines[-1].live.max() == found.peak.nbytes


def test_equal_passes_have_equal_cache_keys():
    one, other = scheduler_pass.KeepOrder(), scheduler_pass.KeepOrder()
    assert one.uuid() == other.uuid()
    assert len(one.uuid()) == 32
    assert scheduler_pass.KeepOrder()([]) == []


def test_an_edit_of_any_source_of_this_directory_changes_the_cache_key(tmp_path, monkeypatch):
    copied = tmp_path / "rematpass"
    shutil.copytree(source_hash.ROOT, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_hash, "ROOT", copied)

    def uuid():
        source_hash.sources_hash.cache_clear()
        return scheduler_pass.KeepOrder().uuid()

    files = sorted((copied / "compiler" / "inductor").rglob("*.py"))
    assert "fusion_gate.py" in [file.name for file in files]
    seen = {uuid()}
    for file in files:
        file.write_text(file.read_text("utf-8") + "\n# edited\n", "utf-8")
        seen.add(uuid())
    monkeypatch.undo()
    source_hash.sources_hash.cache_clear()
    assert len(seen) == 1 + len(files)


def test_a_pass_for_short_memory_has_a_cache_key_of_its_own():
    assert scheduler_pass.KeepOrder(split=True).uuid() != scheduler_pass.KeepOrder(split=False).uuid()
