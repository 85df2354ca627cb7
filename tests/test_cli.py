"""The commands as a user meets them: help, errors in one line, exit codes."""

import os
import pty
import re
import shlex
import subprocess
import sys

import pytest
from support.reports import TINY_GPT

from rematpass import cli
from rematpass.errors import BudgetInfeasible, ConfigError


def run(capsys, *arguments):
    """The exit code and what was printed, like a shell."""
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_has_examples_and_loads_no_torch():
    script = "import sys; from rematpass.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "examples:\n  rematpass demo" in done.stdout
    assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize("command", ["demo", "compare", "explain", "plan", "run", "max-batch"])
def test_the_examples_of_each_command_can_be_read(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    examples = [line.strip() for line in out.split("examples:\n")[1].splitlines() if line.startswith("  rematpass ")]
    assert (code, len(examples) >= 3) == (0, True)
    for example in examples:
        given = re.split(r"\s{2,}", example)[0]  # what comes after two blanks says what it does
        assert cli._parser().parse_args(shlex.split(given)[1:]).run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--device", "gpu"], "rematpass: error: 'gpu' is not a device; try cpu or cuda\n"),
        (["demo", "--budget", "16"], "rematpass: error: option memory_budget='16': a number without a unit"),
        (["demo", "--steps", "0"], "argument --steps: '0' is not a number of steps, 1 to 10000\n"),
        (["demo", "--steps", "many"], "argument --steps: 'many' is not a number of steps, 1 to 10000\n"),
        ([], "the following arguments are required: COMMAND\n"),
        (["dmeo"], "invalid choice: 'dmeo'"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err


def test_debug_shows_where(capsys):
    with pytest.raises(ConfigError):
        run(capsys, "demo", "--budget", "16", "--debug")


class TestErrors:
    @pytest.fixture
    def fails_with(self, monkeypatch):
        def set_error(error):
            def fail(arguments):
                raise error

            monkeypatch.setattr(cli, "_demo", fail)

        return set_error

    def test_what_dynamo_wrapped_is_found(self, capsys, fails_with):
        wrapped = RuntimeError("backend='remat' raised")
        wrapped.inner_exception = BudgetInfeasible("no plan stays under 3 B", budget=3, floor=5)
        fails_with(wrapped)
        assert run(capsys, "demo") == (2, "", "rematpass: error: no plan stays under 3 B\n")

    def test_cause_of_an_error_is_found(self, capsys, fails_with):
        error = RuntimeError("outer")
        error.__cause__ = ConfigError("option solver='x'")
        fails_with(error)
        assert run(capsys, "demo") == (2, "", "rematpass: error: option solver='x'\n")

    def test_what_is_not_ours_is_not_hidden(self, capsys, fails_with):
        fails_with(ZeroDivisionError("a bug"))
        code, out, err = run(capsys, "demo")
        assert (code, out) == (3, "")
        assert err == (
            "rematpass: unexpected ZeroDivisionError: a bug\n"
            "This is a bug, or a bug of torch's: please report it, with what the same command prints with --debug\n"
        )
        with pytest.raises(ZeroDivisionError):
            run(capsys, "demo", "--debug")

    def test_torch_is_missing(self, capsys, fails_with):
        fails_with(ModuleNotFoundError("No module named 'torch'", name="torch"))
        message = "rematpass: error: this needs torch; install one: pip install torch==2.13.0\n"
        assert run(capsys, "demo") == (2, "", message)

    def test_interrupt(self, capsys, fails_with):
        fails_with(KeyboardInterrupt())
        assert run(capsys, "demo") == (130, "", "rematpass: interrupted\n")


COMMANDS = ["demo", "explain", "plan", "run", "max-batch"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_what_it_takes(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: rematpass {command}")
    assert "--debug" in out
    if command != "demo":
        assert f"examples:\n  rematpass {command}" in out


def shell(command, **environ):
    """What a shell sees; the files are no terminals."""
    script = f"{sys.executable} -m rematpass {command}"
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}, **environ}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ)


@pytest.mark.parametrize("how", ["--frontier", "--json"])
def test_nothing_is_said_of_a_pipe_that_closes_early(how):
    done = shell(f"plan {TINY_GPT} {TINY_GPT} {how} | head -c 1")
    assert len(done.stdout) == 1
    assert done.stderr == ""


def on_a_terminal(arguments, **environ):
    """What is written to a terminal of 120 columns, standard output and standard error together."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "rematpass", *arguments]
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environ}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environ) as process:
        os.close(child)
        written = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # Linux' way to say that the other side is closed
                break
            if not part:
                break
            written += part
    os.close(parent)
    assert process.returncode == 0
    return written.decode()


def test_colours_and_progress_on_a_terminal_only(tmp_path):
    arguments = ["explain", str(TINY_GPT), "--output", str(tmp_path)]
    colour = re.compile(r"\x1b\[[0-9;]*[3-9][0-9;]*m")
    shown = on_a_terminal(arguments)
    assert colour.search(shown)
    assert "planning" in shown
    assert not colour.search(on_a_terminal(arguments, NO_COLOR="1"))
    done = shell(" ".join(arguments))
    assert "\x1b" not in done.stdout + done.stderr
    assert "planning" not in done.stdout + done.stderr
