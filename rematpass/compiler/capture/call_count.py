"""How often a step calls the graph that is being compiled, before backward starts.

The blocks of a model are often compiled one by one: Dynamo compiles the first block, and blocks like it run the same
compiled graph. What such a graph saves then counts once per block::

        for block in model.layers:
            block.compile(backend="remat")        one graph, called len(model.layers) times in a step

A backend is not told the number of calls. But it compiles during the step's first call, when the callers are on the
stack: the innermost module is the one being compiled, the outermost is the whole model, and the modules in it that are
like the innermost can be counted. The calls of a region that is compiled once
(``torch.compiler.nested_compile_region``) are in the graph around it, which also shows which arguments are weights or
the same in all calls. For blocks this is not known: each block is taken to have its own inputs where they need a
gradient, and to share the others.

The option ``calls`` sets the number where it cannot be found, for example for a function called in a loop. Blocks
inside a ``torch.utils.checkpoint`` run again one by one, so each of them counts once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import fx, nn

from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context

log = logging.getLogger("rematpass")


def calls_in_a_step() -> int:
    """The number of modules in the outermost module being called that are like the innermost; 1 if none is called."""
    running = compile_context.running_modules()
    try:
        return max(1, _alike(running[0], running[-1])) if running else 1
    except Exception as error:  # raised by user modules, for example by a parameter without a shape
        log.debug("the number of calls in a step is not known, 1 is assumed", exc_info=error)
        return 1


def _alike(mine: nn.Module, root: nn.Module) -> int:
    """The number of modules in ``root`` that run one compiled graph, if ``mine`` is one of them."""
    wrapped = _torch.wrapped_modules(root)

    def signature(module: nn.Module) -> list[object]:
        """Without dtypes: FSDP keeps the parameters of the running module in another dtype than the rest."""
        held = [*module.named_parameters(), *module.named_buffers()]
        is_wrapped = any(module is other for other in wrapped)
        compiled = [_torch.is_compiled_in_place(module), "forward" in vars(module), is_wrapped]
        return [*compiled, *((name, tensor.shape, tensor.requires_grad) for name, tensor in held)]

    this = signature(mine)
    return sum(type(module) is type(mine) and signature(module) == this for module in root.modules())


def inputs_in_all(calls: Sequence[fx.Node]) -> list[int]:
    """The arguments of a region that are inputs of the graph in all of its ``calls``: weights, or the batch."""
    return [i for i, given in _arguments(calls) if all(isinstance(a, fx.Node) and a.op == "placeholder" for a in given)]


def same_in_all(calls: Sequence[fx.Node]) -> list[int]:
    """The arguments of a region that are the same in all of its ``calls``; none if there is only one call."""
    return [i for i, given in _arguments(calls) if len(given) > 1 and all(a is given[0] for a in given)]


def _arguments(calls: Sequence[fx.Node]) -> list[tuple[int, tuple[object, ...]]]:
    """The position of each argument of a region, and what each call passes for it."""
    return list(enumerate(zip(*(call.args[2:] for call in calls), strict=True)))
