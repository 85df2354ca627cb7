"""Which copies take bytes under a fusing compiler, on graphs that show one rule each."""

import dataclasses

import pytest
from support.graphs import Builder, in_sequence, no_costs

from rematpass.core.materialization import materialization
from rematpass.core.op import Kind, Origin
from rematpass.core.simulate import simulate
from rematpass.core.solve.schedule_late import schedule_late


def peaks(graph, saved=()):
    """The peak of a plan without and with fusion."""
    plan = schedule_late(graph, saved, "s")
    return tuple(simulate(graph, plan, no_costs(graph), fuse=fuse).peak for fuse in (False, True))


def test_a_virtual_copy_takes_no_bytes_but_its_source_lives_on():
    graph = in_sequence((Kind.MATMUL, 97), (Kind.POINTWISE, 11), (Kind.POINTWISE, 13))
    assert peaks(graph) == (97 + 11, 97 + 13)


@pytest.mark.parametrize(
    ("maker", "reader"),
    [
        (Kind.MATMUL, Kind.POINTWISE),
        (Kind.POINTWISE, Kind.MATMUL),
        (Kind.KERNEL, Kind.KERNEL),
        (Kind.REDUCTION, Kind.POINTWISE),  # the reader waits for the complete sum
    ],
)
def test_copies_at_a_kernel_boundary_take_bytes(maker, reader):
    graph = in_sequence((maker, 97), (reader, 89))
    assert peaks(graph) == (97 + 89, 97 + 89)


def test_an_argument_of_a_reduction_is_computed_inside_its_kernel():
    graph = in_sequence((Kind.POINTWISE, 97), (Kind.REDUCTION, 89))
    assert peaks(graph) == (97 + 89, 89 + 3)


def test_a_saved_copy_takes_bytes_even_if_it_fuses():
    b = Builder()
    x = b.input(2)
    inside = b.op([x], 89, kind=Kind.POINTWISE)
    out = b.op([inside], 13, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, inside], 3, kind=Kind.POINTWISE)])
    assert peaks(graph, [inside]) == (89 + 13 + 3, 89 + 13 + 3)
    assert peaks(graph, [x]) == (89 + 13 + 3, 13 + 3)  # recomputed inside the kernel that reads it


