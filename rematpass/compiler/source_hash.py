"""Hashes of the package's sources, on which plans and the code compiled from them depend.

The hashes do not depend on paths: a file can be moved without invalidating what is stored under them.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]  # the directory of the package
_FIRST_FILES = ("units.py", "budget.py", "config.py")


def _sources(but: tuple[str, ...]) -> list[bytes]:
    """The contents of all source files that affect plans, except files whose path begins with one of ``but``."""
    files = [ROOT / name for name in _FIRST_FILES]
    files += [file for directory in ("core", "compiler") for file in (ROOT / directory).rglob("*.py")]
    return [file.read_bytes() for file in files if not file.relative_to(ROOT).as_posix().startswith(but)]


def _hash(texts: list[bytes]) -> str:
    digests = sorted(hashlib.sha256(text).digest() for text in texts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


@functools.cache
def sources_hash() -> str:
    """A hash of the bytes of the sources, for the keys of compile caches."""
    return _hash(_sources(()))


@functools.cache
def behavior_hash(*, but: tuple[str, ...] = ()) -> str:
    """A hash of the sources without comments, docstrings and imports within the package.

    Measurements are stored under it, so they stay valid when text changes or files move. It is slower than
    ``sources_hash`` (0.3 s), and differs between versions of Python with different syntax trees.
    """
    return _hash([_behavior(text) for text in _sources(but)])


def _behavior(source: bytes) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _has_no_effect(part)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _has_no_effect(node: ast.stmt) -> bool:
    """Whether the statement is a docstring or imports a module of this package."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rematpass")
