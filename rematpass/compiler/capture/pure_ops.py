"""Custom ops that the user declares to be pure, so that backward may run them again.

A custom op may do what its schema does not say: count its calls, print, communicate. So it runs once, unless
``torch.utils.checkpoint`` or this declaration allows more. It then starts from the random state of its first run, as
under a checkpoint, so a declared op may draw random numbers.

        ``pure_ops="transformers::*,mylib::scan"``        a part of a name may be ``*``, as in ``fnmatch``

Without it, a mixture of experts whose products are one custom op (``transformers::grouped_mm_fallback``) saves the
results of all experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import fx

from rematpass.compiler._torch import OpOverload
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.ops.traits import traits_of
from rematpass.core.op import Kind, Op


def allow_pure_ops(captured: Captured, names: Sequence[str]) -> Captured:
    """``captured`` with custom ops that may run again: those whose names, with namespace, match one of ``names``."""
    if not names:
        return captured
    graph = captured.graph
    ops = tuple(
        dataclasses.replace(op, never_recompute="") if _is_declared(op, node, names) else op
        for op, node in zip(graph.ops, captured.op_node, strict=True)
    )
    return dataclasses.replace(captured, graph=dataclasses.replace(graph, ops=ops))


def _is_declared(op: Op, node: fx.Node, names: Sequence[str]) -> bool:
    if op.kind is not Kind.OPAQUE or not op.never_recompute or not isinstance(node.target, OpOverload):
        return False
    name = node.target._schema.name
    return any(fnmatchcase(name, pattern) for pattern in names) and traits_of(node).honours_marks
