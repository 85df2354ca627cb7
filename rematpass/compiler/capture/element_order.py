"""Which arguments an op reads element by element, and which values lie in memory in the same order.

Inductor writes a result over an argument only if one index expression fits both. So for ``y = (x.T + 1).T``, ``y`` can
take over the bytes of ``x`` if the sum stays inside the kernel, and neither can take over those of the sum if it is
written to memory::

        x ──▶ (view) x.T ──▶ [add] ──▶ s ──▶ (view) s.T ──▶ [clone] ──▶ y        order of x: 0, of s: 1, of y: 0

A few elements of one value are followed to all values that are computed from it element by element, and back. The
places at which they lie in memory are compared: equal places mean equal orders. An op that reads a value in two orders
(``x + x.T``) reads it elsewhere.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from rematpass.compiler import _torch
from rematpass.compiler.ops.size_hints import hint

# The elements that are followed, as parts of all elements; irregular, so that no other order has them in the same
# places: multiples of the golden ratio, without their whole parts.
_FOLLOWED = tuple(k * (math.sqrt(5) - 1) / 2 % 1 for k in range(1, 6))

Places = tuple[int, ...]  # in memory, counted in elements


@dataclass(frozen=True)
class _Step:
    """Op ``op`` computes ``result`` from ``argument`` element by element: the strides of both in the result's shape."""

    op: int
    argument: int
    result: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    strides_of_result: tuple[int, ...]

    @property
    def keeps_order(self) -> bool:
        return self.strides == self.strides_of_result

    def follow(self, value: int, places: Places) -> tuple[int, Places]:
        """The other value of this step, and where the elements at ``places`` of ``value`` lie in it."""
        forward = value == self.argument
        strides, others = self.strides, self.strides_of_result
        if not forward:
            strides, others = others, strides
        moved = places if strides == others else tuple(_moved(p, self.shape, strides, others) for p in places)
        return (self.result if forward else self.argument), moved


def _moved(place: int, shape: Sequence[int], strides: Sequence[int], others: Sequence[int]) -> int:
    """Where the element at ``place`` of a dense tensor lies if the tensor has other strides."""
    moved = 0
    for d in sorted(range(len(shape)), key=lambda d: (-strides[d], -shape[d])):
        if shape[d] > 1:
            index, place = divmod(place, strides[d])
            moved += index * others[d]
    return moved


@dataclass(frozen=True)
class Orders:
    """``of_value``: the number of a value's order, where it is not 0. ``elsewhere``: per op, the values that it reads
    not element by element, or in a second order.
    """

    of_value: dict[int, int]
    elsewhere: dict[int, set[int]]


@dataclass
class ElementReader:
    """Collects how ops read their arguments."""

    elsewhere: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    steps: list[_Step] = field(default_factory=list)

    def add(
        self,
        op: int,
        reads: Iterable[tuple[int, torch.Tensor, bool]],
        result: tuple[int, torch.Tensor] | None,
    ) -> None:
        """Record the reads of an op: values, each with the tensor (a view of all its bytes, or of a part of them) that
        the op reads, and whether the op reads that tensor element by element. ``result``: the value that it writes, and
        its tensor; None if it writes several.
        """
        for value, tensor, each in reads:
            if not each or result is None or not self._read(op, value, tensor, *result):
                self.elsewhere[op].add(value)

    def _read(self, op: int, value: int, tensor: torch.Tensor, written: int, result: torch.Tensor) -> bool:
        """Record one read; False if it is not element by element."""
        shape, strides = _layout(result)
        sizes, own = _layout(tensor)
        missing = len(shape) - len(sizes)
        sizes, own = (1,) * missing + sizes, (0,) * missing + own
        if missing < 0 or any(n not in (1, m) for n, m in zip(sizes, shape, strict=True)):
            return False
        repeats = any(m > 1 and (n == 1 or s == 0) for n, s, m in zip(sizes, own, shape, strict=True))
        if not (_fills_storage(tensor, sizes, own) and _fills_storage(result, shape, strides)):
            return False
        if not repeats:  # else the argument is smaller than the result, which cannot take over its bytes
            own, strides = (tuple(s if n > 1 else 0 for s, n in zip(of, shape, strict=True)) for of in (own, strides))
            self.steps.append(_Step(op, value, written, shape, own, strides))
        return True

    def orders(self) -> Orders:
        """What follows from all that was added."""
        steps_of: dict[int, list[_Step]] = defaultdict(list)
        for step in self.steps:
            steps_of[step.argument].append(step)
            steps_of[step.result].append(step)
        places: dict[int, Places] = {}
        numbers: dict[Places, int] = {}
        found = Orders({}, defaultdict(set, {op: set(values) for op, values in self.elsewhere.items()}))
        for first in sorted(steps_of):
            if first in places:
                continue
            count = math.prod(steps_of[first][0].shape)
            start = places[first] = tuple(int(part * count) for part in _FOLLOWED)
            todo = deque([first])
            while todo:
                value = todo.popleft()
                if places[value] != start:
                    found.of_value[value] = numbers.setdefault(places[value], len(numbers) + 1)
                for step in steps_of[value]:
                    other, there = step.follow(value, places[value])
                    if other not in places:
                        places[other] = there
                        (todo.appendleft if step.keeps_order else todo.append)(other)
        for step in self.steps:
            if step.follow(step.argument, places[step.argument])[1] != places[step.result]:
                found.elsewhere[step.op].add(step.argument)
        return found


def _layout(tensor: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(map(hint, tensor.shape)), tuple(map(hint, tensor.stride()))


def _fills_storage(tensor: torch.Tensor, sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether every element of the tensor's storage is one of its elements; elements may repeat (stride 0)."""
    if hint(tensor.storage_offset()):
        return False
    count = 1
    for stride, size in sorted(zip(strides, sizes, strict=True)):
        if size > 1 and stride:
            if stride != count:
                return False
            count *= size
    return count * tensor.element_size() == hint(tensor.untyped_storage().nbytes())


def has_strides(tensor: Any) -> TypeGuard[torch.Tensor]:
    """Whether a result is a tensor with strides and a storage, unlike a sparse one."""
    return (
        isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and _torch.storage_key(tensor) is not None
    )
