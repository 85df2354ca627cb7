"""A realized value is one buffer in Inductor, and no number changes."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass.compiler import _torch
from rematpass.compiler.inductor import scheduler_pass
from rematpass.compiler.inductor.dry_run import dry_run
from rematpass.compiler.inductor.realize_op import REALIZE


def two_terms(realize):
    """The sum of two products is read at the end, after a chain; nothing else reads the products."""

    def f(a, b, w, *chain):
        total = (a @ w) * 2 + (b @ w) * 3
        total = REALIZE(total) if realize else total
        g = a
        for c in chain:
            g = torch.tanh(g @ c)
        return torch.cos(total) @ chain[0], torch.sin(total) * g

    return f


SHAPES = [(64, 5), (64, 5), (5, 5), (5, 5), (5, 5)]


def peaks(realize):
    module = make_fx(two_terms(realize), tracing_mode="fake")(*(torch.empty(s) for s in SHAPES))
    scheduler_pass.follow_plan(module)
    inputs = [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]
    with _torch.inductor_config.patch(scheduler_pass.config_patches()):
        found = dry_run(module, inputs, is_backward=True)
    return {entry.name: entry.nbytes for entry in found.timeline}


def test_one_buffer_is_alive_instead_of_two():
    term = 64 * 5 * 4
    inlined, realized = peaks(False), peaks(True)
    assert inlined["mm_2"] - realized["mm_2"] == term


def test_the_value_is_the_same_in_eager_mode_and_in_inductor():
    inputs = [torch.randn(s) for s in SHAPES]
    expected = two_terms(False)(*inputs)
    for found in (two_terms(True)(*inputs), torch.compile(two_terms(True))(*inputs)):
        torch.testing.assert_close(found, expected)
    assert torch.equal(two_terms(True)(*inputs)[0], expected[0])


def test_the_result_is_not_a_view():
    x = torch.randn(3)
    assert REALIZE(x).data_ptr() != x.data_ptr()
