import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass.compiler import _torch
from rematpass.compiler.graph_passes.avoid_addmm import separate_products
from rematpass.compiler.inductor.dry_run import dry_run
from rematpass.compiler.inductor.scheduler_pass import config_patches, follow_plan

SHAPES = [(64, 11), (64, 3), (64, 11), (64, 3), (11, 11), (11, 11)]


def tied(logits, hidden, h, w, *chain):
    """The gradient of a tied embedding: a product of large operands first in backward, a second term at its end."""
    early = logits.permute(1, 0) @ hidden
    for c in chain:
        h = torch.tanh(h @ c)
    return (early + torch.tanh(h.permute(1, 0) @ w),)


def traced(function, *shapes):
    module = make_fx(function, tracing_mode="fake")(*(torch.empty(shape) for shape in shapes))
    follow_plan(module)
    return module


def live_bytes(module):
    """Bytes alive at each kernel, by name; the arguments are saved values, freed after their last use."""
    inputs = [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]
    given = [(str(i), t.untyped_storage().nbytes()) for i, t in enumerate(inputs)]
    with _torch.inductor_config.patch(config_patches()):
        found = dry_run(module, inputs, is_backward=True, given=given)
    return {line.name: line.nbytes for line in found.timeline}


def test_a_product_is_not_held_back_for_an_addition_at_the_end():
    module = traced(tied, *SHAPES)
    inputs = [torch.randn(shape) for shape in SHAPES]
    expected, before = module(*inputs), live_bytes(module)
    assert separate_products(module) == 1
    assert torch.equal(module(*inputs)[0], expected[0])
    # While the chain runs, the product (11 x 3) is alive instead of its operands (64 x 11 and 64 x 3).
    assert before["mm_2"] - live_bytes(module)["mm_2"] == (64 * 11 + 64 * 3 - 11 * 3) * 4


def test_products_close_to_their_addition_and_small_operands_are_left_alone():
    close = traced(lambda a, b, c: (a @ b + c,), (64, 3), (3, 64), (64, 64))
    small = traced(lambda a, b, c, d: (a @ b + (c @ d) @ d,), (64, 3), (3, 64), (64, 64), (64, 64))
    assert separate_products(close) == separate_products(small) == 0
