"""The predicted peak of Inductor's code is the measured one, and a dry run leaves no trace."""

import copy

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass.compiler import _torch
from rematpass.compiler.inductor import scheduler_pass
from rematpass.compiler.inductor.dry_run import DryRun, LiveBytes, StepDryRun, dry_run, dry_run_step
from rematpass.compiler.ops.traits import workspace_of_call
from rematpass.lab.measure.memory_and_time import measure_memory


def traced(f, *shapes):
    return make_fx(f, tracing_mode="fake")(*(torch.empty(shape) for shape in shapes))


def inputs_of(module):
    return [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]


class DryRunning(_torch.CustomPartitionerFn):
    """Torch's own partitioner, and a dry run of what it returns."""

    def __init__(self):
        self.found = []

    def uuid(self):
        return None

    def __call__(self, gm, joint_inputs, *, num_fwd_outputs, **kwargs):
        modules = _torch.default_partition(gm, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
        self.found.append(dry_run_step(*modules, num_fwd_outputs=num_fwd_outputs))
        return modules


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.ModuleList(nn.Linear(53, 53) for _ in range(3))
        self.norm = nn.ModuleList(nn.LayerNorm(53) for _ in range(3))

    def forward(self, x):
        for linear, norm in zip(self.linear, self.norm, strict=True):
            x = x + torch.tanh(linear(norm(x)))
        return x.pow(2).mean()


class Convolutions(nn.Module):
    """Channels last inside: forward saves copies of its weights. (16 channels: mkldnn pads others to 16 and 32.)"""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, x):
        return torch.relu(self.norm(self.second(torch.relu(self.first(x))))).pow(2).mean()


def compiled(model, partitioner, patches):
    def backend(gm, example_inputs):
        patched = {"custom_partitioner_fn": partitioner, "fx_graph_cache": False, **patches}
        with _torch.functorch_config.patch(enable_autograd_cache=False):
            return _torch.compile_fx(gm, example_inputs, config_patches=patched)

    torch._dynamo.reset()
    return torch.compile(model, backend=backend)


@pytest.mark.parametrize(
    ("make", "shape", "tangent"), [(Layers, (97, 53), 0), (Convolutions, (2, 3, 47, 47), 4)], ids=["layers", "conv"]
)
def test_the_predicted_peak_is_the_measured_one(make, shape, tangent):
    torch.manual_seed(0)
    model, x, partitioner = make(), torch.randn(shape), DryRunning()
    eager = copy.deepcopy(model)
    step = compiled(model, partitioner, scheduler_pass.config_patches())
    measured = measure_memory(lambda: step(x), list(model.parameters())).peak
    (found,) = partitioner.found
    assert not found.fwd.unknown + found.bwd.unknown
    # The tangent of the loss is alive if the peak is in backward; where torch holds tangents, the dry run counts it.
    assert measured == found.peak_nbytes + (tangent if _torch.FREES_TANGENTS else 0)
    step(x).backward(), eager(x).backward()
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # inference runs in Inductor's own order
        eager.load_state_dict(model.state_dict())  # the same running statistics, though it ran less often
        model.eval(), eager.eval()
        torch.testing.assert_close(step(x), eager(x))


def chain(x, *weights):
    for w in weights:
        x = torch.tanh(x @ w)
    return (x @ weights[0],)


CHAIN = [(64, 5), (5, 7), (7, 5)]


def test_a_timeline_names_kernels_and_the_bytes_alive():
    found = dry_run(traced(chain, *CHAIN), inputs_of(traced(chain, *CHAIN)), is_backward=True)
    five, seven = 64 * 5 * 4, 64 * 7 * 4
    assert found.timeline == (
        LiveBytes("input", 0),
        LiveBytes("mm", seven),
        LiveBytes("tanh", seven),  # in place
        LiveBytes("mm_1", seven + five),
        LiveBytes("tanh_1", five),
        LiveBytes("mm_2", five + seven),
        LiveBytes("output", seven),
    )
    assert found.peak == LiveBytes("mm_1", seven + five)
    assert found.storages == (("buf4", seven),)
    assert found.strides == ((7, 1),)


def test_saved_values_are_freed_after_their_last_use():
    module = traced(chain, *CHAIN)
    found = dry_run(module, inputs_of(module), is_backward=True, given=[("x", 1280), None, None], base=11)
    at = {entry.name: entry.nbytes for entry in found.timeline}
    assert at["input"] == 11 + 1280
    assert at["mm"] == 11 + 1280 + 64 * 7 * 4
    assert at["tanh"] == 11 + 64 * 7 * 4


def test_a_storage_that_two_inputs_share_is_freed_with_the_last():
    module = traced(lambda a, b, w: (torch.tanh(torch.tanh(a @ w) @ w + b),), (64, 5), (64, 5), (5, 5))
    found = dry_run(module, inputs_of(module), is_backward=True, given=[("s", 1280), ("s", 1280), None])
    at = [entry.nbytes for entry in found.timeline]
    assert at[:2] == [1280, 2 * 1280]
    assert at[-1] == 1280  # the result


