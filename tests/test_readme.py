"""README's commands are commands that there are, with options that there are."""

import re
import shlex
from pathlib import Path

import pytest

from rematpass import cli
from rematpass.config import OPTIONS, Config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands():
    """Each line of a shell block that calls the package, without what comes before: variables, torchrun."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            found = re.search(r"(?:-m |&& |^)rematpass (?!run --help)(.*)", line)
            if found:
                yield found[1]


def test_there_are_some():
    first = {command.split()[0] for command in commands()}
    assert first >= {"explain", "plan", "run", "max-batch"}


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_can_be_read(command):
    arguments = cli._parser().parse_args(shlex.split(command, comments=True))
    options = {name: getattr(arguments, name, None) for name in ("solver", "max_recompute", "hardware", "report_dir")}
    budgets = getattr(arguments, "budget", None)
    for budget in budgets if isinstance(budgets, list) else [budgets]:
        Config.read({**options, "memory_budget": budget}, {})


def test_every_variable_is_one_that_there_is():
    known = {f"REMAT_{name.upper()}" for name in OPTIONS}
    assert set(re.findall(r"\bREMAT_[A-Z_]+\b", README)) <= known


def test_every_picture_and_file_is_there():
    for path in re.findall(r"(?:src|srcset)=\"([^\"]+)\"", README):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"`(tests/[\w./]+)`", README):
        assert (ROOT / path).is_file(), path
