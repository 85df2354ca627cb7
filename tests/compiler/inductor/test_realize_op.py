"""A value that is written on purpose: what Inductor makes of it, and that it changes no number."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from rematpass.compiler import _torch
from rematpass.compiler.inductor import scheduler_pass
from rematpass.compiler.inductor.dry_run import dry_run
from rematpass.compiler.inductor.realize_op import REALIZE


def two_terms(write):
    """The sum of two products is read at the end, after a chain; nobody else wants the products."""

    def f(a, b, w, *chain):
        total = (a @ w) * 2 + (b @ w) * 3
        total = REALIZE(total) if write else total
        g = a
        for c in chain:
            g = torch.tanh(g @ c)
        return torch.cos(total) @ chain[0], torch.sin(total) * g

    return f


SHAPES = [(64, 5), (64, 5), (5, 5), (5, 5), (5, 5)]


def peaks(write):
    module = make_fx(two_terms(write), tracing_mode="fake")(*(torch.empty(s) for s in SHAPES))
    inputs = [n.meta["val"] for n in module.graph.find_nodes(op="placeholder")]
    with _torch.inductor_config.patch(scheduler_pass.config_patches()):
        found = dry_run(module, inputs, is_backward=True)
    return {moment.name: moment.nbytes for moment in found.timeline}


def test_one_buffer_waits_instead_of_two():
    term = 64 * 5 * 4
    inlined, written = peaks(False), peaks(True)
    assert inlined["mm_2"] - written["mm_2"] == term


def test_it_is_the_same_value_in_eager_and_in_inductor():
    inputs = [torch.randn(s) for s in SHAPES]
    expected = two_terms(False)(*inputs)
    for found in (two_terms(True)(*inputs), torch.compile(two_terms(True))(*inputs)):
        torch.testing.assert_close(found, expected)
    assert torch.equal(two_terms(True)(*inputs)[0], expected[0])


def test_its_result_is_no_view():
    x = torch.randn(3)
    assert REALIZE(x).data_ptr() != x.data_ptr()
