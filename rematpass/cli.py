"""The commands: ``rematpass demo``, ``compare``, ``explain``, ``plan``, ``run``, ``max-batch``,
``calibrate``. torch comes late.

Exit codes: 0 done; 1 done, and the result is not as it should be (a peak above the committed one, a script that
failed); 2 cannot be done as asked, with one line that says why; 3 a bug; 130 interrupted. ``--debug`` shows the whole
traceback. Colours and progress are shown on terminals only, and colours not where ``NO_COLOR`` is set.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rematpass import __version__
from rematpass.commands import calibrate, explain, max_batch, plan, run
from rematpass.config import default_environment
from rematpass.errors import cause_of

EXAMPLES = """examples:
  rematpass demo                               train a small GPT under a budget of 0.25 and measure it
  rematpass demo --budget 80MiB                the same, in a peak of at most 80 MiB
  rematpass demo --device cuda                 the same, on a GPU
  rematpass compare                            a small Llama: remat beside eager, Inductor and checkpointing
  rematpass compare --model mypackage.train:make --budgets 1,0.5,8GiB --json found.json
  rematpass explain llama --budget 0.3 --open  what is saved, what is recomputed, and why, as a page
  rematpass plan gpt.graph.json --device h200  plan a saved joint graph, without torch or a GPU
  rematpass run --budget 8GiB train.py         every torch.compile in train.py, under a budget
  rematpass max-batch llama --budget 512MiB    the largest batch that fits
  rematpass calibrate --output here.json       measure this machine, for the cost model

the budget elsewhere:
  REMAT_MEMORY_BUDGET=8GiB python train.py     where train.py has torch.compile(model, backend="remat")
"""
_DEMO = """examples:
  rematpass demo                       a budget of 0.25, on the CPU
  rematpass demo --budget 80MiB        a peak of at most 80 MiB
  rematpass demo --device cuda --steps 50
"""
_COMPARE = """examples:
  rematpass compare                                          a small Llama, beside all that it is compared with
  rematpass compare --model vit --size batch=16 --budgets 1,0.5,0
  rematpass compare --model mypackage.train:make --budgets 1,8GiB --device cuda --json found.json
  rematpass compare --peers none --rounds 0 --no-picture     bytes and gradients of remat alone, no step times
  rematpass compare --per-block --budgets 1,0.5,0            the same model, its blocks compiled one by one
"""
BUDGETS = "0 (the least memory) to 1 (the fastest), or bytes of peak: 80MiB, 8GiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name and return its exit code."""
    arguments = _parser().parse_args(argv)
    _quiet()
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("rematpass: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 141
    except Exception as error:
        if arguments.debug:
            raise
        return _say(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rematpass",
        description="Train in less memory: a rematerialization backend for torch.compile, and its measures.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rematpass {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    demo = commands.add_parser(
        "demo",
        help="train a small GPT with and without a budget, and measure both",
        description="Train a small GPT in eager mode, with torch.compile, and with remat under a budget; measure each.",
        epilog=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--budget", default="0.25", metavar="BUDGET", help=f"{BUDGETS} (default: 0.25)")
    demo.add_argument("--steps", type=_steps, default=10, metavar="N", help="training steps of each (default: 10)")
    demo.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    demo.set_defaults(run=_demo)
    compare = _add_compare(commands)
    others = [command.add_parser(commands) for command in (explain, plan, run, max_batch, calibrate)]
    for command in (demo, compare, *others):
        command.add_argument("--debug", action="store_true", help="on an error, show the whole traceback")
    return parser


def _add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    compare = commands.add_parser(
        "compare",
        help="measure a model's training step under remat and its peers, side by side",
        description="Measure a training step under remat, Inductor, eager mode and per-block checkpointing, each in a "
        "process of its own: peak bytes, step time, recomputation and gradients. Needs the extra 'bench'.",
        epilog=_COMPARE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compare.add_argument(
        "--model",
        default="llama-small",
        metavar="MODEL",
        help="a model of rematpass.lab.models.catalog, or package.module:function that returns (module, step), where step() "
        "returns the loss (default: llama-small)",
    )
    compare.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="of a model of the catalog, as in batch=16"
    )
    compare.add_argument(
        "--peers",
        metavar="LIST",
        help="what to compare with, of eager, eager+checkpoint, inductor, inductor+checkpoint and inductor@B, where B "
        "is torch's activation_memory_budget; or none (default: the four, inductor@0.5 and inductor@0.2)",
    )
    compare.add_argument("--budgets", metavar="LIST", help=f"of remat: {BUDGETS}; or none (default: 1,0)")
    compare.add_argument(
        "--per-block", action="store_true", help="compile each block of the model by itself, and nothing else of it"
    )
    compare.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    compare.add_argument("--rounds", type=_rounds, default=5, metavar="N", help="of step times; 0: none (default: 5)")
    compare.add_argument(
        "--jobs", type=_jobs, metavar="N", help="strategies compiled at a time (default: 2 on a CPU of several cores)"
    )
    compare.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured to this file")
    compare.add_argument(
        "--picture",
        type=Path,
        default=Path("rematpass-compare.svg"),
        metavar="FILE",
        help="step time against peak, as .svg or .png (default: rematpass-compare.svg)",
    )
    compare.add_argument("--no-picture", action="store_true", help="draw none")
    compare.set_defaults(run=_compare)
    return compare


def _rounds(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds, 0 to 1000")
    return int(text)


def _jobs(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of jobs, 1 to 64")
    return int(text)


def _compare(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rematpass.lab import compare

    request = compare.Request(
        model=arguments.model,
        peers=compare.PEERS if arguments.peers is None else arguments.peers,
        budgets=compare.BUDGETS if arguments.budgets is None else arguments.budgets,
        sizes=arguments.size,
        per_block=arguments.per_block,
        device=arguments.device,
        rounds=arguments.rounds,
        jobs=arguments.jobs,
        picture=None if arguments.no_picture else arguments.picture,
        json=arguments.json,
    )
    return compare.run(request, Console())


def _say(error: Exception) -> int:
    """One line about an error, and the exit code."""
    if cause := cause_of(error):
        print(f"rematpass: error: {cause}", file=sys.stderr)
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        print("rematpass: error: this needs torch; install one: pip install torch==2.13.0", file=sys.stderr)
        return 2
    print(
        f"rematpass: unexpected {type(error).__name__}: {error}\nThis is a bug, or a bug of torch's: "
        "please report it, with what the same command prints with --debug",
        file=sys.stderr,
    )
    return 3


def _steps(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of steps, 1 to 10000")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from rematpass.lab import demo

    return demo.run(budget=arguments.budget, steps=arguments.steps, device=arguments.device, console=Console())


def _quiet() -> None:
    """Keep torch's libraries from printing what a user can do nothing about; before torch is loaded, or too late.

    The CPU allocator warns of every block that is older than a measurement, the profiler of its own start and stop.
    """
    default_environment(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")
