"""``rematpass calibrate``: measure what this machine sustains, as a hardware preset for the cost model."""

from __future__ import annotations

import argparse
from pathlib import Path

from rematpass.commands.arguments import Commands, add_command
from rematpass.core.hardware import Hardware
from rematpass.report.atomic import replacing

_EXAMPLES = """examples:
  rematpass calibrate --output here.json
  REMAT_HARDWARE=here.json python train.py          plan for this machine
  rematpass plan gpt.graph.json --device here.json
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "calibrate",
        help="measure what this machine sustains, for the cost model",
        description="Measure matrix products, memory and arithmetic of a device, in about half a minute, and write a "
        "hardware preset. The cost model uses it if REMAT_HARDWARE names the file.",
        examples=_EXAMPLES,
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the file for the preset (default: only print it)")
    parser.set_defaults(run=_run)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from rematpass.lab.models.names import check_device

    check_device(arguments.device)

    from rich.console import Console

    from rematpass.lab.measure.calibrate import calibrate

    console = Console()
    with console.status("measuring") as status:
        found = calibrate(arguments.device, on_stage=lambda stage: status.update(f"measuring {stage}"))
    console.print(table(found))
    if arguments.output:
        with replacing(arguments.output) as file:
            file.write_text(found.to_json())
        console.print(f"wrote {arguments.output}; to use it, set REMAT_HARDWARE={arguments.output}", soft_wrap=True)
    return 0


def table(found: Hardware) -> object:
    """The rates as a table."""
    from rich.table import Table

    made = Table(title=found.name, show_header=False)
    for dtype, rate in found.flops:
        made.add_row(f"matrix products, {dtype}", f"{rate / 1e9:,.1f} GFLOP/s")
    made.add_row("other arithmetic", f"{found.vector_flops / 1e9:,.1f} GFLOP/s")
    made.add_row("memory", f"{found.bandwidth / 1e9:,.1f} GB/s")
    made.add_row("a boolean, written or read", f"{found.mask / found.vector_flops * 1e9:.2f} ns")
    made.add_row("a kernel launch", f"{found.launch_seconds * 1e6:.1f} us")
    return made
