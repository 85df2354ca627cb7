"""All that the core knows about devices by their names: rates for the cost model, and facts for the simulator.

The rates of presets are the peak figures of the vendors' data sheets (dense, without sparsity), scaled by the part that
large kernels reach in practice: 0.7 of arithmetic, 0.8 of bandwidth. ``rematpass calibrate`` measures them instead.

To add a kind of device, add a preset to ``PRESETS`` and an entry to ``_FACTS``.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from rematpass.config import unknown
from rematpass.errors import ConfigError

_ARITHMETIC, _BANDWIDTH = 0.7, 0.8  # the part of the data sheet's rate that large kernels reach
FLOPS_PER_ELEMENT = 4.0  # FLOP per element of a fused pointwise op: between an addition and a transcendental function


@dataclass(frozen=True)
class Hardware:
    """Sustained rates of one device: a preset, or a file that ``rematpass calibrate`` writes, with the same fields."""

    name: str
    flops: tuple[tuple[str, float], ...]  # FLOP/s of matrix work, by dtype
    vector_flops: float  # FLOP/s of all other arithmetic
    bandwidth: float  # bytes/s of main memory
    launch_seconds: float  # seconds that one more kernel costs, however small
    attention: float = 1.0  # part of the matrix rate that attention kernels reach: a softmax separates their products
    draw: float = FLOPS_PER_ELEMENT  # FLOP of ``vector_flops`` per random number drawn from a seed
    mask: float = 0.0  # FLOP of ``vector_flops`` per bool that a fused kernel writes or reads, besides its byte

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s of matrix work in ``dtype``; a dtype that is not listed runs at the slowest listed rate.

        ``tensorfloat32`` is float32 rounded for the matrix units; on a device without its rate, it is float32.
        """
        rates = dict(self.flops)
        if dtype == "tensorfloat32" and dtype not in rates:
            dtype = "float32"
        return rates.get(dtype, min(rates.values()))

    def to_json(self) -> str:
        """A JSON document that ``preset`` reads from a file."""
        return json.dumps({**dataclasses.asdict(self), "flops": dict(self.flops)}, indent=2) + "\n"


def _gpu(name: str, *, half: float, single: float, fp8: float | None, bandwidth: float) -> Hardware:
    """A preset from the data sheet's figures, in TFLOP/s and GB/s. TF32 runs at half the rate of 16 bits.

    ``attention``: measured on an H200 (cuDNN with a mask, forward and backward). ``draw``: Philox takes ten rounds of
    about ten integer instructions, at half the rate of float32: about ten times as long as reading a mask of bools.
    (Plans of GPT-2 medium on an H200 that draw dropout's masks again take up to a third longer than their products
    explain.)
    """
    rates = {"bfloat16": half, "float16": half, "tensorfloat32": half / 2, "float32": single, "float64": single / 2}
    if fp8 is not None:
        rates |= {"float8_e4m3fn": fp8, "float8_e5m2": fp8}
    return Hardware(
        name=name,
        flops=tuple((dtype, rate * 1e12 * _ARITHMETIC) for dtype, rate in rates.items()),
        vector_flops=single * 1e12 * _ARITHMETIC,
        bandwidth=bandwidth * 1e9 * _BANDWIDTH,
        launch_seconds=2e-6,
        attention=0.35,
        draw=400.0,
    )


PRESETS = {
    preset.name: preset
    for preset in (
        _gpu("h200", half=989, single=67, fp8=1979, bandwidth=4800),
        _gpu("h100", half=989, single=67, fp8=1979, bandwidth=3350),
        _gpu("a100", half=312, single=19.5, fp8=None, bandwidth=2039),
        _gpu("l4", half=121, single=30, fp8=242, bandwidth=300),
        _gpu("rtx4090", half=165, single=83, fp8=330, bandwidth=1008),
        Hardware(
            name="cpu",
            flops=(("float32", 1.0e11), ("bfloat16", 1.0e11), ("float64", 5.0e10)),
            vector_flops=6.0e10,
            bandwidth=1.2e10,
            launch_seconds=2e-6,
            # Vectors of numbers become bools one by one: writing 2.1 million of them takes 9 ms with two threads and
            # reading 3.4 ms; as many floats take 0.1 and 0.3 ms.
            mask=150.0,
        ),
    )
}


def preset(name: str) -> Hardware:
    """The preset called ``name``, or the one in the file ``name`` if it ends in ``.json``.

    Raises:
        ConfigError: no preset has this name (the message lists all names), or the file does not contain one.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    try:
        return PRESETS[name.lower()]
    except KeyError:
        reason = unknown(name, "hardware", sorted(PRESETS))
        raise ConfigError(f"{reason}, or a .json file that rematpass calibrate wrote") from None


def _from_file(path: Path) -> Hardware:
    try:
        fields = json.loads(path.read_text())
        flops = tuple((str(dtype), float(rate)) for dtype, rate in fields.pop("flops").items())
        numbers = {k: float(fields.pop(k)) for k in ("vector_flops", "bandwidth", "launch_seconds")}
        optional = ("attention", "draw", "mask")  # missing in old files
        numbers |= {k: float(fields.pop(k)) for k in optional if k in fields}
        found = Hardware(name=str(fields.pop("name")), flops=flops, **numbers)
    except OSError as error:
        raise ConfigError(f"cannot read the hardware preset {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is not a hardware preset as rematpass calibrate writes it: {error!r}") from None
    if (
        not flops
        or min(found.vector_flops, found.bandwidth, found.attention, found.draw, *dict(flops).values()) <= 0
        or min(found.launch_seconds, found.mask) < 0
    ):
        raise ConfigError(f"{path} is not a hardware preset: rates must be above 0, costs must not be below 0")
    return found


def for_device(description: str) -> Hardware:
    """The preset for a device as torch describes it ("cpu", "NVIDIA H200"); an A100's for an unknown GPU."""
    words = re.split(r"[^a-z0-9]+", description.lower())
    words += [word[1:] for word in words if word.startswith("gh")]  # a GH200 contains an H200
    words += [first + second for first, second in itertools.pairwise(words)]  # "RTX 4090"
    return next((PRESETS[word] for word in words if word in PRESETS), PRESETS["a100"])


@dataclass(frozen=True)
class DeviceFacts:
    """What planning assumes about the allocator and the compiler of one kind of device."""

    # A planned peak must leave one part in this many of a budget in bytes to the allocator. A GPU's allocator counts
    # more than it is asked for where it does not split a block; a CPU's adds a few bytes.
    budget_parts: int
    # A value whose computation reads more buffers than this is written to memory instead of being computed in its one
    # reader; sums that grow term by term reach this. Source: torch._inductor.config.realize_acc_reads_threshold.
    most_sources_for_one: int


_FACTS = {"cpu": DeviceFacts(budget_parts=1000, most_sources_for_one=12)}  # by the beginning of the device's name
_GPU_FACTS = DeviceFacts(budget_parts=100, most_sources_for_one=8)


def device_facts(description: str) -> DeviceFacts:
    """The facts of a device as torch describes it ("cpu", "NVIDIA H200"); every other name is a GPU's."""
    return next((facts for kind, facts in _FACTS.items() if description.startswith(kind)), _GPU_FACTS)
