"""The command line as users see it: help, errors in one line, exit codes."""

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

COMMANDS = ["demo", "compare", "explain", "plan", "run", "max-batch", "calibrate", "guide", "env"]


def run(capsys, *arguments):
    """The exit code, standard output and standard error."""
    try:
        code = cli.main(arguments)
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_has_examples_and_does_not_load_torch():
    script = "import sys; from rematpass.cli import main\ntry: main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "examples:\n  rematpass demo" in done.stdout
    assert done.stdout.rstrip().endswith("False")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_each_command_are_valid(capsys, command):
    code, out, _ = run(capsys, command, "--help")
    examples = [line.strip() for line in out.split("examples:\n")[1].splitlines() if line.startswith("  rematpass ")]
    assert (code, len(examples) >= 2) == (0, True)
    for example in examples:
        given = re.split(r"\s{2,}", example)[0]  # a description follows after two blanks
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


def test_debug_raises_the_error(capsys):
    with pytest.raises(ConfigError):
        run(capsys, "demo", "--budget", "16", "--debug")


class TestErrors:
    @pytest.fixture
    def fails_with(self, monkeypatch):
        def set_error(error):
            def fail(arguments):
                raise error

            monkeypatch.setattr("rematpass.commands.demo.run", fail)

        return set_error

    def test_an_error_that_dynamo_wrapped_is_found(self, capsys, fails_with):
        wrapped = RuntimeError("backend='remat' raised")
        wrapped.inner_exception = BudgetInfeasible("no plan stays under 3 B", budget=3, floor=5)
        fails_with(wrapped)
        assert run(capsys, "demo") == (2, "", "rematpass: error: no plan stays under 3 B\n")

    def test_the_cause_of_an_error_is_found(self, capsys, fails_with):
        error = RuntimeError("outer")
        error.__cause__ = ConfigError("option solver='x'")
        fails_with(error)
        assert run(capsys, "demo") == (2, "", "rematpass: error: option solver='x'\n")

    def test_an_unexpected_error_is_reported_as_a_bug(self, capsys, fails_with):
        fails_with(ZeroDivisionError("a bug"))
        code, out, err = run(capsys, "demo")
        assert (code, out) == (3, "")
        assert err == (
            "rematpass: unexpected ZeroDivisionError: a bug\n"
            "This is a bug in rematpass or torch: please report it, with what rematpass env prints and what this "
            "command prints with --debug\n"
        )
        with pytest.raises(ZeroDivisionError):
            run(capsys, "demo", "--debug")

    def test_missing_torch_is_one_line(self, capsys, fails_with):
        fails_with(ModuleNotFoundError("No module named 'torch'", name="torch"))
        message = "rematpass: error: this command needs torch: pip install torch==2.13.0\n"
        assert run(capsys, "demo") == (2, "", message)

    def test_an_interrupt_is_exit_code_130(self, capsys, fails_with):
        fails_with(KeyboardInterrupt())
        assert run(capsys, "demo") == (130, "", "rematpass: interrupted\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(capsys, command):
    code, out, err = run(capsys, command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: rematpass {command}")
    assert "--debug" in out
    assert f"examples:\n  rematpass {command}" in out


def shell(command, **environ):
    """Run in a shell; output and errors go to pipes."""
    script = f"{sys.executable} -m rematpass {command}"
    environ = {**{k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}, **environ}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environ)


@pytest.mark.parametrize("how", ["--frontier", "--json"])
def test_a_pipe_that_closes_early_is_no_error(how):
    done = shell(f"plan {TINY_GPT} {TINY_GPT} {how} | head -c 1")
    assert len(done.stdout) == 1
    assert done.stderr == ""


def on_a_terminal(arguments, **environ):
    """Run in a terminal of 120 columns; return standard output and standard error together."""
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "rematpass", *arguments]
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", **environ}
    with subprocess.Popen(command, stdin=child, stdout=child, stderr=child, env=environ) as process:
        os.close(child)
        written = b""
        while True:
            try:
                part = os.read(parent, 65536)
            except OSError:  # on Linux: the other side is closed
                break
            if not part:
                break
            written += part
    os.close(parent)
    assert process.returncode == 0
    return written.decode()


def test_colours_and_progress_appear_on_terminals_only(tmp_path):
    arguments = ["explain", str(TINY_GPT), "--output", str(tmp_path)]
    colour = re.compile(r"\x1b\[[0-9;]*[3-9][0-9;]*m")
    shown = on_a_terminal(arguments)
    assert colour.search(shown)
    assert "planning" in shown
    assert not colour.search(on_a_terminal(arguments, NO_COLOR="1"))
    done = shell(" ".join(arguments))
    assert "\x1b" not in done.stdout + done.stderr
    assert "planning" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_fits_100_columns(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "100")
    _, out, _ = run(capsys, *filter(None, [command]), "--help")
    assert [line for line in out.splitlines() if len(line) > 100] == []


def test_the_commands_are_listed_in_the_order_of_use(capsys):
    _, out, _ = run(capsys, "--help")
    assert re.findall(r"^    ([a-z-]+) ", out, re.MULTILINE) == COMMANDS


WITHOUT_TORCH = """
import sys
from rematpass.cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was loaded"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("explain lama", "unknown model 'lama'; did you mean llama? Valid names are llama, llama-small,"),
        ("explain llama --budget 8G", "option memory_budget='8G': '8G' is not a number of bytes;"),
        ("explain llama --solver leader", "unknown solver; did you mean ladder? Accepted: ladder, mincut,"),
        ("explain llama --hardware h300", "unknown hardware 'h300'; did you mean h200? Valid names are a100, cpu,"),
        ("explain llama --device gpu", "'gpu' is not a device; try cpu or cuda"),
        ("max-batch lama --budget 8GiB", "unknown model 'lama'; did you mean llama?"),
        (
            "max-batch mlp --size length --budget 8GiB",
            "mlp: unknown size 'length'; valid names are layers, width, batch",
        ),
        ("max-batch llama --budget 8G", "did you mean 8GiB?"),
        ("max-batch llama --budget 8GiB --device gpu", "'gpu' is not a device; try cpu or cuda"),
        ("demo --budget 16", "a number without a unit; did you mean 16GiB?"),
        ("demo --device gpu", "'gpu' is not a device; try cpu or cuda"),
        ("compare --model lama", "unknown model 'lama'; did you mean llama?"),
        ("compare --size lenght=3", "llama-small: unknown size 'lenght'; did you mean length?"),
        ("compare --peers egaer", "did you mean eager?"),
        ("compare --budgets 10XB", "'10XB' is not a number of bytes"),
        ("compare --device gpu", "'gpu' is not a device; try cpu or cuda"),
        ("calibrate --device gpu", "'gpu' is not a device; try cpu or cuda"),
        ("run --budget 8G train.py", "did you mean 8GiB?"),
        ("run --hardware h300 train.py", "unknown hardware 'h300'; did you mean h200?"),
        ("run nope.py", "there is no script nope.py; to run a module, use -m"),
        ("run -m nope.mod", "there is no module nope.mod: No module named 'nope'"),
        ("guide bugdet", "unknown topic 'bugdet'; did you mean budget?"),
    ],
)
def test_unknown_names_are_refused_before_torch_is_loaded(arguments, message):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")


def test_version_prints_rematpass_and_torch_without_loading_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "--version"], capture_output=True, text=True)
    assert re.fullmatch(r"rematpass \S+\ntorch \S+\n", done.stdout)
    script = (
        "import sys; from rematpass.cli import main\ntry: main(['--version'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
