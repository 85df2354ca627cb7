"""``rematpass env``: complete, without personal names, and without torch if it is missing."""

import json
import platform
import subprocess
import sys
from pathlib import Path

from rematpass import __version__, cli
from rematpass.commands import env


def run(capsys, *arguments):
    code = cli.main(["env", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_json_has_versions_hardware_and_settings(capsys, monkeypatch):
    import torch

    monkeypatch.setenv("REMAT_MEMORY_BUDGET", "8GiB")
    monkeypatch.setenv("REMAT_REPORT_DIR", str(Path.home() / "reports"))
    monkeypatch.setenv("UNRELATED", "secret")
    code, out, err = run(capsys, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["rematpass"] == __version__
    assert found["python"].startswith(platform.python_version())
    assert found["torch"] == torch.__version__
    assert found["ortools"]
    assert {"os", "cpu", "gpu", "CUDA", "C++ compiler"} <= found.keys()
    assert found["variables"]["REMAT_MEMORY_BUDGET"] == "8GiB"
    assert found["variables"]["REMAT_REPORT_DIR"] == str(Path("~") / "reports")
    assert {"activation_memory_budget", "cache directory"} <= found["torch settings"].keys()
    assert "secret" not in out


def test_text_has_a_line_per_setting(capsys):
    code, out, _ = run(capsys)
    assert code == 0
    names = [line.split("  ")[0] for line in out.splitlines() if not line.startswith(" ")]
    assert names == list(env.environment())


def test_paths_contain_neither_home_nor_user(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    found = env.without_names(
        {"a": "/home/ada/x", "b": ["/tmp/torchinductor_ada"], "c": {"d": "/data/ada/y"}, "e": "/data/adapter"}
    )
    assert found == {"a": "~/x", "b": ["/tmp/torchinductor_USER"], "c": {"d": "/data/USER/y"}, "e": "/data/adapter"}


WITHOUT_TORCH = """
import sys, importlib.metadata as metadata
real = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
sys.modules["torch"] = None
from rematpass.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_works_without_torch_and_says_so():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "env", "--json"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["torch"] == "not installed"
    assert found["rematpass"] == __version__


def test_a_torch_that_does_not_load_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "which does not load: ModuleNotFoundError" in env.environment()["torch"]
