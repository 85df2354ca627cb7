"""Arrays for plans: rows of different lengths in two arrays, and sequences whose items are created on first access.

A graph of 20,000 ops is simulated dozens of times during planning; with arrays this takes a quarter of the time.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
T = TypeVar("T")


def ints(numbers: Iterable[int]) -> Ints:
    """``numbers`` as an array."""
    return np.array(list(numbers), np.int64)


class LazySequence(Sequence[T]):
    """A sequence that is stored in arrays. On first access, all its items are created at once."""

    @abstractmethod
    def _create_items(self) -> tuple[T, ...]: ...

    @cached_property
    def _items(self) -> tuple[T, ...]:
        return self._create_items()

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self._items[index]

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._items == tuple(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of different lengths: row i is ``items[start[i] : start[i + 1]]``."""

    start: Ints
    items: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Rows:
        """The same rows in arrays."""
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=start[1:])
        return cls(start, np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(start[-1])))

    def count(self, rows: Ints) -> Ints:
        """The number of items in each of ``rows``."""
        return self.start[rows + 1] - self.start[rows]

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """The items of ``rows``, one row after another, as (index into ``rows``, item) pairs in two arrays."""
        count = self.count(rows)
        which = np.repeat(np.arange(len(rows)), count)
        begins = np.cumsum(count) - count
        return which, self.items[np.arange(len(which)) + (self.start[rows] - begins)[which]]
