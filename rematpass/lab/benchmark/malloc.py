"""The C library's heap while steps are timed: freed memory stays with the process, as with a GPU's caching allocator.

glibc returns large freed blocks to the system, by thresholds that depend on earlier frees. Whether the next step gets
pages that the kernel has to clear therefore differs between processes: a ResNet-50's step has 9,000 to 30,000 such page
faults, and its median over 25 steps is 0.26 or 0.28 s with the same kernels. If freed memory is kept, every process has
about a hundred, and a step takes 0.24 s.

With another C library than glibc these functions do nothing.

Source: mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
_NEVER = -1
_libc = ctypes.CDLL(None)
_IS_GLIBC = hasattr(_libc, "malloc_trim")


def keep_freed_memory() -> None:
    """Never return freed memory to the system from now on, in the whole process."""
    if _IS_GLIBC:
        _libc.mallopt(_MMAP_MAX, 0)
        _libc.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back() -> None:
    """Return free memory to the system once, so that other processes can use it."""
    if _IS_GLIBC:
        _libc.malloc_trim(ctypes.c_size_t(0))
