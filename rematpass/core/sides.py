"""On which side of the step each op has to run.

BACKWARD is every op that depends on a tangent, and FORWARD every op that an output of forward depends on. A pinned op
(an effect, a mutation, a random draw) stays on its side, and takes along what it depends on (forward) or what depends
on it (backward). EITHER are the remaining ops::

        forward's outputs ◀── FORWARD ──▶ EITHER ──▶ BACKWARD ◀── tangents

Source: torch's ``classify_nodes`` (``torch/_functorch/partitioners.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rematpass.core.op import Op, Side


def classify(ops: Sequence[Op], fwd_outputs: Iterable[int], tangents: Iterable[int]) -> tuple[Side, ...]:
    """The side of each op."""
    sides = [op.pinned for op in ops]
    from_backward = set(tangents)
    for op in ops:
        if sides[op.id] is Side.BACKWARD or not from_backward.isdisjoint(op.reads):
            sides[op.id] = Side.BACKWARD
            from_backward.update(op.writes)
    needed = set(fwd_outputs)
    for op in reversed(ops):
        if sides[op.id] is Side.FORWARD or (sides[op.id] is Side.EITHER and not needed.isdisjoint(op.writes)):
            sides[op.id] = Side.FORWARD
            needed.update(op.reads + op.mutates)
    return tuple(sides)
