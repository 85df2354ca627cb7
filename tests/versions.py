"""Run the suite on several versions of torch, each in an environment of its own, and print a table of the results.

    python tests/versions.py                          # three versions: the oldest, one more, and the registry's newest
    python tests/versions.py 2.11.0 2.13.0 --all      # these versions, all tests
    python tests/versions.py 2.14.1 --only tests/compiler/inductor
    python tests/versions.py 2.12.0 --pip "--index-url URL"   # from another index: CPU builds are a tenth of the size

Environments are created in ``--environments``, named after the version, and reused; a link to an existing one works
too. Builds for CUDA run these tests on the CPU as well. A version that pyproject.toml does not accept is reported and
not downloaded; to try it, widen the range there and in compiler/_torch/version.py. The exit code is 1 if any test
failed.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
NEWEST = "newest"
# The tests of code that uses torch's private interfaces, which a new version may break.
NEAR_TORCH = [
    "tests/compiler",
    *(f"tests/test_{name}.py" for name in ("dynamic_shapes", "end_to_end", "imports", "never_wrong", "subclasses")),
]


@dataclass
class Outcome:
    """The result for one version: counts of tests, or the reason why there are none."""

    version: str
    passed: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()
    reason: str = ""

    @property
    def is_good(self) -> bool:
        return not self.failed and not self.reason


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=["2.11.0", "2.13.0", NEWEST], metavar="VERSION")
    parser.add_argument("--environments", type=Path, default=ROOT / ".versions", metavar="DIR")
    parser.add_argument("--all", action="store_true", help="the whole suite")
    parser.add_argument("--only", default=NEAR_TORCH, nargs="+", metavar="PATH", help="files or directories of tests")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes of pytest (default: 1)")
    parser.add_argument("--pip", default="", metavar="OPTIONS", help="passed to pip when it installs torch")
    parser.add_argument("--pytest", default="", metavar="OPTIONS", help="passed to pytest, as in '-k dropout'")
    arguments = parser.parse_args()
    files = ["tests"] if arguments.all else arguments.only
    pytest_options = ["-n", str(arguments.workers), *shlex.split(arguments.pytest), *files]
    outcomes = []
    for given in arguments.versions:
        try:
            version = newest() if given == NEWEST else given
            if version in [outcome.version for outcome in outcomes]:
                continue
            if not accepted().specifier.contains(version):
                outcomes.append(Outcome(version, reason=f"not fetched: rematpass takes {accepted()}"))
            else:
                python = environment(arguments.environments, version, shlex.split(arguments.pip))
                outcomes.append(tested(python, version, pytest_options))
        except subprocess.CalledProcessError as error:
            outcomes.append(Outcome(given, reason=f"{shlex.join(map(str, error.cmd[1:5]))} failed"))
    show(outcomes)
    return int(not all(outcome.is_good for outcome in outcomes))


def accepted() -> Requirement:
    """The package's requirement on torch."""
    (found,) = re.findall(r'^ *"(torch[ <>=][^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    return Requirement(found)


def newest() -> str:
    """The newest version of torch that pip finds."""
    asked = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    answer = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    found = re.search(r"torch \(([\d.]+)", answer)
    if found is None:
        raise subprocess.CalledProcessError(1, asked)
    return found[1]


def environment(directory: Path, version: str, pip_options: list[str]) -> Path:
    """The interpreter of an environment with this version of torch and what the tests need, created if missing."""
    home = directory / f"torch-{version}"
    python = home / "bin" / "python"
    if not _has(python, version):
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        install = [str(python), "-m", "pip", "install", "-q"]
        subprocess.run([*install, *pip_options, f"torch=={version}"], check=True)
        subprocess.run([*install, f"torch=={version}", "-e", f"{ROOT}[test]"], check=True)
    return python


def _has(python: Path, version: str) -> bool:
    asked = [str(python), "-c", "import torch, pytest, xdist, hypothesis; print(torch.__version__)"]
    if not python.exists():
        return False
    return subprocess.run(asked, capture_output=True, text=True).stdout.split("+")[0].strip() == version


def tested(python: Path, version: str, options: list[str]) -> Outcome:
    """Run pytest with this interpreter on this checkout, whatever is installed in its environment."""
    with TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": scratch, "HF_HUB_OFFLINE": "1"}
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options]
        done = subprocess.run(command, cwd=ROOT, env=environ)
        if not report.exists():
            return Outcome(version, reason=f"pytest ended with {done.returncode} and no report")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = sum(c.find("skipped") is not None for c in cases)
    names = tuple(f"{c.get('classname')}::{c.get('name')}" for c in failed)
    return Outcome(version, len(cases) - len(failed) - skipped, skipped, names)


def show(outcomes: list[Outcome]) -> None:
    console = Console(highlight=False)
    table = Table("torch", "passed", "skipped", "failed")
    for outcome in outcomes:
        counts = (outcome.passed, outcome.skipped, len(outcome.failed))
        table.add_row(outcome.version, *(map(str, counts) if not outcome.reason else (outcome.reason, "", "")))
    console.print(table)
    for outcome in outcomes:
        for name in outcome.failed:
            console.print(f"torch {outcome.version}: {name}")


if __name__ == "__main__":
    sys.exit(main())
