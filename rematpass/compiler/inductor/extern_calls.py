"""What the calls do that Inductor hands to libraries: the bytes inside them, and whether they return views."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import OpOverload, inductor_ir, pytree
from rematpass.compiler.ops.library_calls import is_library_call
from rematpass.compiler.ops.size_hints import hint_in
from rematpass.compiler.ops.traits import workspace_of_call

# Ops that return views, though by their schemas they do not.
_UNDECLARED_VIEWS = frozenset({"aten::_unsafe_view", "aten::_reshape_alias"})


def viewed(graph: Any, node: Any) -> str | None:
    """The name of the argument whose storage the results of a call live in; None if the call makes new storages."""
    if node.get_mutation_names():
        return str(node.get_mutation_names()[0])  # it returns the argument that it overwrites
    declared = node.get_inputs_that_alias_output()
    if not declared and _op(getattr(node, "op_overload", None)) not in _UNDECLARED_VIEWS:
        return None
    if not _shares_storage(graph, node):
        return None
    return str(declared[0] if declared else node.inputs[0].get_name())


def _shares_storage(graph: Any, node: Any) -> bool:
    """Whether a view by its op is one. A reshape copies where the strides demand it."""

    def stand_in(value: Any) -> Any:
        if not isinstance(value, inductor_ir.IRNode):
            return hint_in(graph, value) if hasattr(value, "free_symbols") else value
        sizes, strides = ([hint_in(graph, n) for n in numbers] for numbers in (value.get_size(), value.get_stride()))
        return torch.empty_strided(sizes, strides, dtype=value.get_dtype(), device="meta")

    try:
        given = node.unflatten_args(list(map(stand_in, node.inputs)), list(map(stand_in, node.constant_args)))
        with _torch.without_modes():
            result = node.op_overload(*given[0], **given[1])
        arguments = {_torch.storage_key(t) for t in pytree.tree_leaves(given) if isinstance(t, torch.Tensor)}
        return all(_torch.storage_key(t) in arguments for t in pytree.tree_leaves(result))
    except Exception:  # no implementation for meta tensors, for example: the schema's word stands
        return True


def workspace_inside(graph: Any, node: Any) -> int:
    """Bytes that a call allocates and frees inside itself; 0 where they are not known."""

    def hints(sizes: Any) -> tuple[int, ...]:
        return tuple(hint_in(graph, size) for size in sizes)

    given = [i for i in node.inputs if isinstance(i, inductor_ir.IRNode) and i.has_tensor_output()]
    laid_out = [(hints(i.get_size()), hints(i.get_stride())) for i in given if i.maybe_get_stride() is not None]
    return max((workspace_of_call(source, laid_out) for source in _calls_behind(node)), default=0)


def _calls_behind(node: Any) -> list[fx.Node]:
    """The fx nodes whose call a kernel makes: of its origins, those of the same op where Inductor names the op.

    Among the origins are also nodes whose loops were written to memory for the call. Without a name, the origins that
    only a library can run are meant.
    """
    origins = list(node.get_origins())
    target = getattr(node, "op_overload", None)
    same = [source for source in origins if target is not None and _op(source.target) == _op(target)]
    return same or [source for source in origins if is_library_call(source)]


def _op(target: Any) -> Any:
    """What is the same for an op, its overloads, and its in-place form."""
    return target._schema.name.rstrip("_") if isinstance(target, OpOverload) else target
