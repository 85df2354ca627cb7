"""Measure once what a device sustains, as a preset for the cost model.

Each rate is the median of a few runs of the plainest work that shows it: a large matrix product for each dtype, a copy
of much more than any cache holds, a chain of multiply-adds that Inductor fuses into one kernel, attention, kernels that
write and read truth values, and one with nothing to do. What the vendors' data sheets say is a bound; this is what a
kernel gets.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rematpass.compiler.ops.device import device_name
from rematpass.core.hardware import Hardware, for_device
from rematpass.errors import MeasureError
from rematpass.lab.measure.memory_and_time import seconds_of
from rematpass.lab.models.build import usable

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_RUNS = 5
_CHAIN = {"cpu": 32, "cuda": 256}  # multiply-adds in one fused kernel: enough to outweigh its reads and writes
_LAUNCHES = 200


def calibrate(device: str = "cpu", *, on_stage: Callable[[str], None] = lambda _: None) -> Hardware:
    """The rates of ``device``, under its own name.

    Raises:
        MeasureError: there is no such device, or it does not have the memory for a matrix to multiply.
    """
    place = usable(device)
    large = place.type == "cuda"
    try:
        rates = []
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            on_stage(f"matrix products in {name}")
            rates.append((name, _matrix_rate(8192 if large else 1024, dtype, place)))
        attention = 1.0
        if large:
            on_stage("matrix products in tensorfloat32")
            with _rounding_to_tf32():
                rates.append(("tensorfloat32", _matrix_rate(8192, torch.float32, place)))
            on_stage("attention")
            attention = min(1.0, _attention_rate(place) / dict(rates)["bfloat16"])
        on_stage("memory")
        bandwidth = _bandwidth(2**30 if large else 2**28, place)
        on_stage("arithmetic")
        vector = _vector_rate(2**28 if large else 2**22, place)
        on_stage("masks")
        mask = vector * _mask_seconds(2**28 if large else 2**22, place)
        on_stage("kernels")
        launch = _launch_seconds(place)
    except torch.OutOfMemoryError as error:
        raise MeasureError(f"{device} has too little memory free to be measured: {error}") from None
    name = device_name(place) if large else f"cpu, {torch.get_num_threads()} threads"
    return Hardware(name, tuple(rates), vector, bandwidth, launch, attention, for_device(name).draw, mask)


def _median(run: Callable[[], object], device: torch.device) -> float:
    run()
    return statistics.median(seconds_of(run, device) for _ in range(_RUNS))


def _matrix_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    a = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _median(lambda: a @ a, device)


@contextmanager
def _rounding_to_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _attention_rate(device: torch.device) -> float:
    heads, length, width = 32, 4096, 64
    q = torch.randn(1, heads, length, width, dtype=torch.bfloat16, device=device)
    flops = 4 * heads * length * length * width
    return flops / _median(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q), device)


def _bandwidth(nbytes: int, device: torch.device) -> float:
    """Bytes per second, of those read and those written."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _median(lambda: target.copy_(source), device)


def _vector_rate(elements: int, device: torch.device) -> float:
    length = _CHAIN[device.type]

    def chain(x: torch.Tensor) -> torch.Tensor:
        y = x
        for _ in range(length):
            y = y * x + 0.5
        return y

    x = torch.zeros(elements, device=device)
    compiled = torch.compile(chain)
    with torch.no_grad():
        return 2 * length * elements / _median(lambda: compiled(x), device)


def _mask_seconds(elements: int, device: torch.device) -> float:
    """Of one truth value that a fused kernel writes or reads, beyond what a number in its place takes."""
    numbers = torch.zeros(elements, device=device)
    truths = numbers > 0

    def write(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x > 0

    def read(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, x, 0.5)

    def neither(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x + 0.5

    def seconds(of: Callable[..., torch.Tensor]) -> float:
        compiled = torch.compile(of)
        return _median(lambda: compiled(numbers, truths), device)

    with torch.no_grad():
        return max(0.0, (seconds(write) + seconds(read)) / 2 - seconds(neither)) / elements


def _launch_seconds(device: torch.device) -> float:
    x = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    return _median(launches, device) / _LAUNCHES
