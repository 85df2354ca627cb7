"""Plan a model without compiling it: the joint graph as Inductor would hand it over, planned, then run op by op.

Seconds instead of minutes, for ``rematpass explain``. What the planner sees is what it sees in a real compile:
Inductor's decompositions and its passes over the joint graph have run.
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
    """Run ``step``, which runs ``module`` forward, and return the graphs planned in it, the oldest first.

    ``dynamic``: whether sizes are symbols, as for ``torch.compile``.

    Raises:
        BudgetInfeasible: wrapped by Dynamo, as in a real compile.
    """

    def plan(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        partitioner = RematPartitioner(config, device=backend.device_of(example_inputs), compare=True)
        patches = {**backend.inductor_patches(config), "custom_partitioner_fn": partitioner}
        with _torch.functorch_config.patch(enable_autograd_cache=False):  # a hit would plan nothing
            return _torch.compile_fx(gm, list(example_inputs), inner_compile=_as_it_is, config_patches=patches)

    found: list[Record] = []
    compiled = functools.partial(torch.compile, backend=plan, dynamic=dynamic)
    with _torch.called_through(module, compiled), listening(found.append):
        step()
    return found


def _as_it_is(gm: fx.GraphModule, example_inputs: Sequence[Any], **kwargs: Any) -> Any:
    """In place of Inductor's code generation."""
    return _torch.boxed_nop(gm, example_inputs)
