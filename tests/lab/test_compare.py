"""``rematpass compare``: one run on a tiny model, the options, everything that it refuses, and SIGTERM."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
from test_cli import run

from rematpass.lab import compare
from rematpass.lab.benchmark.spec import Settings, Wanted
from rematpass.report.measurement import parse_list

TINY = """
import os, pathlib, subprocess, time
import torch
from rematpass.lab.models.networks import chain

def make():
    torch.manual_seed(0)
    module = chain(layers=4, width=32, segments=2)
    x = torch.randn(256, 32)
    return module, lambda: module(x)

def nothing():
    return torch.nn.Linear(2, 2), lambda: None

def endless():
    child = subprocess.Popen(["sleep", "600"])
    pathlib.Path("unfinished").write_text(f"{os.getpid()} {child.pid}")
    pathlib.Path("unfinished").rename("pids")
    time.sleep(600)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory that contains only a user's module, as the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_user_model.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tiny_user_model", None)


@pytest.mark.slow
def test_figures_are_exact_in_table_json_and_picture(here, capsys):
    """Inductor, eager, and remat at eager's bytes and at 0."""
    pytest.importorskip("matplotlib")
    code, out, err = run(
        capsys, "compare", "--model", "tiny_user_model:make", "--peers", "eager", "--budgets", "0", "--rounds", "1",
        "--json", "found.json", "--picture", "found.svg",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads((here / "found.json").read_text())
    rows = {row["strategy"]: row for row in found["rows"]}
    assert list(rows) == ["eager", f"remat@{rows['eager']['peak']}B", "remat@0"]
    eager, like, floor = rows.values()
    one, value = 2 * 256 * 32 * 32, 4 * 256 * 32
    assert (eager["saved"], eager["gradients"]) == (4 * value + 4, 4 * 4 * (32 * 32 + 32))
    assert (eager["forward_flops"], eager["step_flops"]) == (4 * one, 11 * one)
    for row in (like, floor):
        assert row["status"] == "measured"
        assert abs(row["peak"] - row["planned_peak"]) <= 8
        assert row["peak"] <= eager["peak"]
        assert row["gradient_error"] < 1e-5
        assert row["gradient_reference"] == "eager"
    assert like["like"] == "eager"
    assert like["budget_nbytes"] == eager["peak"]
    assert floor["planned_peak"] == floor["floor"] - 4  # the floor counts the loss, an output
    assert floor["step_flops"] >= eager["step_flops"]
    assert len(floor["step_ratio"]) == 3
    assert "A training step of tiny_user_model:make" in out
    assert "└ remat, same bytes" in out
    assert out.startswith("4 strategies at most")
    assert re.search(r"\d of (at most )?4: eager: peak 256\.01 KiB", out)
    assert f"Given the {256.01} KiB of eager, remat takes" in out
    assert "Step time against peak: found.svg" in out
    assert "<svg" in (here / "found.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "lama"], "unknown model 'lama'; did you mean llama? Valid names are llama, llama-small"),
        (["--model", "no.such:thing"], "cannot import 'no.such:thing': No module named 'no'; expected package.module:"),
        (["--model", "tiny_user_model:made"], "module 'tiny_user_model' has no attribute 'made'; expected package."),
        pytest.param(["--device", "cuda:77"], "CUDA device", id="no such CUDA device"),
        (["--device", "gpu"], "'gpu' is not a device; try cpu or cuda"),
        (["--json", "none/found.json"], "cannot write 'none/found.json': No such file or directory"),
        (["--json", "."], "cannot write '.': Is a directory"),
        (["--picture", "found.pdf"], "'found.pdf' ends in neither .svg nor .png"),
        (["--picture", "none/found.svg"], "there is no directory 'none' to write 'found.svg' to"),
        (["--peers", "egaer"], "'egaer' is no strategy; did you mean eager?"),
        (["--peers", "eager,,inductor"], "'' is no strategy"),
        (["--peers", "inductor@3"], "torch's activation_memory_budget is a number from 0 to 1"),
        (["--budgets", "16"], "'remat@16': memory_budget='16': a number without a unit; did you mean 16GiB?"),
        (["--peers", "none", "--budgets", "none"], "there is nothing to compare: both --peers and --budgets are none"),
        (["--size", "batch=few"], "'batch=few' is not a size; expected a name and a whole number above 0"),
        (["--model", "tiny_user_model:make", "--size", "batch=2"], "--size is for models of the catalog"),
        (["--rounds", "-1"], "'-1' is not a number of rounds, 0 to 1000"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_is_measured(here, capsys, monkeypatch, arguments, message):
    class NoSession:
        def __init__(self, *arguments):
            raise AssertionError("something was measured")

    if "tiny_user_model:made" not in arguments and "no.such:thing" not in arguments:
        monkeypatch.setattr(compare, "Session", NoSession)
    code, out, err = run(capsys, "compare", *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in out + err
    assert err.count("\n") == 1 or "usage:" in err
    assert [path.name for path in here.iterdir() if path.suffix in (".json", ".svg")] == []


def test_a_step_without_a_loss_is_refused(here, capsys):
    code, _, err = run(capsys, "compare", "--model", "tiny_user_model:nothing", "--no-picture")
    assert (code, err) == (
        2,
        "rematpass: error: the step returned NoneType; return the loss, a tensor with one element\n",
    )


@pytest.mark.parametrize(("module", "model"), [("matplotlib", "chain"), ("transformers", "llama-small")])
def test_a_missing_extra_is_named(here, module, model):
    """In a separate process, whose current directory contains a package that hides the real one."""
    (here / module).mkdir()
    (here / module / "__init__.py").write_text("raise ImportError('hidden by the test')")
    command = [sys.executable, "-m", "rematpass", "compare", "--model", model]
    if module == "transformers":
        command.append("--no-picture")
    done = subprocess.run(command, capture_output=True, text=True)
    err = done.stderr
    assert done.returncode == 2
    assert err.startswith("rematpass: error: ")
    assert err.endswith(f"{module}, which is not installed: pip install 'rematpass[bench]'\n")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (compare.FULL.peers, "1,0", True, 5, "rematpass-compare.svg")),
        (["--quick"], ("eager,inductor", "1,0", False, 0, None)),
        (
            ["--quick", "--budgets", "0.5", "--rounds", "2"],
            ("eager,inductor", "0.5", False, 2, "rematpass-compare.svg"),
        ),
        (["--rounds", "0"], (compare.FULL.peers, "1,0", True, 0, None)),
        (["--rounds", "0", "--picture", "a.svg"], (compare.FULL.peers, "1,0", True, 0, "a.svg")),
        (["--no-picture"], (compare.FULL.peers, "1,0", True, 5, None)),
    ],
)
def test_quick_changes_only_defaults(capsys, monkeypatch, options, expected):
    requests = []
    monkeypatch.setattr(compare, "run", lambda request, console: requests.append(request) or 0)
    assert run(capsys, "compare", *options)[0] == 0
    (given,) = requests
    picture = given.picture and str(given.picture)
    assert (given.peers, given.budgets, given.like_peers, given.rounds, picture) == expected


def estimated(defaults, jobs=2):
    wanted = Wanted(parse_list(defaults.peers), parse_list(defaults.budgets, "remat"), like_peers=defaults.like_peers)
    return compare.estimate(wanted, Settings(rounds=defaults.rounds, jobs=jobs))


def test_the_estimate_says_what_it_rests_on():
    assert estimated(compare.QUICK) == (
        "4 strategies at most, 2 at a time, no step times: about a minute for a model such as llama-small on two cores "
        "(35 s to compile and measure a strategy, 0.3 s for a step). Larger models take longer."
    )
    assert "14 strategies at most, 2 at a time, then 5 rounds of step times: about 5 minutes" in estimated(compare.FULL)
    assert "1 at a time, then 5 rounds of step times: about 8 minutes" in estimated(compare.FULL, jobs=1)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_sigterm_leaves_no_process_and_no_file(here):
    """SIGTERM arrives while a worker, which has started a process as compilers do, builds the model.

    Python's fork server puts a socket into TMPDIR, whose path must be short.
    """
    with tempfile.TemporaryDirectory(prefix="sigterm") as temporary:
        _send_sigterm(here, Path(temporary))


def _send_sigterm(here, temporary):
    command = [sys.executable, "-m", "rematpass", "compare", "--model", "tiny_user_model:endless", "--no-picture"]
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(here)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while not (here / "pids").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker, its_child = map(int, (here / "pids").read_text().split())
        started = [psutil.Process(pid) for pid in (worker, its_child)]
        started += psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, b"")
    _, alive = psutil.wait_procs(started, timeout=30)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    assert list(temporary.iterdir()) == []
