"""What torch is doing now: what it compiles, and which of the model's modules are being called."""

from __future__ import annotations

import inspect

import torch
from torch import fx

from rematpass.compiler._torch import CALLS_OF_MODULES, CompileContext


def compile_id() -> str:
    """Dynamo's name for the compilation under way, "frame/recompile", or "" outside of one."""
    return str(CompileContext.current_compile_id() or "")


def frame_id() -> int | None:
    """Which of the program's frames is being compiled; None outside of Dynamo."""
    return getattr(CompileContext.current_compile_id(), "frame_id", None)


def is_recompile() -> bool:
    """Whether the frame has been compiled before, for other shapes, say."""
    return bool(getattr(CompileContext.current_compile_id(), "frame_compile_id", 0))


def running_modules() -> list[torch.nn.Module]:
    """The modules that are being called on this thread, from the innermost out; none of those that fx has made, nor
    those outside of a ``torch.utils.checkpoint``, which saves nothing of what runs inside it.

    Only the locals of ``Module.__call__`` are looked at: to look at a frame's would keep them alive until it ends.
    """
    found: list[torch.nn.Module] = []
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        its = frame.f_locals["self"] if frame.f_code in CALLS_OF_MODULES else None
        if its is not None and not isinstance(its, fx.GraphModule):
            found.append(its)
        frame = frame.f_back
    return found


def region_calls() -> list[fx.Node]:
    """The calls, in the joint graph around it, of the region compiled once whose joint graph is being partitioned.

    Nothing that the partition function is given tells of them, so they are read where torch holds them
    (``run_joint_graph_passes_on_hops``); none outside of it.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "run_joint_graph_passes_on_hops":
        frame = frame.f_back
    held = {} if frame is None else frame.f_locals
    this, calls = held.get("fw_hop_node"), held.get("fw_hop_nodes", ())  # so named in torch 2.11 and 2.13
    return [call for call in calls if this is not None and call.args[1] == this.args[1]]
