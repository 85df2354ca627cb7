"""Estimated against measured seconds of the ops that run as kernels of their own: ``python benchmarks/costs.py``.

For each model and for all together the page lists the number of different calls, the rank correlation (Spearman's) of
estimated and measured seconds, and the median of their quotient. The ranks decide what is worth saving. Plans use the
roofline's estimates or, with ``REMAT_COST=measure``, measured seconds.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.joint_graph import captured, inspect_joint

from rematpass.compiler import devices
from rematpass.compiler.capture.measured_cost import seconds_of_call, timed_calls
from rematpass.core import hardware
from rematpass.core.cost import estimate
from rematpass.lab.models.build import build
from rematpass.report.atomic import write_text

HERE = Path(__file__).parent
Pairs = dict[str, tuple[float, float, int]]


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", default="llama,gpt2,vit,resnet50,mlp", metavar="LIST", help="models of the catalog")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument(
        "--hardware", default="", metavar="NAME", help="a preset, or a file that rematpass calibrate wrote"
    )
    made.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR", help="directory of the page")
    arguments = made.parse_args(argv)
    found = {name: pairs_of(name, arguments.device, arguments.hardware) for name in arguments.models.split(",")}
    device = devices.usable(arguments.device)
    page = arguments.results / f"costs_{device.type}_{datetime.date.today().isoformat()}.md"
    write_text(page, text(found, arguments.hardware or "the preset of the device"))
    print(page.read_text())
    return 0


def pairs_of(name: str, device: str, preset: str) -> Pairs:
    """For each different call: its estimated seconds, its measured seconds, and how often the model makes it."""
    model = build(name, device=device, seed=0)
    place = devices.usable(device)
    found: Pairs = {}

    def inspect(joint: Any, _: Any, kwargs: Any) -> None:
        ours = captured(joint, kwargs)
        chosen = hardware.preset(preset) if preset else hardware.for_device(ours.graph.device)
        costs = estimate(ours.graph, chosen)
        for op, call in timed_calls(ours).items():
            if call.key in found:
                found[call.key] = (*found[call.key][:2], found[call.key][2] + 1)
            else:
                found[call.key] = (costs.run[op], seconds_of_call(call, place), 1)

    inspect_joint(model.module, model.step, inspect)
    return found


def spearman(pairs: Pairs) -> float:
    """The correlation of ranks, each call weighted by its number; nan if all estimates are equal."""
    if len({estimated for estimated, _, _ in pairs.values()}) < 2:
        return float("nan")
    estimated, measured = (np.repeat([p[i] for p in pairs.values()], [p[2] for p in pairs.values()]) for i in (0, 1))
    return float(np.corrcoef(_ranks(estimated), _ranks(measured))[0, 1])


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks; equal numbers share their mean rank."""
    _, inverse, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return mean


def text(found: dict[str, Pairs], preset: str) -> str:
    today = datetime.date.today().isoformat()
    together = {f"{name} {key}": pair for name, pairs in found.items() for key, pair in pairs.items()}
    lines = [
        f"# Estimated against measured seconds of ops ({today})",
        "",
        f"Made by `python benchmarks/costs.py`; estimates from {preset}; ops that run as kernels of their own.",
        "",
        "| model | different calls | calls | rank correlation | measured / estimated, median | quartiles |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in {**found, "all": together}.items():
        quotients = [measured / estimated for estimated, measured, n in pairs.values() for _ in range(n)]
        low, _, high = statistics.quantiles(quotients, n=4)
        lines.append(
            f"| {name} | {len(pairs)} | {len(quotients)} | {spearman(pairs):.3f} "
            f"| {statistics.median(quotients):.2f} | {low:.2f} to {high:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
