"""What torch is compiling now, and which of the model's modules are being called."""

from __future__ import annotations

import weakref

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import CompileContext


def compile_id() -> str:
    """Dynamo's name of the current compilation, "frame/recompile"; "" outside of one."""
    return str(CompileContext.current_compile_id() or "")


def frame_id() -> int | None:
    """Dynamo's number of the frame being compiled; None outside of Dynamo."""
    return getattr(CompileContext.current_compile_id(), "frame_id", None)


def is_recompile() -> bool:
    """Whether the frame has been compiled before, for example for other shapes."""
    return bool(getattr(CompileContext.current_compile_id(), "frame_compile_id", 0))


def compilation() -> object:
    """The same object for all graphs of one compilation of a frame; None outside of Dynamo.

    It does not equal that of any other compilation, not even of the same number after ``torch._dynamo.reset()``.
    """
    context = CompileContext.try_get()
    return None if context is None or context.compile_id is None else (weakref.ref(context), context.attempt)


def running_modules() -> list[torch.nn.Module]:
    """The user's modules being called on this thread, innermost first, without modules that fx has made.

    Modules outside of a ``torch.utils.checkpoint`` are left out: it saves nothing of what runs inside.
    """
    return [module for module in _torch.modules_being_called() if not isinstance(module, fx.GraphModule)]


def region_calls() -> list[fx.Node]:
    """The calls of the region being partitioned, in the joint graph around it; none if no region is."""
    this, calls = _torch.region_being_partitioned()
    return [call for call in calls if this is not None and call.args[1] == this.args[1]]
