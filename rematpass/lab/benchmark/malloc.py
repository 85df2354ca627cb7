"""The C library's heap while steps are timed: freed memory stays with the process, as a GPU's allocator keeps it.

glibc hands large blocks back to the system when they are freed, by thresholds that move with what was freed before. The
next step then gets pages that the kernel has to clear, or it does not: a ResNet-50's step had 9,000 to 30,000 of such
faults in one process or another, and its median over 25 steps was 0.26 or 0.28 s with the same kernels. Kept, there are
about a hundred in every process, and a step takes 0.24 s.

Where the C library is another one, nothing is changed.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # mallopt's names for them
_NEVER = -1
_libc = ctypes.CDLL(None)
_IS_GLIBC = hasattr(_libc, "malloc_trim")


def keep_freed_memory() -> None:
    """From now on, for all of this process."""
    if _IS_GLIBC:
        _libc.mallopt(_MMAP_MAX, 0)
        _libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Hand what is free back to the system, for others to use."""
    if _IS_GLIBC:
        _libc.malloc_trim(ctypes.c_size_t(0))
