"""Files that are complete or absent: an interruption or a full disk leaves neither half a file nor a temporary one."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rematpass.errors import ReportError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; the file becomes ``path`` when the ``with`` ends, and is removed if the ``with`` fails.

    The temporary file is in the same directory. What is not a regular file, such as /dev/stdout, is written directly.

    Raises:
        ReportError: the file cannot be written; the message names ``path`` and says why.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    temporary: Path | None = None
    try:
        target = path.resolve()  # a symbolic link stays, and the file that it names is replaced
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
            temporary = Path(file.name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str | bytes) -> None:
    """Write a file, and create the directories above it.

    Raises:
        ReportError: the file cannot be written; the message names ``path`` and says why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error
    with replacing(path) as file:
        file.write_bytes(text.encode() if isinstance(text, str) else text)


def _cannot_write(path: Path, error: OSError) -> ReportError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    hint = "free some space or write elsewhere" if is_full else "give another directory"
    return ReportError(f"cannot write {path}: {error.strerror or error}; {hint}")
