"""The command line: one parser, with a subparser from each file in ``commands/``, and errors as one line.

Exit codes: 0 done; 1 done, with a bad result (a peak above the committed one, a script that failed); 2 refused, with
one line that gives the reason; 3 a bug; 130 interrupted; 143 terminated. ``--debug`` shows the whole traceback. Colours
and progress appear on terminals only; ``NO_COLOR`` turns colours off. Commands import torch only after checking their
arguments.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rematpass import __version__
from rematpass.commands import calibrate, compare, demo, env, explain, guide, max_batch, plan, run
from rematpass.commands.arguments import HelpFormatter
from rematpass.config import default_environment
from rematpass.errors import cause_of

COMMANDS = (demo, compare, explain, plan, run, max_batch, calibrate, guide, env)  # in the order of --help
EXAMPLES = """examples:
  rematpass demo                               train a small GPT under a budget, measure it
  rematpass demo --budget 80MiB                the same, in a peak of at most 80 MiB
  rematpass demo --device cuda                 the same, on a GPU
  rematpass compare                            a small Llama: remat beside its peers
  rematpass compare --model mypackage.train:make --budgets 1,0.5,8GiB --json found.json
  rematpass explain llama --budget 0.3 --open  what is saved, what is recomputed, and why
  rematpass plan gpt.graph.json --device h200  plan a saved joint graph, without torch or a GPU
  rematpass run --budget 8GiB train.py         every torch.compile in train.py, under a budget
  rematpass max-batch llama --budget 512MiB    the largest batch that fits
  rematpass calibrate --output here.json       measure this machine, for the cost model
  rematpass guide troubleshooting              a topic of the guide
  rematpass env                                what a bug report needs

without the commands:
  REMAT_MEMORY_BUDGET=8GiB python train.py     for torch.compile(model, backend="remat")
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` names and return its exit code."""
    arguments = _parser().parse_args(argv)
    _quiet()
    try:
        # A script that ``rematpass run`` runs has the signal handlers that Python would give it.
        with nullcontext() if arguments.run is run.run else exit_on_sigterm():
            return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("rematpass: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it flushes at exit
        return 141
    except Exception as error:
        if arguments.debug:
            raise
        return _say(error)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit(143) in the main thread, so that workers end and temporary files are removed.

    Further signals are ignored meanwhile. Outside the main thread, which cannot set handlers, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def exit_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, exit_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class _Version(argparse.Action):
    """Print the versions of rematpass and torch, without importing torch."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        try:
            torch = version("torch")
        except PackageNotFoundError:
            torch = "not installed"
        print(f"rematpass {__version__}\ntorch {torch}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rematpass",
        description="Train in less memory: a rematerialization backend for torch.compile.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the versions of rematpass and torch")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for module in COMMANDS:
        command = module.add_parser(commands)
        command.add_argument("--debug", action="store_true", help="on an error, show the whole traceback")
    return parser


def _say(error: Exception) -> int:
    """Print one line about an error and return the exit code."""
    if cause := cause_of(error):
        print(f"rematpass: error: {cause}", file=sys.stderr)
        return 2
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        print("rematpass: error: this command needs torch: pip install torch==2.13.0", file=sys.stderr)
        return 2
    print(
        f"rematpass: unexpected {type(error).__name__}: {error}\n"
        "This is a bug in rematpass or torch: please report it, with what rematpass env prints and what this command "
        "prints with --debug",
        file=sys.stderr,
    )
    return 3


def _quiet() -> None:
    """Silence log lines of torch's libraries that users cannot act on. It has no effect once torch is loaded.

    The CPU allocator warns about every block that is older than a measurement; the profiler logs its start and stop.
    """
    default_environment(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")
