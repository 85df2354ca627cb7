"""Calls on sample arguments: how the arguments are described, and how they are made."""

import torch
from support.nodes import fake_call, fake_convolution
from torch._subclasses.fake_tensor import FakeTensorMode

from rematpass.compiler.ops.sample_call import TensorSpec, sample_call_of

aten = torch.ops.aten
CPU = torch.device("cpu")


def test_arguments_have_the_shapes_and_strides_of_the_node():
    found = sample_call_of(fake_call(aten.mm.default, (2, 3), (3, 5), device="cpu"))
    assert found.args == (
        TensorSpec((2, 3), (3, 1), torch.float32, CPU),
        TensorSpec((3, 5), (5, 1), torch.float32, CPU),
    )
    assert found.key == "aten.mm.default(float32[2, 3][3, 1], float32[3, 5][5, 1])"
    (first, second), kwargs = found.arguments()
    assert (first.shape, second.stride(), kwargs) == ((2, 3), (5, 1), {})


def test_strides_of_the_compiler_replace_those_of_the_node():
    plain = fake_call(aten.mm.default, (2, 3), (3, 5))
    found = sample_call_of(plain, [((3, 5), (1, 3))])
    assert [argument.strides for argument in found.args] == [(3, 1), (1, 3)]


def test_channels_last_applies_to_convolutions_only():
    found = sample_call_of(fake_convolution(), channels_last=True)
    assert [argument.strides for argument in found.args[:2]] == [(192, 1, 24, 3), (27, 1, 9, 3)]
    assert sample_call_of(fake_call(aten.mm.default, (2, 3), (3, 5)), channels_last=True).args[0].strides == (3, 1)


def test_a_python_function_has_no_sample_call():
    assert sample_call_of(fake_call(torch.add, (2,), (2,))) is None


def test_expanded_arguments_are_made():
    node = fake_call(aten.mm.default, (2, 3), (3, 5), device="cpu")
    found = sample_call_of(node, [((2, 3), (1, 0))])
    (first, _), _ = found.arguments(torch.Generator())
    assert (first.shape, first.stride()) == ((2, 3), (1, 0))


def test_indices_of_written_rows_differ():
    node = fake_call(aten.index_add.default, (4, 3), 0, (7,), (7, 3), device="cpu")
    with FakeTensorMode():
        node.args[2].meta["val"] = torch.empty(7, dtype=torch.int64)
    args, _ = sample_call_of(node).arguments(torch.Generator())
    assert args[2].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert sample_call_of(node).arguments()[0][2].tolist() == [0] * 7


def test_a_prepared_call_runs_any_number_of_times():
    run = sample_call_of(fake_call(aten.mm.default, (2, 3), (3, 5), device="cpu")).prepare(torch.Generator())
    assert torch.equal(run(), run())
    assert run().shape == (2, 5)
