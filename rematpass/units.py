"""Bytes, seconds and percentages as people write and read them: "8GiB" <-> 8589934592.

Bytes are exact integers, parsed with rational arithmetic and never through a float. ``GiB`` is 2**30 bytes and ``GB``
is 10**9 (IEC 80000-13). ``8G`` is refused, because tools disagree about which of the two it means.
"""

import math
import re
from fractions import Fraction

BYTE_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SCALES = {unit.lower(): scale for unit, scale in BYTE_UNITS.items()}
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,30}|[0-9]{0,30}\.[0-9]{1,30})\s*([A-Za-z]*)")
_AMBIGUOUS_UNIT = re.compile(r"([KMGT])i?", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Parse a number of bytes: "8GiB", "1.5 GiB", "512MiB", "2GB", "8589934592".

    Units are case-insensitive; no unit means bytes. A fraction of a byte is rounded down ("0.1KiB" is 102), so that a
    limit is never read as more than what was written.

    Raises:
        ValueError: anything else, such as a sign, an exponent, nan, inf, or half a byte.
    """
    match = _NUMBER_AND_UNIT.fullmatch(text.strip())
    number, unit = match.groups() if match else ("", "")
    scale = _SCALES.get(unit.lower() or "b")
    if not number or scale is None:
        meant = _AMBIGUOUS_UNIT.fullmatch(unit)
        hint = f"; did you mean {number}{meant[1].upper()}iB?" if number and meant else ""
        raise ValueError(f"{text!r} is not a number of bytes; the units are {', '.join(BYTE_UNITS)}{hint}")
    if scale == 1 and "." in number:
        raise ValueError(f"{text!r} is not a whole number of bytes; did you mean {number}GiB?")
    return math.floor(Fraction(number) * scale)


def format_bytes(nbytes: int, *, round_up: bool = False) -> str:
    """Format with two decimals in the smallest binary unit that needs at most four digits: "1.50 GiB", "512 B".

    ``round_up``: never less than ``nbytes``, for a suggested limit that a user copies.
    """
    sign, size = ("-", -nbytes) if nbytes < 0 else ("", nbytes)
    if size < 1024:
        return f"{sign}{size} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        scale = BYTE_UNITS[unit]
        hundredths = (100 * size + (scale - 1 if round_up else scale // 2)) // scale
        if hundredths < 1024_00:
            break
    return f"{sign}{hundredths // 100}.{hundredths % 100:02d} {unit}"


def format_seconds(seconds: float) -> str:
    """Format with two decimals in the unit that needs at most three digits: "1.30 ms", "75.00 s"; never minutes."""
    if seconds == 0:
        return "0 s"
    for unit, per_second in (("ns", 1e9), ("us", 1e6), ("ms", 1e3)):
        if round(abs(seconds) * per_second, 2) < 1000:
            return f"{seconds * per_second:.2f} {unit}"
    return f"{seconds:.2f} s"


def format_percent(share: float, decimals: int = 1) -> str:
    """Format a share of 1 as a percentage: 0.123 is "12.3%"."""
    return f"{100 * share:.{decimals}f}%"
