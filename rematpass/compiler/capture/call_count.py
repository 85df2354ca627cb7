"""How often a step calls what is being compiled, before its backward starts.

A model's blocks are often compiled one by one: Dynamo compiles the code of one of them, and the others, being alike,
run what came of it. What such a graph saves then counts once for each of them::

        for block in model.layers:
            block.compile(backend="remat")        one graph, called len(model.layers) times in a step

Nobody says so to a backend. But compiling begins in the midst of the step's first call, so the callers can be seen: the
innermost module is the one being compiled, the outermost the whole model, and what is alike in it can be counted. The
calls of a region that is compiled once (``torch.compiler.nested_compile_region``) stand in the graph around it, and
which of its arguments are weights, or the same in all calls, does too. Of blocks that is not known: an input that needs
a gradient is taken to be each one's own, and another to be the same for all.

The option ``calls`` says it where this cannot be seen: a function that a loop calls, say. Blocks inside of a
``torch.utils.checkpoint`` run again one by one, so each of them counts once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import fx, nn

from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context

log = logging.getLogger("rematpass")


def calls_in_a_step() -> int:
    """How many modules of the outermost module that is called now are like the innermost; 1 where none is called."""
    running = compile_context.running_modules()
    try:
        return max(1, _alike(running[0], running[-1])) if running else 1
    except Exception as error:  # modules are the user's: a parameter that has no shape yet, say
        log.debug("how often a step calls this is not known, so once is assumed", exc_info=error)
        return 1


def _alike(mine: nn.Module, root: nn.Module) -> int:
    """How many modules in ``root`` one compiled graph serves, if ``mine`` is one of them."""
    wrapped = _torch.wrapped_modules(root)

    def likeness(module: nn.Module) -> list[object]:
        """Not the types of numbers: FSDP has what runs now in those that are computed with, and the rest in others."""
        held = [*module.named_parameters(), *module.named_buffers()]
        is_wrapped = any(module is other for other in wrapped)
        compiled = [module._compiled_call_impl is not None, "forward" in vars(module), is_wrapped]
        return [*compiled, *((name, tensor.shape, tensor.requires_grad) for name, tensor in held)]

    this = likeness(mine)
    return sum(type(module) is type(mine) and likeness(module) == this for module in root.modules())


def stand_before_the_step(calls: Sequence[fx.Node]) -> list[int]:
    """Which arguments of a region are inputs of the graph in every one of its ``calls``: weights, or the batch."""
    return [i for i, its in _arguments(calls) if all(isinstance(a, fx.Node) and a.op == "placeholder" for a in its)]


def same_in_all(calls: Sequence[fx.Node]) -> list[int]:
    """Which arguments of a region are one and the same in all of its ``calls``, of which there are several."""
    return [i for i, its in _arguments(calls) if len(its) > 1 and all(a is its[0] for a in its)]


def _arguments(calls: Sequence[fx.Node]) -> list[tuple[int, tuple[object, ...]]]:
    """For each argument of a region its place, and what it is in each call."""
    return list(enumerate(zip(*(call.args[2:] for call in calls), strict=True)))
