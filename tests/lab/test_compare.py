"""``rematpass compare``: once from end to end on a tiny model, and everything that it refuses."""

import json
import subprocess
import sys

import pytest
from test_cli import run

from rematpass.lab import compare

TINY = """
import torch
from rematpass.lab.models.networks import chain

def make():
    torch.manual_seed(0)
    module = chain(layers=4, width=32, segments=2)
    x = torch.randn(256, 32)
    return module, lambda: module(x)

def nothing():
    return torch.nn.Linear(2, 2), lambda: None
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with a user's module in it, as the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny_user_model.py").write_text(TINY)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tiny_user_model", None)


@pytest.mark.slow
def test_from_end_to_end(here, capsys):
    """Inductor and remat at the bytes of eager and at 0: exact figures, a picture, and JSON that says the same."""
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
    assert "└ remat in as many bytes" in out
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
        (["--size", "batch=few"], "'batch=few' is no size; expected a name and a whole number above 0, as in batch=16"),
        (["--model", "tiny_user_model:make", "--size", "batch=2"], "--size is for models of the catalog"),
        (["--rounds", "-1"], "'-1' is not a number of rounds, 0 to 1000"),
    ],
)
def test_what_is_refused_before_anything_is_measured(here, capsys, monkeypatch, arguments, message):
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


def test_step_without_loss(here, capsys):
    code, _, err = run(capsys, "compare", "--model", "tiny_user_model:nothing", "--no-picture")
    assert (code, err) == (
        2,
        "rematpass: error: the step returned NoneType; return the loss, a tensor with one element\n",
    )


@pytest.mark.parametrize(("module", "model"), [("matplotlib", "chain"), ("transformers", "llama-small")])
def test_missing_extra(here, module, model):
    """In a process of its own, from whose directory a package is imported that hides the real one."""
    (here / module).mkdir()
    (here / module / "__init__.py").write_text("raise ImportError('hidden by the test')")
    command = [sys.executable, "-m", "rematpass", "compare", "--model", model]
    if module == "transformers":
        command.append("--no-picture")
    done = subprocess.run(command, capture_output=True, text=True)
    err = done.stderr
    assert done.returncode == 2
    assert err.startswith("rematpass: error: ")
    assert err.endswith(f"{module}, which is missing: pip install 'rematpass[bench]'\n")
