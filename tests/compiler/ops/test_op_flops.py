"""The FLOPs of a call."""

import pytest
import torch
from support.nodes import called

from rematpass.compiler.ops import flops as formulas
from rematpass.compiler.ops.flops import flops_of

aten = torch.ops.aten
SQUARE, ROWS = torch.eye(3), torch.randn(5, 3)
HEADS = torch.randn(2, 3, 5, 8)
CONVOLVED = [torch.randn(2, 3, 7, 7), torch.randn(5, 3, 3, 3), None, [1], [0], [1], False, [0], 1]


@pytest.mark.parametrize(
    ("flops", "target", "arguments"),
    [
        (2 * 5 * 3 * 3, aten.mm.default, [ROWS, SQUARE]),
        (2 * (2 * 5 * 5 * 5) * 3 * 3 * 3, aten.convolution.default, CONVOLVED),
        (2 * 2 * (2 * 3) * 5 * 5 * 8, aten._scaled_dot_product_flash_attention_for_cpu.default, [HEADS] * 3),
        (0, aten.tanh.default, [ROWS]),
    ],
)
def test_flops_of_forward_ops(flops, target, arguments):
    assert flops_of(called(target, *arguments)) == flops


def test_flops_of_the_backward_of_attention():
    """Five products of the size of forward's two."""
    out, logsumexp = aten._scaled_dot_product_flash_attention_for_cpu(HEADS, HEADS, HEADS)
    backward = aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    node = called(backward, out, HEADS, HEADS, HEADS, out, logsumexp, 0.0, False)
    assert flops_of(node) == 5 * 2 * (2 * 3) * 5 * 5 * 8


def test_flops_of_attention_with_fewer_heads_of_keys():
    """torch's formula rejects it; several query heads read each head of keys and values."""
    few = torch.empty(2, 1, 5, 8)
    node = called(aten._scaled_dot_product_flash_attention_for_cpu.default, HEADS, few, few)
    assert flops_of(node) == 2 * 2 * (2 * 3) * 5 * 5 * 8


def test_flops_are_0_if_the_formula_rejects_the_shapes(monkeypatch):
    def reject(*_, **__):
        raise AssertionError("shapes are incompatible")

    monkeypatch.setitem(formulas.flop_registry, aten.mm, reject)
    assert flops_of(called(aten.mm.default, ROWS, SQUARE)) == 0
