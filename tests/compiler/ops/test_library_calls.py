"""Which calls are handed to a library: what Inductor itself decides for each of them."""

import pytest
import torch
from support.nodes import called

from rematpass.compiler.ops import library_calls
from rematpass.compiler.ops.library_calls import is_library_call
from rematpass.compiler.ops.traits import traits_of
from rematpass.core.op import Kind

aten = torch.ops.aten
X, ROWS = torch.ones(6, 5), torch.zeros(6, 5, dtype=torch.int64)
Z = torch.ones(6, 5, dtype=torch.complex64)

HANDED_OVER = {
    "product": lambda: called(aten.mm.default, X, X.T),
    "transform": lambda: called(aten._fft_r2c.default, X, [1], 0, True),
    "sort": lambda: called(aten.sort.stable, X, stable=True),
    "cumulative sum": lambda: called(aten.cumsum.default, X, 1),
    "median": lambda: called(aten.median.dim, X, 1),
    "sums into rows": lambda: called(aten.scatter_add.default, X, 0, ROWS, X),
    "no lowering": lambda: called(aten.linalg_matrix_exp.default, X[:5]),
    "complex": lambda: called(aten.mul.Tensor, Z, Z),
    "from complex": lambda: called(aten.abs.default, Z),
}
LOOPS = {
    "pointwise": lambda: called(aten.mul.Tensor, X, X),
    "reduction": lambda: called(aten.sum.dim_IntList, X, [1]),
    "gather": lambda: called(aten.gather.default, X, 0, ROWS),
    "writes into rows": lambda: called(aten.scatter.src, X, 0, ROWS, X),
    "copy": lambda: called(aten.cat.default, [X, X]),
}


@pytest.mark.parametrize("name", HANDED_OVER)
def test_inductor_hands_it_to_a_library(name):
    node = HANDED_OVER[name]()
    assert is_library_call(node)
    assert is_library_call(node, fuse=False)


@pytest.mark.parametrize("name", LOOPS)
def test_inductor_writes_loops_for_it(name):
    assert not is_library_call(LOOPS[name]())


def test_without_inductor_all_but_element_by_element_may_take_workspace():
    assert {name: is_library_call(make(), fuse=False) for name, make in LOOPS.items()} == {
        "pointwise": False,
        "reduction": True,
        "gather": True,
        "writes into rows": True,
        "copy": False,
    }


def test_the_ops_of_others_are_never_called():
    assert not is_library_call(called(torch.ops.rematpass_tests.opaque.default, X))
    assert not is_library_call(called(torch.add, X, X))


def test_a_call_is_lowered_once(monkeypatch):
    lowered = []
    monkeypatch.setattr(library_calls, "_known", {})
    monkeypatch.setattr(library_calls, "_is_extern", lambda call: lowered.append(call.key) or True)
    assert [is_library_call(called(aten.sort.stable, X, stable=True)) for _ in range(3)] == [True] * 3
    assert len(lowered) == 1


def test_a_lowering_that_fails_leaves_the_kind_to_decide(monkeypatch):
    monkeypatch.setattr(library_calls, "_known", {})
    monkeypatch.setattr(library_calls, "_is_extern", lambda call: 1 / 0)
    assert is_library_call(called(aten.sort.stable, X, stable=True))
    assert not is_library_call(called(aten.cumsum.default, X, 1))


def test_what_a_library_runs_is_a_kernel_by_itself():
    assert traits_of(HANDED_OVER["complex"]()).kind is Kind.KERNEL
    assert traits_of(HANDED_OVER["cumulative sum"]()).kind is Kind.KERNEL
    assert traits_of(LOOPS["pointwise"]()).kind is Kind.POINTWISE
    assert traits_of(HANDED_OVER["complex"](), fuse=False).kind is Kind.POINTWISE
