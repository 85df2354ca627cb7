"""Measure the rates that a device sustains, as a preset for the cost model.

Each rate is the median of a few runs of simple work: a large matrix product for each dtype, a copy that exceeds every
cache, a chain of multiply-adds that Inductor fuses into one kernel, attention, kernels that write and read booleans,
and a kernel without work. Data sheets give upper bounds; these are the rates that kernels reach.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from rematpass.compiler import devices
from rematpass.compiler.devices.base import CalibrationSizes
from rematpass.core.hardware import Hardware, for_device
from rematpass.errors import MeasureError
from rematpass.lab.measure.memory_and_time import seconds_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_RUNS = 5
_LAUNCHES = 200


def calibrate(device: str = "cpu", *, on_stage: Callable[[str], None] = lambda _: None) -> Hardware:
    """The measured rates of ``device``. ``on_stage`` is called with a description of each measurement.

    Raises:
        MeasureError: the device cannot be used, or has too little free memory.
    """
    place = devices.usable(device)
    kind = devices.of(place)
    sizes = kind.calibration
    try:
        rates = []
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            on_stage(f"matrix products in {name}")
            rates.append((name, _matrix_rate(sizes.matrix, dtype, place)))
        attention = 1.0
        if sizes.tf32:
            on_stage("matrix products in tensorfloat32")
            with _rounding_to_tf32():
                rates.append(("tensorfloat32", _matrix_rate(sizes.matrix, torch.float32, place)))
        if sizes.attention:
            on_stage("attention")
            attention = min(1.0, _attention_rate(place) / dict(rates)["bfloat16"])
        on_stage("memory")
        bandwidth = _bandwidth(sizes.copied_nbytes, place)
        on_stage("arithmetic")
        vector = _vector_rate(sizes, place)
        on_stage("masks")
        mask = vector * _mask_seconds(sizes.elements, place)
        on_stage("kernels")
        launch = _launch_seconds(place)
    except torch.OutOfMemoryError as error:
        raise MeasureError(f"{device} has too little free memory to be measured: {error}") from None
    name = kind.label(place)
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
    """Bytes read and written per second."""
    source = torch.zeros(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * nbytes / _median(lambda: target.copy_(source), device)


def _vector_rate(sizes: CalibrationSizes, device: torch.device) -> float:
    def chain(x: torch.Tensor) -> torch.Tensor:
        y = x
        for _ in range(sizes.chain):
            y = y * x + 0.5
        return y

    x = torch.zeros(sizes.elements, device=device)
    compiled = torch.compile(chain)
    with torch.no_grad():
        return 2 * sizes.chain * sizes.elements / _median(lambda: compiled(x), device)


def _mask_seconds(elements: int, device: torch.device) -> float:
    """Seconds per boolean that a fused kernel writes or reads, beyond those for a float32 in its place."""
    numbers = torch.zeros(elements, device=device)
    booleans = numbers > 0

    def write(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x > 0

    def read(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, x, 0.5)

    def neither(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return x + 0.5

    def seconds(of: Callable[..., torch.Tensor]) -> float:
        compiled = torch.compile(of)
        return _median(lambda: compiled(numbers, booleans), device)

    with torch.no_grad():
        return max(0.0, (seconds(write) + seconds(read)) / 2 - seconds(neither)) / elements


def _launch_seconds(device: torch.device) -> float:
    x = torch.zeros(1, device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            x.add_(1)

    return _median(launches, device) / _LAUNCHES
