"""Kept memory, measured by page faults; in a separate process, since the setting affects all of a process."""

import subprocess
import sys

import pytest

FAULTS = """
import ctypes, resource, sys
from rematpass.lab.benchmark import malloc

if not hasattr(ctypes.CDLL(None), "malloc_trim"):
    sys.exit("not glibc")

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(48 << 20)  # 12,288 pages, cleared
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

[faults() for _ in range(3)]
found = [faults()]
malloc.keep_freed_memory()
faults()
found.append(faults())
malloc.give_back()
found.append(faults())
print(*found)
"""


def test_freed_pages_are_kept_until_they_are_given_back():
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    if "not glibc" in done.stderr:
        pytest.skip("another C library")
    by_default, kept, given_back = map(int, done.stdout.split())
    assert 2 * kept < min(by_default, given_back), done.stdout  # 1, 12289 and 12289 where pages are small
