"""Calls like a graph's, and their scratch memory: on a GPU, whose allocator is a made-up one here, and on the CPU."""

import contextlib

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rematpass.compiler import _torch
from rematpass.compiler.devices import record
from rematpass.compiler.devices.allocator_trace import live_bytes
from rematpass.compiler.devices.cuda import Cuda
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.node_info import arithmetic_dtype
from rematpass.compiler.ops.sample_call import TensorSpec, sample_call_of
from rematpass.compiler.ops.traits import traits_of
from rematpass.core.op import Kind

aten = torch.ops.aten
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def call(target, *arguments, device="cuda:0"):
    """A node that calls ``target``: a tuple of sizes among the arguments stands for a tensor on the device."""
    graph = fx.Graph()
    with FakeTensorMode():
        nodes = []
        for argument in arguments:
            if isinstance(argument, tuple):
                placeholder = graph.placeholder(f"x{len(nodes)}")
                placeholder.meta["val"] = torch.empty(argument, device=device)
                argument = placeholder
            nodes.append(argument)
    node = graph.call_function(target, tuple(nodes))
    node.meta["val"] = None
    return node


def convolution(device="cuda:0", channels=3):
    weight = (5 * channels, channels, 3, 3)
    options = [None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1]
    return call(aten.convolution.default, (2, channels, 8, 8), weight, *options, device=device)


