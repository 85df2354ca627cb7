"""Plans in arrays: lists of different lengths as two of them, and sequences whose items are made when they are wanted.

A graph of 20,000 ops is simulated dozens of times while it is planned; in arrays that takes a fourth of the time.
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
T = TypeVar("T")


def ints(numbers: Iterable[int]) -> Ints:
    return np.array(list(numbers), np.int64)


class Lazy(Sequence[T]):
    """A sequence that stands in arrays; its items are made all at once, when somebody asks for one."""

    @abstractmethod
    def made(self) -> tuple[T, ...]:
        """The items."""

    @cached_property
    def _items(self) -> tuple[T, ...]:
        return self.made()

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
    """Row i is ``items[start[i] : start[i + 1]]``."""

    start: Ints
    items: Ints

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Rows:
        start = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=start[1:])
        return cls(start, np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(start[-1])))

    def count(self, rows: Ints) -> Ints:
        """How many items each of ``rows`` has."""
        return self.start[rows + 1] - self.start[rows]

    def take(self, rows: Ints) -> tuple[Ints, Ints]:
        """The items of ``rows``, one row after another; and for each item, which of ``rows`` it is from."""
        count = self.count(rows)
        which = np.repeat(np.arange(len(rows)), count)
        begins = np.cumsum(count) - count
        return which, self.items[np.arange(len(which)) + (self.start[rows] - begins)[which]]