def test_donated_values_are_overwritten():
    def f(a, w):
        return (torch.tanh(a) @ w,)

    module = traced(f, (64, 5), (5, 5))
    at = {}
    for donated in ([], [0]):
        found = dry_run(module, inputs_of(module), is_backward=True, given=[("a", 1280), None], donated=donated)
        at[len(donated)] = {entry.name: entry.nbytes for entry in found.timeline}
    assert at[0]["tanh"] == 2 * 1280
    assert at[1]["tanh"] == 1280


def test_unused_results_are_freed_with_their_tuple():
    def attention(q, k, v):
        f = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return (torch.tanh(f(q, k, v)[0]).sum(),)

    shape = (1, 3, 17, 8)
    module = traced(attention, shape, shape, shape)
    found = dry_run(module, inputs_of(module))
    out, logsumexp = 3 * 17 * 8 * 4, 3 * 17 * 4
    (workspace,) = (workspace_of_call(n) for n in module.graph.nodes if "flash" in n.name)
    assert found.peak.nbytes == out + logsumexp + workspace
    assert found.timeline[-2].nbytes == out + 4  # the loop that computes the sum, and the sum


def test_both_branches_of_a_cond_are_on_the_timeline_and_the_larger_result_counts():
    def f(x, w):
        (y,) = torch.cond(x.sum() > 0, lambda x, w: (torch.tanh(x @ w) @ w,), lambda x, w: (x @ w,), (x, w))
        return (y @ w,)

    module = traced(f, (64, 5), (5, 5))
    found = dry_run(module, inputs_of(module), is_backward=True)
    nbytes, predicate = 64 * 5 * 4, 1
    calls = [(entry.name.split(": ")[1], entry.nbytes) for entry in found.timeline if ": " in entry.name]
    assert [call for call in calls if call[0] == "mm"] == [("mm", predicate + nbytes)] * 2
    assert sorted(call for call in calls if call[0] not in ("input", "mm")) == [
        ("mm_1", predicate + 2 * nbytes),
        ("tanh", predicate + nbytes),  # in place
    ]
    assert found.timeline[-2:] == (LiveBytes("mm", predicate + 2 * nbytes), LiveBytes("output", nbytes))
    assert not found.unknown


def test_the_peak_of_a_step_is_the_higher_of_both_graphs():
    low, high = (DryRun((LiveBytes("k", n),), (), (), 0.0) for n in (3, 5))
    assert StepDryRun(low, high).peak_nbytes == 5
    assert StepDryRun(high, low).peak_nbytes == 5
    assert DryRun((), (), (), 0.0).peak.nbytes == 0


def test_a_dry_run_leaves_no_trace():
    module = traced(chain, *CHAIN)
    code, metas = module.code, [dict(n.meta) for n in module.graph.nodes]
    _torch.dynamo_counters["inductor"]["before"] += 1
    counters = {k: dict(v) for k, v in _torch.dynamo_counters.items()}
    kernels, state = _torch.inductor_metrics.generated_kernel_count, torch.get_rng_state()
    dry_run(module, inputs_of(module), is_backward=True)
    assert module.code == code
    assert [n.meta for n in module.graph.nodes] == metas
    assert {k: dict(v) for k, v in _torch.dynamo_counters.items()} == counters
    assert _torch.inductor_metrics.generated_kernel_count == kernels
    assert torch.equal(torch.get_rng_state(), state)


def test_exceptions_of_inductor_are_raised_and_leave_no_trace():
    module = traced(chain, *CHAIN)
    with pytest.raises(Exception):  # noqa: B017  (whatever Inductor raises)
        dry_run(module, inputs_of(module)[:1], is_backward=True)
    assert dry_run(module, inputs_of(module), is_backward=True).peak.name == "mm_1"


@pytest.mark.parametrize("frees", [True, False])
def test_a_saved_output_is_freed_and_a_tangent_only_where_torch_frees_it(frees, monkeypatch):
    """Backward uses both only at its start."""
    monkeypatch.setattr(_torch, "FREES_TANGENTS", frees)
    n = 64 * 64 * 4
    held = 0 if frees else n
    fwd = traced(lambda x, w: (torch.tanh(x @ w), x), (64, 64), (64, 64))
    fwd_output = fwd.graph.find_nodes(op="output")[0]
    tanh, x = fwd_output.args[0]
    fwd_output.args = ([tanh, tanh, x],)  # returned, saved, saved
    bwd = traced(lambda tanh, x_1, tangents_1: ((tanh * tangents_1) @ x_1 @ x_1,), *[(64, 64)] * 3)
    for ours, theirs in zip(bwd.graph.find_nodes(op="placeholder"), ("tanh", "x_1", "tangents_1"), strict=True):
        ours.name = ours.target = theirs
    assert tanh.name == "tanh"
    found = dry_run_step(fwd, bwd, num_fwd_outputs=1)
    at = {entry.name: entry.nbytes for entry in found.bwd.without_outputs}
    assert at["input"] == 2 * n  # the saved output and the tangent
    assert at["mm_1"] == 2 * n + held  # its operand and its result
    assert {entry.name: entry.nbytes for entry in found.bwd.timeline}["mm_1"] == 3 * n + held  # and the caller's output
