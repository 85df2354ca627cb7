"""What torch is doing now, read from the locals of its functions on the call stack and from its global state.

A backend is called while the step's first call is being compiled, so the modules that are being called are on the
stack. Only the locals of the named functions are read: ``frame.f_locals`` keeps what it returns alive until the frame
ends.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import fx
from torch._dynamo import compiled_autograd

# The code that runs while a module is being called. Both names exist in torch 2.11 to 2.15.
_MODULE_CALLS = (torch.nn.Module._call_impl.__code__, torch.nn.Module._wrapped_call_impl.__code__)


def modules_being_called() -> list[torch.nn.Module]:
    """The modules being called on this thread, innermost first, up to an enclosing ``torch.utils.checkpoint``."""
    found: list[torch.nn.Module] = []
    for frame in _frames():
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            break
        if frame.f_code in _MODULE_CALLS:
            found.append(frame.f_locals["self"])
    return found


def region_being_partitioned() -> tuple[fx.Node | None, Sequence[fx.Node]]:
    """A call of the region being partitioned and the calls of all regions in the joint graph around it.

    The partition function is not told about the graph around a region (``torch.compiler.nested_compile_region``), so
    these are read from ``run_joint_graph_passes_on_hops``, whose locals have these names in torch 2.11, 2.13 and 2.14.
    None and no calls where no region is being partitioned.
    """
    for frame in _frames():
        if frame.f_code.co_name == "run_joint_graph_passes_on_hops":
            held: dict[str, Any] = frame.f_locals
            return held.get("fw_hop_node"), held.get("fw_hop_nodes", ())
    return None, ()


def _frames() -> Iterator[FrameType]:
    """The frames of this thread, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def saved_tensor_hooks_are_active() -> bool:
    """Whether hooks wrap what autograd saves now, as a checkpoint's or offloading's do."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def backward_is_traced() -> bool:
    """Whether compiled autograd traces backwards now, and hooks with them."""
    return bool(compiled_autograd.compiled_autograd_enabled)
