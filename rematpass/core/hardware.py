"""What a device can do in a second: the few numbers a roofline needs.

Peak figures are the vendors' data sheets' (dense, without sparsity), scaled by what large kernels reach in practice:
0.7 of arithmetic, 0.8 of bandwidth. ``rematpass calibrate``'s measurements replace them where a machine is at hand.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

from rematpass.errors import ConfigError

_ARITHMETIC, _BANDWIDTH = 0.7, 0.8
# Arithmetic of one element of a fused pointwise op, in FLOP: between an addition and a transcendental function.
FLOPS_PER_ELEMENT = 4.0


@dataclass(frozen=True)
class Hardware:
    """Sustained rates of one device.

    ``flops``: FLOP/s of matrix work, by dtype; ``vector_flops``: FLOP/s of everything else; ``bandwidth``: bytes/s of
    main memory; ``launch_seconds``: what one more kernel costs, however small; ``attention``: the part of the matrix
    rate that attention kernels reach, whose softmax stands between two products; ``draw``: what one random number from
    a seed takes, in FLOP of ``vector_flops``; ``mask``: the same of one truth value, when a fused kernel writes it to
    memory or reads it there, beyond its byte.
    """

    name: str
    flops: tuple[tuple[str, float], ...]
    vector_flops: float
    bandwidth: float
    launch_seconds: float
    attention: float = 1.0
    draw: float = FLOPS_PER_ELEMENT
    mask: float = 0.0

    def matrix_rate(self, dtype: str) -> float:
        """FLOP/s for matrix work in ``dtype``; a dtype not listed runs like the slowest listed one.

        ``tensorfloat32`` is float32 rounded for the matrix units; where there are none, it is float32.
        """
        rates = dict(self.flops)
        if dtype == "tensorfloat32" and dtype not in rates:
            dtype = "float32"
        return rates.get(dtype, min(rates.values()))

    def to_json(self) -> str:
        """A JSON document that ``preset`` reads from a file."""
        return json.dumps({**dataclasses.asdict(self), "flops": dict(self.flops)}, indent=2) + "\n"


def _gpu(name: str, *, half: float, single: float, fp8: float | None, bandwidth: float) -> Hardware:
    """Data-sheet figures in TFLOP/s and GB/s; TF32 runs at half the rate of 16 bits.

    Attention: 0.35 of a matrix product's rate were measured on an H200 (cuDNN's with a mask, forward and backward). A
    draw is Philox's ten rounds of about ten integer instructions each, at half of float32's lanes: some ten times what
    reading a mask of truth values takes. (On an H200 every plan of a GPT-2 medium that drew dropout's masks anew,
    torch's among them, took longer than its products explain, by a third where none ran again. On a CPU saving the
    masks was no faster: 0.94 of Inductor's seconds, against 0.89 with masks drawn again.)
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
            # Vectors of numbers become truth values one by one: 2.1 million, by two threads, took 9 ms to write and
            # 3.4 ms to read, where as many floats took 0.1 and 0.3. A ResNet-50 that saves the mask of its first ReLU
            # took 1.02 times as long as by Inductor alone, and 0.96 where it does not.
            mask=150.0,
        ),
    )
}


def preset(name: str) -> Hardware:
    """The preset called ``name``, or the one in the file of this name (it ends in ``.json``).

    Raises:
        ConfigError: there is none of that name, and the message lists those there are; or the file holds none.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    try:
        return PRESETS[name.lower()]
    except KeyError:
        raise ConfigError(
            f"unknown hardware {name!r}; valid names are {', '.join(sorted(PRESETS))}, or a file of rematpass calibrate"
        ) from None


def _from_file(path: Path) -> Hardware:
    try:
        fields = json.loads(path.read_text())
        flops = tuple((str(dtype), float(rate)) for dtype, rate in fields.pop("flops").items())
        numbers = {k: float(fields.pop(k)) for k in ("vector_flops", "bandwidth", "launch_seconds")}
        newer = ("attention", "draw", "mask")  # than some files
        numbers |= {k: float(fields.pop(k)) for k in newer if k in fields}
        found = Hardware(name=str(fields.pop("name")), flops=flops, **numbers)
    except OSError as error:
        raise ConfigError(f"cannot read the hardware preset {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no hardware preset as rematpass calibrate writes it: {error!r}") from None
    if (
        not flops
        or min(found.vector_flops, found.bandwidth, found.attention, found.draw, *dict(flops).values()) <= 0
        or min(found.launch_seconds, found.mask) < 0
    ):
        raise ConfigError(f"{path} is no hardware preset: a rate is not above 0, or a cost below it")
    return found


def for_device(description: str) -> Hardware:
    """The preset for a device as torch describes it ("cpu", "NVIDIA H200"); an unknown GPU is taken for an A100."""
    words = re.split(r"[^a-z0-9]+", description.lower())
    words += [word[1:] for word in words if word.startswith("gh")]  # an H200 beside a Grace
    words += [first + second for first, second in itertools.pairwise(words)]  # "RTX 4090"
    return next((PRESETS[word] for word in words if word in PRESETS), PRESETS["a100"])
