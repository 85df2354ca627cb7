"""The dtype that an op computes in, and the layout that Inductor chooses for convolutions."""

import pytest
import torch
from support.nodes import fake_convolution
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rematpass.compiler import _torch
from rematpass.compiler.devices.cuda import Cuda
from rematpass.compiler.ops.node_info import arithmetic_dtype
from rematpass.core.op import Kind


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
def test_float32_products_on_a_gpu_may_run_as_tf32(device, kind, convolutions_round, dtype, monkeypatch):
    monkeypatch.setattr(Cuda, "rounds_to_tf32", lambda self, *, convolution: convolution and convolutions_round)
    assert arithmetic_dtype(fake_convolution(device), kind, "float32") == dtype
    assert arithmetic_dtype(fake_convolution(device), kind, "bfloat16") == "bfloat16"


@pytest.mark.parametrize(
    ("device", "channels", "expected"), [("cuda:0", 96, True), ("cuda:0", 3, False), ("cpu", 3, True)]
)
def test_inductor_lays_convolutions_out_with_channels_last_where_it_pays(device, channels, expected):
    node = fake_convolution(device, channels)
    with FakeTensorMode():
        node.meta["val"] = torch.empty(2, 5 * channels, 6, 6, device=device)
    node.graph.output(node)
    assert _torch.lays_channels_last(fx.GraphModule({}, node.graph)) is expected
