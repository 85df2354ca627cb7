"""The package's own sources as a hash: a plan depends on them, and so does the code that is compiled from it."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]  # of the package


@functools.cache
def sources_hash(*, but: tuple[str, ...] = ()) -> str:
    """A hash of every source file that has a say in a plan, ``but`` those whose paths from the root begin so."""
    files = [ROOT / "config.py", ROOT / "units.py", *(ROOT / "core").rglob("*.py"), *(ROOT / "compiler").rglob("*.py")]
    digest = hashlib.sha256()
    for file in sorted(files):
        name = file.relative_to(ROOT).as_posix()
        if not name.startswith(but):
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