def test_outputs_of_both_sides_take_bytes_even_if_they_fuse():
    b = Builder()
    x = b.input(2)
    out = b.op([x], 89, kind=Kind.POINTWISE)
    also = b.op([out], 13, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    gradient = b.op([tangent], 7, kind=Kind.POINTWISE)
    graph = b.build([out, also], [gradient, b.op([gradient], 5, kind=Kind.POINTWISE)])
    assert peaks(graph) == (89 + 13 + 7 + 5, 89 + 13 + 7 + 5)


def sum_of(count, nbytes, readers=1, device="cpu", elsewhere=0):
    """The sum, of ``nbytes`` bytes, of ``count`` products of 11 bytes; pointwise ops read it after another product.

    ``elsewhere``: how many of the products are not read element by element. Returns the graph and the id of the sum.
    """
    b = Builder()
    x = b.input(2)
    terms = [b.op([x], 11) for _ in range(count)]
    total = b.op(terms, nbytes, kind=Kind.POINTWISE, reads_elsewhere=tuple(terms[:elsewhere]))
    later = b.op([x], 3)
    outputs = [b.op([total, later], 5, kind=Kind.POINTWISE) for _ in range(readers)]
    tangent = b.input(0, Origin.TANGENT)
    graph = b.build(outputs, [b.op([tangent], 3)])
    return dataclasses.replace(graph, device=device), total


def in_memory(graph, value, *, fuse=True):
    """Whether the copy of ``value`` is in memory, and the copies that are realized on purpose."""
    found = materialization(graph, schedule_late(graph, [], "s"), fuse=fuse)
    (copy,) = (found.trace.value == value).nonzero()[0]
    return bool(found.in_memory[copy]), found.realized_pairs


@pytest.mark.parametrize(
    ("nbytes", "elsewhere", "realized"),
    [
        (11, 0, True),  # written over one of the terms, it frees the other
        (11, 1, True),
        (11, 2, False),  # written beside both, it takes 11 bytes then, to free 11 later
        (10, 0, True),
        (12, 0, False),
    ],
)
def test_a_copy_is_realized_if_its_sources_take_twice_its_bytes(nbytes, elsewhere, realized):
    graph, total = sum_of(2, nbytes, elsewhere=elsewhere)
    assert in_memory(graph, total) == (realized, ((total, 0),) if realized else ())
    assert in_memory(graph, total, fuse=False) == (True, ())


@pytest.mark.parametrize("origin", [Origin.TANGENT, Origin.INPUT])
def test_a_copy_that_could_only_overwrite_an_argument_of_the_step_is_not_realized(origin):
    b = Builder()
    x = b.input(2)
    out = b.op([x], 3)
    tangent = b.input(0, Origin.TANGENT)
    total = b.op([b.input(11, origin), b.op([tangent], 10)], 11, kind=Kind.POINTWISE)
    graph = b.build([out], [b.op([total, b.op([x, tangent], 5)], 3, kind=Kind.POINTWISE)])
    assert in_memory(graph, total) == (False, ())


def test_what_is_always_written_is_in_memory():
    b = Builder()
    value = b.op([b.op([b.input(2)], 97)], 11, kind=Kind.POINTWISE, always_written=True)
    graph = b.build([b.op([value], 5, kind=Kind.POINTWISE)], [b.op([b.input(0, Origin.TANGENT)], 3)])
    assert in_memory(graph, value) == (True, ())


@pytest.mark.parametrize(("readers", "expected"), [(1, False), (2, True)])
@pytest.mark.parametrize("through", [False, True])
def test_a_copy_that_is_slow_to_repeat_is_in_memory_if_it_has_several_readers(readers, expected, through):
    """On a CPU, Inductor writes ``exp(x)``, and ``exp(x) + 1`` as well."""
    b = Builder()
    value = b.op([b.op([b.input(2)], 97)], 11, kind=Kind.POINTWISE, slow_to_repeat=True)
    if through:
        value = b.op([value], 11, kind=Kind.POINTWISE)
    outputs = [b.op([value], 5, kind=Kind.POINTWISE) for _ in range(readers)]
    graph = b.build(outputs, [b.op([b.input(0, Origin.TANGENT)], 3)])
    assert in_memory(graph, value) == (expected, ())


def test_sources_that_are_read_later_anyway_do_not_count():
    b = Builder()
    x = b.input(2)
    terms = [b.op([x], 11), b.op([x], 11)]
    total = b.op(terms, 13, kind=Kind.POINTWISE)
    later = b.op([x, terms[0]], 3)
    out = b.op([total, later], 5, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    assert in_memory(b.build([out], [b.op([tangent], 3)]), total) == (False, ())


@pytest.mark.parametrize(
    ("device", "readers", "most"), [("cpu", 1, 12), ("NVIDIA H200", 1, 8), ("cpu", 2, 4), ("NVIDIA H200", 2, 4)]
)
def test_a_copy_with_many_sources_is_in_memory(device, readers, most):
    for count, expected in ((most, False), (most + 1, True)):
        graph, total = sum_of(count, 1000, readers, device)
        assert in_memory(graph, total) == (expected, ())


@pytest.mark.parametrize(("between", "expected"), [((), False), ((Kind.MATMUL,), True)])
def test_random_numbers_are_in_memory_only_if_another_kernel_reads_them(between, expected):
    b = Builder()
    seed, x = b.input(2), b.input(3)
    drawn = b.op([seed], 97, kind=Kind.SEEDED)
    factor = x
    for kind in between:
        factor = b.op([factor], 5, kind=kind)
    out = b.op([drawn, factor], 7, kind=Kind.POINTWISE)
    tangent = b.input(0, Origin.TANGENT)
    assert in_memory(b.build([out], [b.op([tangent], 3)]), drawn) == (expected, ())
