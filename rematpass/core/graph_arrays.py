"""A joint graph as arrays over its ops and values, for the simulator and the solvers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Container, Iterable
from functools import cached_property

import numpy as np

from rematpass.core.op import Kind, Op, Origin, Side, Value
from rematpass.core.ragged import Bools, Ints, Rows


class GraphArrays:
    """Base class of ``JointGraph``. Each array is made when it is first asked for."""

    ops: tuple[Op, ...]
    values: tuple[Value, ...]
    calls: int
    own_inputs: tuple[int, ...]

    @property
    @abstractmethod
    def touched(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    @abstractmethod
    def producer(self) -> tuple[int | None, ...]: ...

    @property
    @abstractmethod
    def sides(self) -> tuple[Side, ...]: ...

    @cached_property
    def touched_rows(self) -> Rows:
        """``touched`` as arrays."""
        return Rows.of(self.touched)

    @cached_property
    def elsewhere_rows(self) -> Rows:
        """For each op and each of its ``touched`` values, 1 if the value is one of ``reads_elsewhere``, else 0."""
        return Rows.of([[v in op.reads_elsewhere for v in self.touched[op.id]] for op in self.ops])

    @cached_property
    def slow_to_repeat(self) -> Bools:
        """For each op, ``Op.slow_to_repeat``."""
        return np.array([op.slow_to_repeat for op in self.ops], np.bool_)

    @cached_property
    def always_written(self) -> Bools:
        """For each value, whether its op says ``Op.always_written``."""
        return np.array([*(op.always_written for op in self.ops), False], np.bool_)[self.producer_array]

    @cached_property
    def written_rows(self) -> Rows:
        """For each op, the values that it writes."""
        return Rows.of([op.writes for op in self.ops])

    @cached_property
    def producer_array(self) -> Ints:
        """``producer`` as an array, -1 for None."""
        return np.array([-1 if op is None else op for op in self.producer], np.int64)

    @cached_property
    def _kind_index(self) -> Ints:
        """For each op, the index of its kind among the members of ``Kind``."""
        index = {kind: i for i, kind in enumerate(Kind)}
        return np.array([index[op.kind] for op in self.ops], np.int64)

    def is_of(self, kinds: Container[Kind]) -> Bools:
        """For each op, whether its kind is one of ``kinds``."""
        return np.array([kind in kinds for kind in Kind])[self._kind_index]

    def made_by(self, kinds: Container[Kind]) -> Bools:
        """For each value, whether an op of one of ``kinds`` writes it."""
        return np.append(self.is_of(kinds), False)[self.producer_array]

    @cached_property
    def layout(self) -> Ints:
        """For each value, a number: equal for values of equal size, dtype and order in memory."""
        numbers: dict[tuple[int, str, int], int] = {}
        found = [numbers.setdefault((v.nbytes, v.dtype, v.order), len(numbers)) for v in self.values]
        return np.array(found, np.int64)

    @cached_property
    def nbytes(self) -> Ints:
        """For each value, its bytes."""
        return np.array([v.nbytes for v in self.values], np.int64)

    @cached_property
    def nbytes_of_others(self) -> Ints:
        """For each value, the bytes that the other calls of a step hold of it, if it is saved."""
        of_each_call = [v.origin is Origin.OP or v.id in self.own_inputs for v in self.values]
        others: Ints = (self.calls - 1) * self.nbytes * np.array(of_each_call, np.int64)
        return others

    @cached_property
    def nbytes_workspace(self) -> Ints:
        """For each op, the bytes of its workspace."""
        return np.array([op.nbytes_workspace for op in self.ops], np.int64)

    @cached_property
    def is_backward(self) -> Bools:
        """For each op, whether it belongs to backward."""
        found: Bools = np.array([side is Side.BACKWARD for side in self.sides], np.bool_)
        return found

    @cached_property
    def savable(self) -> Bools:
        """For each value, whether it may be saved and is written by an op outside of backward."""
        free = [self.sides[op.id] is not Side.BACKWARD and not op.must_recompute for op in self.ops]
        can = [v.origin is Origin.OP and not v.cannot_save for v in self.values]
        savable: Bools = np.array(can, np.bool_) & np.array([*free, False])[self.producer_array]
        return savable

    def marked(self, values: Iterable[int]) -> Bools:
        """For each value, whether it is one of ``values``."""
        marked = np.zeros(len(self.values), np.bool_)
        marked[list(values)] = True
        return marked
