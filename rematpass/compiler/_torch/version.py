"""The range of torch versions whose private interfaces this package has been tested with."""

from __future__ import annotations

from rematpass.errors import TorchVersionError

OLDEST, BEYOND = (2, 11), (2, 16)


def check_version(version: str) -> None:
    """Refuse a torch whose private interfaces have not been tested.

    Raises:
        TorchVersionError: ``version`` is outside the supported range.
    """
    if not OLDEST <= release(version) < BEYOND:
        oldest, beyond = (".".join(map(str, v)) for v in (OLDEST, BEYOND))
        raise TorchVersionError(
            f"rematpass works with torch >= {oldest} and < {beyond}, and this is torch {version}; "
            f"install one of those, for example: pip install torch==2.13.0"
        )


def release(version: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])
