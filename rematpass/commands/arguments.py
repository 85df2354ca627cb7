"""Arguments that several commands share, and their checks. An unknown name is refused before torch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from rematpass.config import SOLVERS, Config
from rematpass.core import hardware

BUDGETS = "0 (the least memory) to 1 (the fastest), or bytes of peak: 80MiB, 8GiB"

Commands = argparse._SubParsersAction  # of ArgumentParser: what add_subparsers returns


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps the description and keeps the lines of the examples."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 13  # argparse forgets the indent of subcommands: "max-batch" would take two lines

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


def add_command(
    commands: Commands[argparse.ArgumentParser], name: str, *, help: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """Add the subparser of a command; ``help`` is its line in the list of commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=help, description=description, epilog=examples, formatter_class=HelpFormatter
    )
    return parser


def whole_number(what: str, low: int, high: int) -> Callable[[str], int]:
    """A type for ``add_argument``: a whole number of ``what`` from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {what}, {low} to {high}")
        return int(text)

    return parse


def add_planning_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that plans; ``planning_options`` reads them."""
    parser.add_argument("--budget", metavar="BUDGET", help=f"{BUDGETS} (default: REMAT_MEMORY_BUDGET, or 1)")
    parser.add_argument("--solver", metavar="NAME", help=f"{', '.join(SOLVERS)} (default: ladder)")
    parser.add_argument(
        "--max-recompute", metavar="N", help="the most recompute, in multiples of a forward pass (default: 1)"
    )


def planning_options(arguments: argparse.Namespace) -> dict[str, object]:
    """The options as ``Config.read`` accepts them; an option that was not given is None."""
    return {
        "memory_budget": arguments.budget,
        "solver": arguments.solver,
        "max_recompute": arguments.max_recompute,
    }


def read_config(options: Mapping[str, object]) -> Config:
    """Read the settings and check the name of the hardware preset, which ``Config.read`` accepts unchecked.

    Raises:
        ConfigError: a value is not accepted, or no preset has this name.
    """
    config = Config.read(options)
    if config.hardware:
        hardware.preset(config.hardware)
    return config
