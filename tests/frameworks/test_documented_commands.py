"""The shell commands of README and the guide are run as written, in a directory with a small ``train.py``, in order.

``.ci/run`` runs those that install; of another line that begins with an installation, the rest is run here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import DOCUMENTS, shell_lines

pytestmark = pytest.mark.frameworks

TRAIN = """
import os, sys
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.GELU())))

    def forward(self, x):
        return self.layers(x)

def make(batch=64):
    torch.manual_seed(0)
    model = Model()
    x = torch.randn(batch, 64)
    return model, lambda: model(x).square().mean()

if __name__ == "__main__":
    if "RANK" in os.environ:
        torch.distributed.init_process_group("gloo")
    model, step = make()
    model.compile(backend=BACKEND)
    for _ in range(int((sys.argv + ["1"])[sys.argv.index("--epochs") + 1]) if "--epochs" in sys.argv else 1):
        step().backward()
    print("trained", sum(p.grad.abs().sum().item() for p in model.parameters()) > 0)
    if "RANK" in os.environ:
        torch.distributed.destroy_process_group()
"""


def commands():
    """The lines of shell blocks without a marker, each once, without the installation that precedes some of them."""
    lines = [line for document in DOCUMENTS for marker, line in shell_lines(document) if not marker]
    return list(dict.fromkeys(line.rpartition("&& ")[2] for line in lines))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A user's directory: ``train.py``, and the same as a module of a package."""
    path = tmp_path_factory.mktemp("home")
    (path / "mypackage").mkdir()
    (path / "mypackage" / "__init__.py").touch()
    (path / "mypackage" / "train.py").write_text(TRAIN)
    return path


def run(command, home, backend):
    (home / "train.py").write_text(TRAIN.replace("BACKEND", repr(backend)))
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environ = {**environ, "PYTHONPATH": str(home), "COLUMNS": "120", "TORCHINDUCTOR_CACHE_DIR": str(home / "cache")}
    done = subprocess.run(
        command, shell=True, cwd=home, env=environ, capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, done.stderr


def compared(home, out, err):
    assert all(row in out for row in ("eager", "Inductor", "remat"))
    assert "failed" not in out


def compared_own_model(home, out, err):
    rows = {row["strategy"]: row for row in json.loads((home / "found.json").read_text())["rows"]}
    assert rows["remat@1"]["peak"] > rows["remat@0.5"]["peak"] > 0
    assert rows["eager"]["peak"] > 0
    assert rows["inductor"]["peak"] > 0
    assert rows["remat@8GiB"]["peak"] == rows["remat@1"]["peak"]


def explained(home, out, err):
    assert "planned peak" in out
    assert "h100" in out


def reported(home, out, err):
    assert "trained True" in out
    assert {"html", "json", "txt"} <= {path.suffix[1:] for path in (home / "reports").iterdir()}


def calibrated(home, out, err):
    assert "wrote here.json" in out
    assert json.loads((home / "here.json").read_text())["bandwidth"] > 0


def trained_with_calibration(home, out, err):
    assert "trained True" in out


def planned(home, out, err):
    assert "h200" in out
    assert "Frontier" in out


def locked(home, out, err):
    assert (home / "plans.lock.json").stat().st_size > 0


def checked(home, out, err):
    assert "as committed" in out


def largest(home, out, err):
    assert "256.00 MiB" in out
    assert "512.00 MiB" in out


def trained(home, out, err):
    assert "trained True" in out
    assert "budget 8.00 GiB" in err


def trained_twice(home, out, err):
    assert out.count("trained True") == 2
    assert err.count("budget 8.00 GiB") == 2


# What to check of each command, by its beginning; and the backend that train.py names.
SHOWS = {
    "rematpass compare --model": (compared_own_model, "remat"),
    "rematpass compare": (compared, "remat"),
    "rematpass explain": (explained, "remat"),
    "REMAT_REPORT_DIR=reports python": (reported, "remat"),
    "rematpass calibrate": (calibrated, "remat"),
    "REMAT_HARDWARE=here.json python": (trained_with_calibration, "remat"),
    "rematpass plan reports/graph-0-0-*.graph.json": (planned, "remat"),
    "rematpass plan reports/*.graph.json --budget": (locked, "remat"),
    "rematpass plan reports/*.graph.json --check": (checked, "remat"),
    "rematpass max-batch": (largest, "remat"),
    "rematpass run": (trained, "inductor"),
    "torchrun": (trained_twice, "inductor"),
}


def in_order(compare):
    """The commands that compare, which are independent, or the others, which read the files of earlier ones."""
    return [command for command in commands() if command.startswith("rematpass compare") is compare]


def do(command, home):
    show, backend = next(found for begin, found in SHOWS.items() if command.startswith(begin))
    show(home, *run(command, home, backend))


def test_every_command_does_what_the_text_says(home):
    for command in in_order(compare=False):
        print(command)
        do(command, home)


@pytest.mark.parametrize("command", in_order(compare=True))
def test_every_comparison_does_what_the_text_says(command, home):
    do(command, home)


def test_every_command_has_a_check():
    assert len(commands()) == len(SHOWS)