class TestCallOf:
    def test_arguments_like_those_of_the_node(self):
        found = sample_call_of(call(aten.mm.default, (2, 3), (3, 5), device="cpu"))
        assert found.args == (
            TensorSpec((2, 3), (3, 1), torch.float32, CPU),
            TensorSpec((3, 5), (5, 1), torch.float32, CPU),
        )
        assert found.key == "aten.mm.default(float32[2, 3][3, 1], float32[3, 5][5, 1])"
        (first, second), kwargs = found.arguments()
        assert (first.shape, second.stride(), kwargs) == ((2, 3), (5, 1), {})

    def test_as_a_compiler_lays_them_out(self):
        plain = call(aten.mm.default, (2, 3), (3, 5))
        found = sample_call_of(plain, [((3, 5), (1, 3))])
        assert [argument.strides for argument in found.args] == [(3, 1), (1, 3)]

    def test_channels_last_is_for_convolutions(self):
        found = sample_call_of(convolution(), channels_last=True)
        assert [argument.strides for argument in found.args[:2]] == [(192, 1, 24, 3), (27, 1, 9, 3)]
        assert sample_call_of(call(aten.mm.default, (2, 3), (3, 5)), channels_last=True).args[0].strides == (3, 1)

    def test_what_is_no_plain_op(self):
        assert sample_call_of(call(torch.add, (2,), (2,))) is None

    def test_expanded_arguments_are_made(self):
        node = call(aten.mm.default, (2, 3), (3, 5), device="cpu")
        found = sample_call_of(node, [((2, 3), (1, 0))])
        (first, _), _ = found.arguments(torch.Generator())
        assert (first.shape, first.stride()) == ((2, 3), (1, 0))

    def test_written_rows_are_different_ones(self):
        node = call(aten.index_add.default, (4, 3), 0, (7,), (7, 3), device="cpu")
        with FakeTensorMode():
            node.args[2].meta["val"] = torch.empty(7, dtype=torch.int64)
        args, _ = sample_call_of(node).arguments(torch.Generator())
        assert args[2].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert sample_call_of(node).arguments()[0][2].tolist() == [0] * 7


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device, as far as measuring asks: calls run on the CPU, and each takes 1000 bytes for itself.

    Two lists: the keys of the calls, and an entry for each time that the allocator's cache was emptied.
    """
    calls, settled = [], []

    def run(self, draw=None):
        calls.append(self.key)
        return tuple(torch.zeros(a.sizes) if isinstance(a, TensorSpec) else a for a in self.args), {}

    monkeypatch.setattr(workspace, "_known", {})
    monkeypatch.setattr(workspace, "_used", set())
    monkeypatch.setattr(_torch, "preserve_rng_state", contextlib.nullcontext)
    monkeypatch.setattr(workspace.SampleCall, "arguments", run)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(
        torch.cuda, "memory_stats", lambda _: {"requested_bytes.all.peak": 1700, "requested_bytes.all.current": 700}
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: settled.append(True))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    return calls, settled


class TestScratch:
    def test_each_call_is_measured_once(self, gpu):
        calls, settled = gpu
        assert [workspace.measured_workspace(convolution()) for _ in range(3)] == [1000] * 3
        assert len(calls) == 1
        assert workspace.known() == {calls[0]: 1000}
        workspace.empty_caches()
        workspace.empty_caches()
        assert settled == [True]

    def test_where_there_is_no_memory_it_is_left_out_and_asked_for_again(self, gpu, monkeypatch, caplog):
        def no_memory(*_):
            raise torch.OutOfMemoryError("no memory to spare")

        with monkeypatch.context() as short:
            short.setattr(workspace.SampleCall, "arguments", no_memory)
            assert workspace.measured_workspace(convolution()) == 0
        assert "the workspace of aten.convolution.default could not be measured and is left out" in caplog.text
        assert workspace.measured_workspace(convolution()) == 1000

    def test_a_broken_device_is_not_planned_over(self, gpu, monkeypatch):
        def broken(*_):
            raise torch.AcceleratorError("an illegal memory access was encountered")

        monkeypatch.setattr(workspace.SampleCall, "arguments", broken)
        with pytest.raises(torch.AcceleratorError):
            workspace.measured_workspace(convolution())

    def test_other_settings_of_cudnn_are_other_calls(self, gpu, monkeypatch):
        calls, _ = gpu
        workspace.measured_workspace(convolution())
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        workspace.measured_workspace(convolution())
        assert len(calls) == 2

    def test_attention_with_dropout_is_no_less_attention(self, gpu, monkeypatch):
        monkeypatch.setattr(workspace, "_measured", lambda call, device: 1000)  # the CPU has no such kernel
        heads = (2, 3, 5, 8)
        node = call(aten._scaled_dot_product_flash_attention.default, heads, heads, heads, 0.5)
        assert traits_of(node).kind is Kind.RANDOM
        assert traits_of(node).workspace == 1000

    def test_calls_without_a_gpu_are_not_made(self, gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert workspace.measured_workspace(convolution()) == 0
        assert workspace.known() == {}

    def test_the_planner_knows_it(self, gpu):
        assert traits_of(convolution()).workspace == 1000
        assert traits_of(call(aten.mm.default, (2, 3), (3, 5))).workspace == 1000
        assert traits_of(call(aten.tanh.default, (2, 3))).workspace == 0


def fresh(node):
    """What the call allocates at its highest point, results and all, in a recording of its own."""
    call = sample_call_of(node)
    args, kwargs = call.arguments()
    with record(CPU) as recording:
        results = call.target(*args, **kwargs)
    assert results is not None
    return max((m.nbytes for m in live_bytes(recording.events, set())), default=0)


@pytest.fixture
def nothing_known(monkeypatch):
    monkeypatch.setattr(workspace, "_known", {})


@pytest.mark.usefixtures("nothing_known")
class TestOnTheCpu:
    """Where the allocator is no made-up one."""

    def test_a_depthwise_convolution_copies_what_it_reads_and_writes(self):
        options = [None, [1, 1], [1, 1], [1, 1], False, [0, 0], 32]
        node = call(aten.convolution.default, (2, 32, 16, 16), (32, 1, 3, 3), *options, device="cpu")
        found, result = workspace.measured_workspace(node), 4 * 2 * 32 * 16 * 16
        assert found >= result
        assert found == fresh(node) - result

    def test_attention_has_sums_for_every_thread(self):
        heads = (2, 3, 64, 8)
        node = call(aten._scaled_dot_product_flash_attention_for_cpu.default, heads, heads, heads, device="cpu")
        results = 4 * 2 * 3 * 64 * (8 + 1)  # the sums' logarithms
        assert workspace.measured_workspace(node) == fresh(node) - results > 0
        (key,) = workspace._known
        assert key[-1] == str(torch.get_num_threads())

    def test_products_in_float32_are_known_to_take_nothing(self, monkeypatch):
        node = call(aten.mm.default, (64, 32), (32, 64), device="cpu")
        assert fresh(node) == 4 * 64 * 64
        monkeypatch.setattr(workspace.SampleCall, "arguments", None)  # they are not even made
        assert workspace.measured_workspace(node) == 0

    def test_products_in_bfloat16_are_not(self):
        node = call(aten.mm.default, (64, 32), (32, 64), device="cpu")
        for argument in node.args:
            argument.meta["val"] = argument.meta["val"].bfloat16()
        assert workspace.measured_workspace(node) == fresh(node) - 2 * 64 * 64
        assert len(workspace.known()) == 1

    def test_large_calls_are_not_made(self):
        node = convolution("cpu")
        assert workspace.measured_workspace(node, flops=10**15) == 0
        assert workspace.known() == {}

    def test_beside_a_running_profiler_it_is_left_out_and_asked_for_again(self, caplog):
        node = convolution("cpu")
        with torch.profiler.profile():
            assert workspace.measured_workspace(node) == 0
        assert "is left out: a torch profiler is running" in caplog.text
        assert workspace.measured_workspace(node) > 0

    def test_random_numbers_are_drawn_as_if_nothing_had_been_asked(self):
        state = torch.get_rng_state()
        heads = (1, 2, 17, 8)
        workspace.measured_workspace(
            call(aten._scaled_dot_product_flash_attention_for_cpu.default, heads, heads, heads, device="cpu")
        )
        assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("device", "kind", "convolutions_round", "dtype"),
    [
        ("cuda:0", Kind.CONVOLUTION, True, "tensorfloat32"),
        ("cuda:0", Kind.CONVOLUTION, False, "float32"),
        ("cuda:0", Kind.MATMUL, True, "float32"),
        ("cuda:0", Kind.POINTWISE, True, "float32"),
        ("cpu", Kind.CONVOLUTION, True, "float32"),
    ],
)
def test_float32_that_a_gpu_rounds(device, kind, convolutions_round, dtype, monkeypatch):
    monkeypatch.setattr(Cuda, "rounds_to_tf32", lambda self, *, convolution: convolution and convolutions_round)
    assert arithmetic_dtype(convolution(device), kind, "float32") == dtype
    assert arithmetic_dtype(convolution(device), kind, "bfloat16") == "bfloat16"


@pytest.mark.parametrize(
    ("device", "channels", "expected"), [("cuda:0", 96, True), ("cuda:0", 3, False), ("cpu", 3, True)]
)
def test_convolutions_are_laid_out_with_channels_last_where_it_pays(device, channels, expected):
    node = convolution(device, channels)
    with FakeTensorMode():
        node.meta["val"] = torch.empty(2, 5 * channels, 6, 6, device=device)
    node.graph.output(node)
    assert _torch.lays_channels_last(fx.GraphModule({}, node.graph)) is expected
