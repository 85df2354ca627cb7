"""``rematpass run``: a script runs as under Python, and every torch.compile in it plans under the budget."""

import os
import subprocess
import sys
import textwrap

import pytest

PLAN = "graph 0/0: budget "
SCRIPT = """
import os, sys
import helper                       # beside the script
import torch
from torch import nn

if __name__ == "__main__":
    model = torch.compile(nn.Sequential(*[nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)]))
    loss = model(torch.randn(65536 if "large" in sys.argv else 32, 16)).square().mean()
    loss.backward()
    print(sys.argv, __file__, helper.NAME, os.environ.get("REMAT_MEMORY_BUDGET"), os.environ.get("REMAT_STRICT"))
    if "fail" in sys.argv:
        raise ValueError("my own")
    if "exit" in sys.argv:
        sys.exit(7)
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache for all tests: precompiling the C++ headers takes the most time. No graph hits it: budgets differ."""
    return tmp_path_factory.mktemp("inductor")


@pytest.fixture
def at(tmp_path, cache):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "train.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "here" / "helper.py").write_text("NAME = 'helper'")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()

    def start(*arguments, cwd=tmp_path):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}
        environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        command = [sys.executable, "-m", "rematpass", "run", *arguments]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True)

    return start


def test_a_script_runs_as_under_python(at, tmp_path):
    done = at(
        "--budget", "0.5", "--strict", "--report-dir", "reports", "here/train.py", "--epochs", "3", "--budget", "x"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['here/train.py', '--epochs', '3', '--budget', 'x'] here/train.py helper 0.5 True\n"
    assert PLAN + "0.5 of the way" in done.stderr
    assert len(list((tmp_path / "reports").glob("*.html"))) == 1


def test_a_module_runs_and_its_exit_code_is_returned(at, tmp_path):
    done = at("--budget", "0", "-m", "train", "exit", cwd=tmp_path / "here")
    assert done.returncode == 7, done.stderr
    assert "helper 0 None" in done.stdout
    assert PLAN + "0 of the way" in done.stderr


def test_a_traceback_of_the_script_starts_at_its_own_first_line(at):
    done = at("--budget", "1", "here/train.py", "fail")
    assert done.returncode == 1
    assert 'train.py", line' in done.stderr
    assert done.stderr.endswith("ValueError: my own\n")
    assert "rematpass" not in done.stderr.split("Traceback")[1]
    assert "runpy" not in done.stderr


def test_an_infeasible_budget_is_exit_code_2(at):
    done = at("--budget", "1MiB", "here/train.py", "large")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "no plan stays under 1.00 MiB" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.py"], "there is no script nope.py; to run a module, use -m"),
        (
            ["--budget", "64", "here/train.py"],
            "option memory_budget='64': a number without a unit; did you mean 64GiB?",
        ),
        (["-m", "nope.mod"], "there is no module nope.mod: No module named 'nope'\n"),
        (["-m", "package.nope"], "there is no module package.nope\n"),
        (["-m", "package"], "package is a package without __main__, which cannot be run\n"),
        (["--budget", "0.5"], "the following arguments are required: SCRIPT"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(at, arguments, message):
    done = at(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_the_script_has_pythons_own_handling_of_sigterm(at, tmp_path):
    (tmp_path / "signals.py").write_text(
        "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('saving'))\n"
        "signal.raise_signal(signal.SIGTERM); print('goes on')\n"
    )
    done = at("signals.py")
    assert (done.returncode, done.stdout) == (0, "True\nsaving\ngoes on\n")
