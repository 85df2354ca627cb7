"""The autograd node behind which a compiled backward runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

BACKWARD_NODE = "CompiledFunctionBackward"  # the end of its name in torch 2.11 to 2.15


def backward_node(outputs: Any, inputs: Sequence[Any] = ()) -> Any:
    """The node that runs the compiled backward of these outputs; None if they need no gradient.

    An output that is a view of another output has nodes of its own in front of that node. An output that is a view of
    an input leads to the node of the input, which belongs to another graph and is not searched.
    """
    found = outputs if isinstance(outputs, Sequence) else [outputs]
    of_inputs = {i.grad_fn for i in inputs if isinstance(i, torch.Tensor) and i.grad_fn is not None}
    todo = list({o.grad_fn for o in found if isinstance(o, torch.Tensor) and o.grad_fn is not None} - of_inputs)
    seen = of_inputs.union(todo)
    while todo:
        node = todo.pop()
        if node.name().endswith(BACKWARD_NODE):
            return node
        behind = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= behind
        todo += behind
    return None
