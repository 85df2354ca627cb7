"""The commands as a user meets them: help, errors in one line, exit codes."""

import subprocess
import sys

import pytest

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
        with pytest.raises(ZeroDivisionError):
            run(capsys, "demo")

    def test_interrupt(self, capsys, fails_with):
        fails_with(KeyboardInterrupt())
        assert run(capsys, "demo") == (130, "", "rematpass: interrupted\n")
