"""Single ops and values of a joint graph, as the planner sees them.

A *value* is a storage together with all its views. Views take no memory and are replayed wherever they are read, so a
view is not an op: an op reads the storages behind its arguments. An op with several outputs writes several values.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Kind(str, Enum):
    """The class of an op in the cost model. The core knows kinds, never the names of ops."""

    POINTWISE = "pointwise"
    REDUCTION = "reduction"
    MATMUL = "matmul"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    INDEXING = "indexing"  # reads at computed positions: gather, embedding
    SCATTER = "scatter"  # writes at computed positions
    KERNEL = "kernel"  # any other op of torch: pure, and one kernel by itself
    COPY = "copy"  # moves bytes without arithmetic: clone, cat, pad
    CREATE = "create"  # reads nothing: full, iota
    SYMBOLIC = "symbolic"  # arithmetic on sizes; no bytes
    RANDOM = "random"
    SEEDED = "seeded"  # random numbers from an explicit seed: drawing them again gives the same numbers
    COLLECTIVE = "collective"
    EFFECT = "effect"
    MUTATION = "mutation"
    OPAQUE = "opaque"  # a custom op, a user's kernel, a higher-order op


# Run by libraries whichever compiler runs the rest, so never fused into a kernel with other ops.
LIBRARY_KINDS = frozenset({Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION})


class Origin(str, Enum):
    """Where a value comes from."""

    OP = "op"
    STATIC = "static"  # a parameter or buffer: it exists before and after the step
    INPUT = "input"  # any other argument of forward
    TANGENT = "tangent"  # an argument of backward


class Side(str, Enum):
    """Where an op has to run. EITHER: it depends on no tangent, and no output of forward depends on it."""

    FORWARD = "forward"
    BACKWARD = "backward"
    EITHER = "either"


@dataclass(frozen=True)
class Value:
    """A storage. ``nbytes`` is exact for the sizes seen at compile time; ``nbytes_expr`` is the formula behind it.

    ``order``: values that element by element are computed from each other have the same number if their elements lie in
    memory in the same order, and different numbers if one is a transposed image of the other.
    """

    id: int
    nbytes: int
    origin: Origin = Origin.OP
    nbytes_expr: str = ""
    name: str = ""
    dtype: str = ""
    shape: tuple[str, ...] = ()
    must_save: bool = False
    cannot_save: str = ""  # the reason, in words; empty if the value can be saved
    mutated: bool = False  # an input that forward overwrites: backward never reads it
    order: int = 0

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Value:
        """A value from the fields that JSON holds: lists for tuples, texts for enums."""
        return cls(**{**fields, "shape": tuple(fields["shape"]), "origin": Origin(fields["origin"])})


@dataclass(frozen=True)
class Op:
    """One call. ``reads`` and ``writes`` are value ids; ``mutates`` lists the values that it overwrites.

    ``reads_elsewhere``: of an op that fuses, the reads that are not element by element: an element of the result
    depends on others of the argument (a sum over rows, a gather, a slice). The result cannot be written over such an
    argument, nor over what the argument is computed from.

    ``slow_to_repeat``: of an op that fuses, whether its result is not computed again in each of several readers, and
    neither is what a kernel computes from it: a fusing compiler writes that to memory. ``always_written``: whether a
    fusing compiler writes its results to memory in any case.
    """

    id: int
    kind: Kind
    reads: tuple[int, ...] = ()
    writes: tuple[int, ...] = ()
    mutates: tuple[int, ...] = ()
    name: str = ""
    flops: int = 0  # FLOP of one run
    nbytes_read: int = 0  # bytes that its arguments span; a view counts with its own size
    nbytes_workspace: int = 0  # bytes that it allocates while it runs and frees before it returns
    dtype: str = ""  # of the arithmetic
    never_recompute: str = ""  # the reason, in words; empty if the op may run again
    must_recompute: bool = False  # the user marked it: its values are not saved
    pinned: Side = Side.EITHER  # effects, mutations and random draws stay on their side
    source: str = ""  # file:line of the user's code
    module: str = ""  # path of the nn.Module that called it
    reads_elsewhere: tuple[int, ...] = ()
    slow_to_repeat: bool = False
    always_written: bool = False

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Op:
        """An op from the fields that JSON holds: lists for tuples, texts for enums."""
        tuples = {name: tuple(fields[name]) for name in ("reads", "writes", "mutates")}
        tuples["reads_elsewhere"] = tuple(fields.get("reads_elsewhere", ()))
        return cls(**{**fields, **tuples, "kind": Kind(fields["kind"]), "pinned": Side(fields["pinned"])})
