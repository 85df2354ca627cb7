"""``rematpass run``: run a script or module as Python would, with every ``torch.compile`` in it under the budget."""

from __future__ import annotations

import argparse
import importlib.util
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from rematpass.commands.arguments import Commands, add_command, add_planning_options, planning_options, read_config
from rematpass.config import environment_of, set_environment
from rematpass.errors import ConfigError, cause_of

_EXAMPLES = """examples:
  rematpass run --budget 8GiB train.py --epochs 3       as python train.py --epochs 3
  rematpass run --budget 0.3 -m package.train           as python -m package.train
  rematpass run --report-dir reports train.py           every planned graph leaves its report
  torchrun --nproc-per-node 2 -m rematpass run --budget 8GiB train.py

The settings are also set as REMAT_* variables, for backend="remat" and for child processes.
Arguments after SCRIPT belong to the script.
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "run",
        help="run a training script with every torch.compile in it under a budget",
        description="Run a script with rematpass.enable active: every torch.compile with Inductor plans under the "
        "budget, and the script stays unchanged.",
        examples=_EXAMPLES,
    )
    add_planning_options(parser)
    parser.add_argument("--report-dir", metavar="DIR", help="the directory for the report of each planned graph")
    parser.add_argument("--hardware", metavar="NAME", help="the preset for the cost model's seconds")
    parser.add_argument("--strict", action="store_true", default=None, help="raise whenever a budget cannot be held")
    parser.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    parser.add_argument("script", metavar="SCRIPT", help="the script, or with -m the module, to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="the script's own arguments")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    options = {
        **planning_options(arguments),
        "report_dir": arguments.report_dir,
        "hardware": arguments.hardware,
        "strict": arguments.strict,
    }
    read_config(options)
    with _as_main(arguments):
        _refuse_missing(arguments)
        set_environment(**environment_of(options))

        from rematpass.compiler.backend import enable

        with enable(**options):
            return _run(arguments)


@contextmanager
def _as_main(arguments: argparse.Namespace) -> Iterator[None]:
    """Set ``sys.argv`` and the first entry of ``sys.path`` as Python does for a script or for ``-m``."""
    before = sys.argv, sys.path[0]
    sys.argv = [arguments.script, *arguments.arguments]
    sys.path[0] = str(Path.cwd() if arguments.module else Path(arguments.script).resolve().parent)
    try:
        yield
    finally:
        sys.argv, sys.path[0] = before


def _refuse_missing(arguments: argparse.Namespace) -> None:
    """Check that the script or module exists. For a dotted name, only the outermost package is looked up here.

    Looking up ``package.train`` imports ``package``, which has to happen under ``enable``.

    Raises:
        ConfigError: it does not exist.
    """
    if not arguments.module:
        if not Path(arguments.script).is_file():
            raise ConfigError(f"there is no script {arguments.script}; to run a module, use -m")
        return
    outermost = arguments.script.partition(".")[0]
    if not outermost or importlib.util.find_spec(outermost) is None:
        raise ConfigError(f"there is no module {arguments.script}: No module named {outermost!r}")


def _run(arguments: argparse.Namespace) -> int:
    """Run the program and return 1 if it raised; its traceback is printed as Python prints it."""
    try:
        if arguments.module:
            _refuse_missing_submodule(arguments.script)
            runpy.run_module(arguments.script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(arguments.script, run_name="__main__")
    except Exception as error:
        if arguments.debug or cause_of(error) is not None:
            raise
        traceback.print_exception(error.with_traceback(_of_the_program(error)))
        return 1
    return 0


def _refuse_missing_submodule(name: str) -> None:
    """Check that ``python -m name`` would find something to run.

    Raises:
        ConfigError: no such module, or a package without ``__main__``.
    """
    reason = f"there is no module {name}"
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            reason = f"{name} is a package without __main__, which cannot be run"
            spec = importlib.util.find_spec(f"{name}.__main__")
    except ModuleNotFoundError as error:
        if not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that the package itself imports
        raise ConfigError(f"there is no module {name}: {error}") from None
    if spec is None:
        raise ConfigError(reason)


def _of_the_program(error: BaseException) -> TracebackType | None:
    """The traceback without the frames of this file and of runpy."""
    trace = error.__traceback__
    own = (__file__, runpy.__file__, "<frozen runpy>")
    while trace is not None and trace.tb_next is not None and trace.tb_frame.f_code.co_filename in own:
        trace = trace.tb_next
    return trace
