"""``rematpass run``: run a script or module as Python would, with every ``torch.compile`` in it under the budget."""

from __future__ import annotations

import argparse
import runpy
import sys
import traceback
from pathlib import Path
from typing import Any

from rematpass.commands.plan_file import add_planning_options, planning_options
from rematpass.config import Config, environment_of, set_environment
from rematpass.errors import ConfigError, cause_of

_EXAMPLES = """examples:
  rematpass run --budget 8GiB train.py --epochs 3       as python train.py --epochs 3
  rematpass run --budget 0.3 -m package.train           as python -m package.train
  rematpass run --report-dir reports train.py           and every planned graph leaves its report
  torchrun --nproc-per-node 2 -m rematpass run --budget 8GiB train.py

The settings are set as REMAT_* variables too, so the processes that the program starts, and backend="remat", have
them. What comes after the script's name is the script's.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        "run",
        help="run a training script with every torch.compile in it under a budget",
        description="Run a script with rematpass.enable active: every torch.compile with Inductor plans under the "
        "budget, and no line of the script changes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_planning_options(parser)
    parser.add_argument("--report-dir", metavar="DIR", help="where every planned graph leaves its report")
    parser.add_argument("--hardware", metavar="NAME", help="the preset that seconds are reckoned for")
    parser.add_argument(
        "--strict", action="store_true", default=None, help="a budget that cannot be held raises, always"
    )
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="the script, or with -m the module, to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    options = {
        **planning_options(arguments),
        "report_dir": arguments.report_dir,
        "hardware": arguments.hardware,
        "strict": arguments.strict,
    }
    Config.read(options)  # what cannot be read is refused before anything is loaded
    script = Path(arguments.script)
    if not arguments.module and not script.is_file():
        raise ConfigError(f"there is no script {script}; a module is run with -m")
    set_environment(**environment_of(options))

    from rematpass.compiler.backend import enable

    with enable(**options):
        return _run_as_main(arguments)


def _run_as_main(arguments: argparse.Namespace) -> int:
    """The program's own exit code; its exceptions are shown as Python shows them, from its first line on."""
    before = sys.argv, sys.path[0]
    sys.argv = [arguments.script, *arguments.arguments]
    sys.path[0] = str(Path.cwd() if arguments.module else Path(arguments.script).resolve().parent)
    try:
        if arguments.module:
            runpy.run_module(arguments.script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments.script, run_name="__main__")
    except Exception as error:
        if arguments.debug or cause_of(error) is not None:
            raise
        traceback.print_exception(error.with_traceback(_of_the_program(error)))
        return 1
    finally:
        sys.argv, sys.path[0] = before
    return 0


def _of_the_program(error: BaseException) -> Any:
    """The traceback without the frames of this file and of runpy."""
    trace = error.__traceback__
    own = (__file__, runpy.__file__, "<frozen runpy>")
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in own:
        trace = trace.tb_next
    return trace
