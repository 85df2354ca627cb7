"""``rematpass demo``: train a small GPT with and without a budget, and measure both."""

from __future__ import annotations

import argparse

from rematpass.commands.arguments import BUDGETS, Commands, add_command, whole_number
from rematpass.config import Config

_EXAMPLES = """examples:
  rematpass demo                       a budget of 0.25, on the CPU
  rematpass demo --budget 80MiB        a peak of at most 80 MiB
  rematpass demo --device cuda --steps 50
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "demo",
        help="train a small GPT with and without a budget, and measure both",
        description="Train a small GPT in eager mode, with torch.compile, and with remat under a budget; measure each.",
        examples=_EXAMPLES,
    )
    parser.add_argument("--budget", default="0.25", metavar="BUDGET", help=f"{BUDGETS} (default: 0.25)")
    parser.add_argument(
        "--steps", type=whole_number("steps", 1, 10_000), default=10, metavar="N", help="training steps (default: 10)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    from rematpass.lab.models.names import check_device

    check_device(arguments.device)
    Config.read({"memory_budget": arguments.budget})

    from rich.console import Console

    from rematpass.lab import demo

    return demo.run(budget=arguments.budget, steps=arguments.steps, device=arguments.device, console=Console())
