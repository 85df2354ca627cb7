"""Calls like a graph's, and the scratch memory of those that run on a GPU, whose allocator is a made-up one here."""

import contextlib

import pytest
import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rematpass.compiler import _torch, scratch
from rematpass.compiler.calls import Like, call_of
from rematpass.compiler.capture import _computed_in
from rematpass.compiler.course import allocated
from rematpass.compiler.ops import traits_of
from rematpass.core.graph import Kind

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
        found = call_of(call(aten.mm.default, (2, 3), (3, 5), device="cpu"))
        assert found.args == (Like((2, 3), (3, 1), torch.float32, CPU), Like((3, 5), (5, 1), torch.float32, CPU))
        assert found.key == "aten.mm.default(float32[2, 3][3, 1], float32[3, 5][5, 1])"
        (first, second), kwargs = found.arguments()
        assert (first.shape, second.stride(), kwargs) == ((2, 3), (5, 1), {})

    def test_as_a_compiler_lays_them_out(self):
        plain = call(aten.mm.default, (2, 3), (3, 5))
        found = call_of(plain, [((3, 5), (1, 3))])
        assert [argument.strides for argument in found.args] == [(3, 1), (1, 3)]

    def test_channels_last_is_for_convolutions(self):
        found = call_of(convolution(), channels_last=True)
        assert [argument.strides for argument in found.args[:2]] == [(192, 1, 24, 3), (27, 1, 9, 3)]
        assert call_of(call(aten.mm.default, (2, 3), (3, 5)), channels_last=True).args[0].strides == (3, 1)

    def test_what_is_no_plain_op(self):
        assert call_of(call(torch.add, (2,), (2,))) is None

    def test_expanded_arguments_are_made(self):
        node = call(aten.mm.default, (2, 3), (3, 5), device="cpu")
        found = call_of(node, [((2, 3), (1, 0))])
        (first, _), _ = found.arguments(torch.Generator())
        assert (first.shape, first.stride()) == ((2, 3), (1, 0))

    def test_written_rows_are_different_ones(self):
        node = call(aten.index_add.default, (4, 3), 0, (7,), (7, 3), device="cpu")
        with FakeTensorMode():
            node.args[2].meta["val"] = torch.empty(7, dtype=torch.int64)
        args, _ = call_of(node).arguments(torch.Generator())
        assert args[2].tolist() == [0, 1, 2, 0, 1, 2, 0]
        assert call_of(node).arguments()[0][2].tolist() == [0] * 7


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device, as far as measuring asks: calls run on the CPU, and each takes 1000 bytes for itself.

    Two lists: the keys of the calls, and an entry for each time that the allocator's cache was emptied.
    """
    calls, settled = [], []

    def run(self, draw=None):
        calls.append(self.key)
        return tuple(torch.zeros(a.sizes) if isinstance(a, Like) else a for a in self.args), {}

    monkeypatch.setattr(scratch, "_known", {})
    monkeypatch.setattr(scratch, "_unsettled", set())
    monkeypatch.setattr(_torch, "preserve_rng_state", contextlib.nullcontext)
    monkeypatch.setattr(scratch.Call, "arguments", run)
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
        assert [scratch.scratch_of(convolution()) for _ in range(3)] == [1000] * 3
        assert len(calls) == 1
        assert scratch.known() == {calls[0]: 1000}
        scratch.settle()
        scratch.settle()
        assert settled == [True]

    def test_where_there_is_no_memory_it_is_left_out_and_asked_for_again(self, gpu, monkeypatch, caplog):
        def no_memory(*_):
            raise torch.OutOfMemoryError("no memory to spare")

        with monkeypatch.context() as short:
            short.setattr(scratch.Call, "arguments", no_memory)
            assert scratch.scratch_of(convolution()) == 0
        assert "the scratch memory of aten.convolution.default could not be measured and is left out" in caplog.text
        assert scratch.scratch_of(convolution()) == 1000

    def test_a_broken_device_is_not_planned_over(self, gpu, monkeypatch):
        def broken(*_):
            raise torch.AcceleratorError("an illegal memory access was encountered")

        monkeypatch.setattr(scratch.Call, "arguments", broken)
        with pytest.raises(torch.AcceleratorError):
            scratch.scratch_of(convolution())

    def test_other_settings_of_cudnn_are_other_calls(self, gpu, monkeypatch):
        calls, _ = gpu
        scratch.scratch_of(convolution())
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        scratch.scratch_of(convolution())
        assert len(calls) == 2

    def test_attention_with_dropout_is_no_less_attention(self, gpu, monkeypatch):
        monkeypatch.setattr(scratch, "_measured", lambda call, device: 1000)  # the CPU has no such kernel
        heads = (2, 3, 5, 8)
        node = call(aten._scaled_dot_product_flash_attention.default, heads, heads, heads, 0.5)
        assert traits_of(node).kind is Kind.RANDOM
        assert traits_of(node).workspace == 1000

    def test_calls_on_the_cpu_and_without_a_gpu_are_not_made(self, gpu, monkeypatch):
        assert scratch.scratch_of(convolution("cpu")) == 0
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert scratch.scratch_of(convolution()) == 0
        assert scratch.known() == {}

    def test_the_planner_knows_it(self, gpu):
        assert traits_of(convolution()).workspace == 1000
        assert traits_of(call(aten.mm.default, (2, 3), (3, 5))).workspace == 1000
        assert traits_of(call(aten.tanh.default, (2, 3))).workspace == 0


def test_a_gpu_hands_out_pieces_of_512_bytes():
    assert [allocated(n, CUDA) for n in (0, 1, 512, 513)] == [0, 512, 512, 1024]
    assert allocated(513, CPU) == 513


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
    monkeypatch.setattr(_torch, "rounds_to_tf32", lambda *, convolution: convolution and convolutions_round)
    assert _computed_in(convolution(device), kind, "float32") == dtype
    assert _computed_in(convolution(device), kind, "bfloat16") == "bfloat16"


def test_what_torch_says_of_rounding(monkeypatch):
    assert _torch.rounds_to_tf32(convolution=True), "cuDNN's rounds by default"
    assert not _torch.rounds_to_tf32(convolution=False)


def test_only_a_gpus_convolutions_are_laid_out_with_channels_last():
    def module(device):
        node = convolution(device, channels=96)  # with few channels it does not pay
        with FakeTensorMode():
            node.meta["val"] = torch.empty(2, 480, 6, 6, device=device)
        node.graph.output(node)
        return fx.GraphModule({}, node.graph)

    assert _torch.lays_channels_last(module("cuda:0"))
    assert not _torch.lays_channels_last(module("cpu"))
