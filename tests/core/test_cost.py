import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.graphs import Builder, chain, joint_graphs

from rematpass.core.cost import Costs, estimate, materialized
from rematpass.core.hardware import PRESETS, Hardware
from rematpass.core.op import Kind, Origin, Side

# Rates that make all seconds whole numbers: 1/3 s per FLOP in float32, 1/2 s per byte, 1000 s per launch.
SLOW = Hardware("slow", (("float32", 3.0), ("bfloat16", 33.0)), vector_flops=5.0, bandwidth=2.0, launch_seconds=1000.0)


def one_op(kind, nbytes_read, *sizes, output=True, **fields):
    b = Builder()
    x = b.input(nbytes_read)
    b.op([x], *sizes, kind=kind, nbytes_read=nbytes_read, **fields)
    return b.build([1] if output else [], [])


@pytest.mark.parametrize(
    "kind", [Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION, Kind.KERNEL, Kind.SCATTER, Kind.OPAQUE]
)
@pytest.mark.parametrize(
    ("flops", "dtype", "seconds"),
    [
        (9900, "float32", 1000 + 3300),
        (9900, "bfloat16", 1000 + 300),
        (9900, "int8", 1000 + 3300),  # at the slowest listed rate
        (
            33,
            "float32",
            1000 + (22 + 2 * 14) // 2,
        ),  # bound by bytes; each byte written counts twice: it is allocated and written
        (0, "float32", 1000 + (22 + 2 * 14) // 2),
    ],
)
def test_an_op_with_its_own_kernel_takes_a_launch_and_the_slower_of_arithmetic_and_bytes(kind, flops, dtype, seconds):
    graph = one_op(kind, 22, 14, flops=flops, dtype=dtype)
    assert estimate(graph, SLOW).run == (seconds,)


@pytest.mark.parametrize(
    "kind", [Kind.POINTWISE, Kind.REDUCTION, Kind.COPY, Kind.CREATE, Kind.INDEXING, Kind.RANDOM], ids=str
)
@pytest.mark.parametrize(
    ("nbytes_read", "nbytes_written", "flops"),
    [(220, 140, 220), (60, 140, 140)],  # 4 FLOP per element of the larger side, 4 bytes per element
)
def test_an_op_that_fuses_takes_its_arithmetic_and_its_writes_to_memory(kind, nbytes_read, nbytes_written, flops):
    to_memory = estimate(one_op(kind, nbytes_read, nbytes_written), SLOW)
    assert to_memory.run == (flops / 5 + nbytes_written,)
    inside = estimate(one_op(kind, nbytes_read, nbytes_written, output=False), SLOW)
    stays_inside = kind is not Kind.REDUCTION  # its result is complete only at the end of the kernel
    assert inside.run == (flops / 5 + (0 if stays_inside else nbytes_written),)


def test_a_seeded_random_number_takes_the_devices_draw_cost():
    graph = one_op(Kind.SEEDED, 8, 140, output=False)
    assert estimate(graph, SLOW).run == (35 * 4 / 5,)  # like any other element
    assert estimate(graph, dataclasses.replace(SLOW, draw=100.0)).run == (35 * 100 / 5,)


def test_arithmetic_on_sizes_is_free():
    assert estimate(one_op(Kind.SYMBOLIC, 22, 14, flops=99), SLOW).run == (0.0,)


def test_all_results_of_an_op_are_written():
    assert estimate(one_op(Kind.MATMUL, 10, 14, 6), SLOW).run == (1000 + (10 + 2 * 20) // 2,)
    assert estimate(one_op(Kind.POINTWISE, 10, 15, 7), SLOW).run == (
        22 / 5 + 15,
    )  # only the output is written to memory


def test_saving_costs_a_read_and_a_write_unless_the_value_is_materialized():
    b = Builder()
    x = b.input(10)
    inside = b.op([x], 14, kind=Kind.POINTWISE)
    out = b.op([inside], 22, kind=Kind.POINTWISE)
    tangent = b.input(26, Origin.TANGENT)
    graph = b.build([out], [b.op([tangent, inside], 34, kind=Kind.POINTWISE)])
    assert estimate(graph, SLOW).keep == (10 / 2, 14 / 2 * 2, 22 / 2, 26 / 2, 34 / 2)


def test_packing_bools_costs_time_where_the_device_says_so():
    b = Builder()
    x = b.input(10)
    inside, out = b.op([x], 14, 22, kind=Kind.POINTWISE)
    graph = b.build([out], [b.op([inside], 34, kind=Kind.POINTWISE)])
    values = tuple(dataclasses.replace(v, dtype="bool" if v.id in (inside, out) else "float32") for v in graph.values)
    graph = dataclasses.replace(graph, values=values)
    packs = dataclasses.replace(SLOW, mask=50.0)  # ten seconds per bool
    assert estimate(graph, packs).keep == (10 / 2, 2 * (14 / 2 + 140), 22 / 2 + 220, 34 / 2)
    assert estimate(graph, packs).run == (36 / 5 + 22 + 2 * 220, 34 / 5 + 34)  # only for the values in memory
    assert estimate(graph, SLOW).keep == (10 / 2, 2 * 14 / 2, 22 / 2, 34 / 2)


def test_a_step_runs_every_op_once():
    assert Costs(run=(3.0, 5.0, 11.0), keep=(7.0,)).step == 19.0


def test_materialized_values_are_at_kernel_boundaries():
    b = Builder()
    x = b.input(2)
    fused = b.op([x], 3, kind=Kind.POINTWISE)
    to_matmul = b.op([fused], 5, kind=Kind.POINTWISE)
    product = b.op([to_matmul], 7, kind=Kind.MATMUL)
    size = b.op([product], 0, kind=Kind.SYMBOLIC)
    total = b.op([product, size], 11, kind=Kind.REDUCTION)
    copied = b.op([total], 13, kind=Kind.COPY)
    out = b.op([copied], 17, kind=Kind.POINTWISE)
    tangent = b.input(17, Origin.TANGENT)
    in_backward = b.op([tangent], 19, kind=Kind.POINTWISE)
    gradient = b.op([in_backward], 23, kind=Kind.POINTWISE)
    graph = b.build([out], [gradient])
    assert materialized(graph) == {x, to_matmul, product, total, out, tangent, gradient}


@given(st.data())
def test_seconds_are_never_negative_and_grow_as_the_device_slows_down(data):
    graph = data.draw(joint_graphs(marks=()))
    fast, slow = (estimate(graph, PRESETS[name]) for name in ("h200", "a100"))
    for f, s in zip((*fast.run, *fast.keep), (*slow.run, *slow.keep), strict=True):
        assert 0 <= f <= s
    assert (len(fast.run), len(fast.keep)) == (len(graph.ops), len(graph.values))


def test_a_pointwise_op_is_cheaper_to_recompute_than_a_matmul():
    pointwise, matmul = (estimate(chain(2, 2**20, kind), PRESETS["h200"]) for kind in (Kind.POINTWISE, Kind.MATMUL))
    forward = [op for op, side in enumerate(chain(2).sides) if side is Side.FORWARD]
    assert pointwise.run[forward[0]] < matmul.run[forward[0]]
