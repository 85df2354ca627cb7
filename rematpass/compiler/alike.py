"""How often a step calls what is being compiled, before its backward starts.

A model's blocks are often compiled one by one: Dynamo compiles the code of one of them, and the others, being alike,
run what came of it. What such a graph saves then counts once for each of them::

        for block in model.layers:
            block.compile(backend="remat")        one graph, called len(model.layers) times in a step

Nobody says so to a backend. But compiling begins in the midst of the step's first call, so the callers can be seen: the
innermost module is the one being compiled, the outermost the whole model, and what is alike in it can be counted. The
calls of a region that is compiled once (``torch.compiler.nested_compile_region``) stand in the graph around it, and
which of its arguments are weights does too.

``REMAT_CALLS`` says it where this cannot be seen: a function that a loop calls, say.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, nn

from rematpass.compiler import _torch


def calls_in_a_step() -> int:
    """How many modules of the outermost module that runs now are like the innermost; 1 where no module runs."""
    running = _torch.running_modules()
    if not running:
        return 1
    mine = running[0]
    of_its_class = [module for module in running[-1].modules() if type(module) is type(mine)]
    return max(1, sum(_likeness(module) == _likeness(mine) for module in of_its_class))


def _likeness(module: nn.Module) -> list[object]:
    """What two modules of a class have in common if one compiled graph serves both, and both are compiled.

    Not the types of numbers: FSDP has what runs now in those that are computed with, the rest in those that are kept.
    """
    held = [*module.named_parameters(), *module.named_buffers()]
    compiled = module._compiled_call_impl is not None
    return [compiled, *((name, tensor.shape, tensor.requires_grad) for name, tensor in held)]


def stand_before_the_step(calls: Sequence[fx.Node]) -> list[int]:
    """The arguments of a region that every one of its ``calls`` is given from outside of the graph: weights, mostly."""
    arguments = [call.args[2:] for call in calls]
    from_outside = [[isinstance(a, fx.Node) and a.op == "placeholder" for a in its] for its in arguments]
    return [i for i, everywhere in enumerate(zip(*from_outside, strict=True)) if all(everywhere)]
