"""The workspace of library calls: on a GPU, whose allocator is faked here, and on the CPU."""

import contextlib

import pytest
import torch
from support.nodes import called, fake_call, fake_convolution

from rematpass.compiler import _torch
from rematpass.compiler.devices import record
from rematpass.compiler.devices.allocator_trace import live_bytes
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.sample_call import TensorSpec, sample_call_of
from rematpass.compiler.ops.traits import traits_of
from rematpass.core.op import Kind

aten = torch.ops.aten
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device, as far as measuring needs one: calls run on the CPU, and each has a workspace of 1000 bytes.

    Returns two lists: the keys of the calls, and an entry for each time that the allocator's cache was emptied.
    """
    calls, emptied = [], []

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
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    return calls, emptied


class TestOnAGpu:
    def test_each_call_is_measured_once(self, gpu):
        calls, emptied = gpu
        assert [workspace.measured_workspace(fake_convolution()) for _ in range(3)] == [1000] * 3
        assert len(calls) == 1
        assert workspace.known() == {calls[0]: 1000}
        workspace.empty_caches()
        workspace.empty_caches()
        assert emptied == [True]

    def test_a_call_that_runs_out_of_memory_is_left_out_and_measured_later(self, gpu, monkeypatch, caplog):
        def no_memory(*_):
            raise torch.OutOfMemoryError("no memory to spare")

        with monkeypatch.context() as short:
            short.setattr(workspace.SampleCall, "arguments", no_memory)
            assert workspace.measured_workspace(fake_convolution()) == 0
        assert "the workspace of aten.convolution.default could not be measured and is left out" in caplog.text
        assert workspace.measured_workspace(fake_convolution()) == 1000

    def test_an_error_of_the_device_is_raised(self, gpu, monkeypatch):
        def broken(*_):
            raise torch.AcceleratorError("an illegal memory access was encountered")

        monkeypatch.setattr(workspace.SampleCall, "arguments", broken)
        with pytest.raises(torch.AcceleratorError):
            workspace.measured_workspace(fake_convolution())

    def test_a_call_is_measured_again_under_other_settings_of_cudnn(self, gpu, monkeypatch):
        calls, _ = gpu
        workspace.measured_workspace(fake_convolution())
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
        workspace.measured_workspace(fake_convolution())
        assert len(calls) == 2

    def test_attention_with_dropout_has_a_workspace(self, gpu, monkeypatch):
        monkeypatch.setattr(workspace, "_measured", lambda call, device: 1000)  # the CPU has no such kernel
        heads = (2, 3, 5, 8)
        node = fake_call(aten._scaled_dot_product_flash_attention.default, heads, heads, heads, 0.5)
        assert traits_of(node).kind is Kind.RANDOM
        assert traits_of(node).workspace == 1000

    def test_nothing_is_measured_before_cuda_is_initialized(self, gpu, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert workspace.measured_workspace(fake_convolution()) == 0
        assert workspace.known() == {}

    def test_traits_include_the_workspace(self, gpu):
        assert traits_of(fake_convolution()).workspace == 1000
        assert traits_of(fake_call(aten.mm.default, (2, 3), (3, 5))).workspace == 1000
        assert traits_of(fake_call(aten.tanh.default, (2, 3))).workspace == 0


X = torch.ones(64, 32)
Z = torch.ones(64, 32, dtype=torch.complex64)
CALLS = {
    "transform over two dimensions": lambda: called(aten._fft_c2r.default, Z, [0, 1], 0, 62),
    "sort": lambda: called(aten.sort.stable, X.flatten(), stable=True),
    "k-th value": lambda: called(aten.kthvalue.default, X, 3, 0),
    "median": lambda: called(aten.median.default, X),
    "product of a conjugate": lambda: called(aten.bmm.default, Z[None], Z[None].mT.conj()),
    "multiple of a conjugate": lambda: called(aten.mul.Tensor, Z, Z.conj()),
    "singular values": lambda: called(aten._linalg_svd.default, X),
    "inverse": lambda: called(aten.linalg_inv_ex.default, (X + torch.eye(64, 32)).T @ X + 64 * torch.eye(32)),
}


def fresh(node):
    """The most bytes that the call holds, including its results, from a separate recording."""
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
    """With the real allocator."""

    def test_a_depthwise_convolution_copies_what_it_reads_and_writes(self):
        options = [None, [1, 1], [1, 1], [1, 1], False, [0, 0], 32]
        node = fake_call(aten.convolution.default, (2, 32, 16, 16), (32, 1, 3, 3), *options, device="cpu")
        found, result = workspace.measured_workspace(node), 4 * 2 * 32 * 16 * 16
        assert found >= result
        assert found == fresh(node) - result

    def test_attention_has_partial_sums_for_every_thread(self):
        heads = (2, 3, 64, 8)
        node = fake_call(aten._scaled_dot_product_flash_attention_for_cpu.default, heads, heads, heads, device="cpu")
        results = 4 * 2 * 3 * 64 * (8 + 1)  # output and log-sum-exp
        assert workspace.measured_workspace(node) == fresh(node) - results > 0
        (key,) = workspace._known
        assert key[-1] == str(torch.get_num_threads())

    @pytest.mark.parametrize("name", CALLS)
    def test_what_a_library_call_takes_is_counted(self, name):
        node = CALLS[name]()
        found = traits_of(node).workspace
        assert found == fresh(node) - sum(t.nbytes for t in _torch.pytree.tree_leaves(node.meta["val"]))
        assert found >= 4096

    def test_a_call_without_workspace_has_none(self):
        assert traits_of(called(aten.cumsum.default, X, 1)).workspace == 0

    def test_a_call_that_sample_arguments_do_not_suit_is_tried_once(self, caplog):
        node = called(aten.gather.default, X, 0, torch.zeros(1, 1, dtype=torch.int64))
        node.args[0].meta["val"] = X[:0]  # index 0 is out of bounds
        assert [workspace.measured_workspace(node) for _ in range(3)] == [0] * 3
        assert len(caplog.records) == 1

    def test_products_in_float32_have_no_workspace(self, monkeypatch):
        node = fake_call(aten.mm.default, (64, 32), (32, 64), device="cpu")
        assert fresh(node) == 4 * 64 * 64
        monkeypatch.setattr(workspace.SampleCall, "arguments", None)  # the call is not made
        assert workspace.measured_workspace(node) == 0

    def test_products_in_bfloat16_are_measured(self):
        node = fake_call(aten.mm.default, (64, 32), (32, 64), device="cpu")
        for argument in node.args:
            argument.meta["val"] = argument.meta["val"].bfloat16()
        assert workspace.measured_workspace(node) == fresh(node) - 2 * 64 * 64
        assert len(workspace.known()) == 1

    def test_large_calls_are_not_made(self):
        node = fake_convolution("cpu")
        assert workspace.measured_workspace(node, flops=10**15) == 0
        assert workspace.known() == {}

    def test_a_call_under_a_profiler_is_left_out_and_measured_later(self, caplog):
        node = fake_convolution("cpu")
        with torch.profiler.profile():
            assert workspace.measured_workspace(node) == 0
        assert "is left out: a torch profiler is running" in caplog.text
        assert workspace.measured_workspace(node) > 0

    def test_measuring_leaves_the_random_state_alone(self):
        state = torch.get_rng_state()
        heads = (1, 2, 17, 8)
        workspace.measured_workspace(
            fake_call(aten._scaled_dot_product_flash_attention_for_cpu.default, heads, heads, heads, device="cpu")
        )
        assert torch.equal(state, torch.get_rng_state())
