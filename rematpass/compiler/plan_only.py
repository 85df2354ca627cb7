"""Plan a model without compiling it, for ``rematpass explain``: it takes seconds instead of minutes.

The planner sees the same joint graph as in a compilation, after Inductor's decompositions and joint-graph passes. The
step then runs op by op.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch, backend
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planned import Record, listening
from rematpass.config import Config


def plan_only(
    module: torch.nn.Module, step: Callable[[], Any], config: Config, *, dynamic: bool | None = None
) -> list[Record]:
    """Run ``step``, which calls ``module``, and return the records of the graphs planned in it, oldest first.

    ``dynamic``: whether sizes are symbols, as for ``torch.compile``.

    Raises:
        BackendCompilerFailed: as in a compilation, for example with BudgetInfeasible as ``inner_exception``.
    """

    def plan(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        partitioner = RematPartitioner(config, device=backend.device_of(example_inputs), compare=True)
        patches = {**backend.inductor_patches(config), "custom_partitioner_fn": partitioner}
        with _torch.functorch_config.patch(enable_autograd_cache=False):  # a hit is not planned
            return _torch.compile_fx(gm, list(example_inputs), inner_compile=_run_op_by_op, config_patches=patches)

    found: list[Record] = []
    compiled = functools.partial(torch.compile, backend=plan, dynamic=dynamic)
    with _torch.called_through(module, compiled), listening(found.append):
        step()
    return found


def _run_op_by_op(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
    """Replaces Inductor's code generation."""
    return _torch.boxed_nop(gm, example_inputs)
