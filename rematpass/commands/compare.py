"""``rematpass compare``: measure a training step under remat and its peers, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from rematpass.commands.arguments import BUDGETS, Commands, add_command, whole_number

DEFAULT_PICTURE = Path("rematpass-compare.svg")
_EXAMPLES = """examples:
  rematpass compare                                       a small Llama, beside all peers
  rematpass compare --quick                               four strategies, no step times
  rematpass compare --model vit --size batch=16 --budgets 1,0.5,0
  rematpass compare --model mypackage.train:make --budgets 1,8GiB --device cuda --json found.json
  rematpass compare --peers none --rounds 0 --no-picture  bytes and gradients, no step times
  rematpass compare --per-block --budgets 1,0.5,0         the same model, compiled block by block
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "compare",
        help="measure a model's training step under remat and its peers, side by side",
        description="Measure a training step under remat, Inductor, eager mode and per-block checkpointing, each in a "
        "process of its own: peak bytes, step time, recomputation and gradients. Needs the extra 'bench'.",
        examples=_EXAMPLES,
    )
    parser.add_argument(
        "--model",
        default="llama-small",
        metavar="MODEL",
        help="a model of the catalog, or package.module:function that returns (module, step), where step() returns the "
        "loss (default: llama-small)",
    )
    parser.add_argument("--size", action="append", default=[], metavar="NAME=N",
                        help="a size of a model of the catalog, as in batch=16")  # fmt: skip
    parser.add_argument(
        "--peers",
        metavar="LIST",
        help="what to compare with: eager, eager+checkpoint, inductor, inductor+checkpoint and inductor@B, where B is "
        "torch's activation_memory_budget; or none (default: the four, inductor@0.5 and inductor@0.2)",
    )
    parser.add_argument("--budgets", metavar="LIST", help=f"budgets of remat: {BUDGETS}; or none (default: 1,0)")
    parser.add_argument("--per-block", action="store_true", help="compile each block of the model by itself")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--rounds", type=whole_number("rounds", 0, 1000), metavar="N",
                        help="rounds of step times; 0: no step times (default: 5)")  # fmt: skip
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only eager, inductor and remat at 1 and 0, without step times: about a minute for llama-small on two "
        "cores",
    )
    parser.add_argument("--jobs", type=whole_number("jobs", 1, 64), metavar="N",
                        help="strategies compiled at a time (default: 2 on a CPU with several cores)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"step time against peak, as .svg or .png (default: {DEFAULT_PICTURE})",
    )
    parser.add_argument("--no-picture", action="store_true", help="draw no picture")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    _refuse_unknown_names(arguments)

    from rich.console import Console

    from rematpass.lab import compare

    defaults = compare.QUICK if arguments.quick else compare.FULL
    rounds = defaults.rounds if arguments.rounds is None else arguments.rounds
    default_picture = DEFAULT_PICTURE if rounds else None  # it shows step times
    request = compare.Request(
        model=arguments.model,
        peers=defaults.peers if arguments.peers is None else arguments.peers,
        budgets=defaults.budgets if arguments.budgets is None else arguments.budgets,
        like_peers=defaults.like_peers,
        sizes=arguments.size,
        per_block=arguments.per_block,
        device=arguments.device,
        rounds=rounds,
        jobs=arguments.jobs,
        picture=None if arguments.no_picture else arguments.picture or default_picture,
        json=arguments.json,
    )
    return compare.run(request, Console())


def _refuse_unknown_names(arguments: argparse.Namespace) -> None:
    """Check all names before torch is imported.

    Raises:
        MeasureError: a model, size, device, strategy or budget is unknown.
    """
    from rematpass.lab.models.names import check_device, check_model, check_sizes, parse_sizes
    from rematpass.report.measurement import parse_list

    check_device(arguments.device)
    check_model(arguments.model)
    sizes = parse_sizes(arguments.size)
    if ":" not in arguments.model:
        check_sizes(arguments.model, sizes)
    parse_list(arguments.peers or "none")
    parse_list(arguments.budgets or "none", "remat")
