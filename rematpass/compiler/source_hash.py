"""The package's own sources as a hash: a plan depends on them, and so does the code that is compiled from it.

Neither hash knows where a file lies, so a file can be moved without changing what is filed under it.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the package


def _sources(but: tuple[str, ...]) -> list[bytes]:
    """The contents of every source file that has a say in a plan, except files whose path begins with one of ``but``."""
    files = [ROOT / "config.py", ROOT / "units.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "compiler").rglob("*.py")]
    return [file.read_bytes() for file in files if not file.relative_to(ROOT).as_posix().startswith(but)]


def _hash(texts: list[bytes]) -> str:
    digests = sorted(hashlib.sha256(text).digest() for text in texts)
    return hashlib.sha256(b"".join(digests)).hexdigest()


@functools.cache
def sources_hash() -> str:
    """A hash of the sources, byte by byte: a part of the keys of compile caches."""
    return _hash(_sources(()))


@functools.cache
def behavior_hash(*, but: tuple[str, ...] = ()) -> str:
    """A hash of what the sources do: comments, docstrings and imports within the package are left out.

    Measurements are filed under it, so that they outlive a better sentence or a better place for a file. It is slower
    than ``sources_hash`` (0.3 s) and differs between versions of Python whose syntax trees differ.
    """
    return _hash([_behavior(text) for text in _sources(but)])


def _behavior(source: bytes) -> bytes:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [part for part in body if not _says_nothing(part)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _says_nothing(node: ast.stmt) -> bool:
    """Whether a statement is a docstring, or imports a module of this package."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rematpass")
