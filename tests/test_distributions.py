"""The wheel and the source distribution contain the whole package, with the guide and the page's parts."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from rematpass.commands.guide import topics

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[1]
PACKED = "rematpass pyproject.toml README.md LICENSE".split()
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The directory with both, built from a copy, because setuptools leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "wheels", "site"))
        else:
            shutil.copy(ROOT / name, copy)
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BUILD], cwd=copy, env=environ, capture_output=True, text=True
    )
    if "bdist_wheel" in done.stderr:
        pytest.skip("this setuptools needs the package wheel to build one")
    assert done.returncode == 0, done.stderr
    return copy / "dist"


def files(*directories):
    found = (p for d in directories for p in (ROOT / d).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(ROOT).as_posix() for p in found}


def test_the_wheel_contains_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {n for n in names if ".dist-info/" not in n} == files("rematpass")
    (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
    text = zipfile.ZipFile(wheel).read(entry_points).decode()
    assert "remat = rematpass.compiler.backend:remat\n" in text
    assert "rematpass = rematpass.cli:main" in text
    assert any(n.endswith("LICENSE") for n in names)


def test_the_source_distribution_contains_all_sources_of_the_wheel(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= files("rematpass") | {"README.md", "LICENSE", "pyproject.toml"}


def test_the_wheel_contains_every_topic_of_the_guide(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert len(topics()) >= 8
    assert {f"rematpass/guide/{topic}.md" for topic in topics()} <= set(names)
