"""A model's joint graph as Inductor hands it to a partitioner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch._functorch import config as functorch_config

from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured, capture
from rematpass.compiler.graph_passes.pipeline import rewrite_joint

Inspect = Callable[[torch.fx.GraphModule, Any, Mapping[str, Any]], None]


def inspect_joint(module: torch.nn.Module, step: Callable[[], Any], inspect: Inspect) -> None:
    """Run ``step``, which runs ``module`` forward, and call ``inspect(joint module, inputs, partitioner's arguments)``.

    The joint module is a copy and may be changed. The compilation continues with torch's own partitioner.
    """

    class Inspector(_torch.CustomPartitionerFn):  # type: ignore[misc]
        def __call__(self, joint: torch.fx.GraphModule, inputs: Any, **kwargs: Any) -> Any:
            inspect(copied(joint), inputs, kwargs)
            return _torch.default_partition(joint, inputs, **kwargs)

        def uuid(self) -> None:
            return None

    def compiler(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        with functorch_config.patch(enable_autograd_cache=False):
            return _torch.compile_fx(
                gm,
                list(example_inputs),
                inner_compile=lambda inner, _, **__: _torch.boxed_nop(inner, _),
                config_patches={"custom_partitioner_fn": Inspector()},
            )

    sys.setrecursionlimit(max(100_000, sys.getrecursionlimit()))  # graphs of many layers are deep
    module.compile(backend=compiler)
    step()


def copied(joint: torch.fx.GraphModule) -> torch.fx.GraphModule:
    return torch.fx.GraphModule(joint, deepcopy(joint.graph))


def captured(joint: torch.fx.GraphModule, kwargs: Mapping[str, Any]) -> Captured:
    """The joint module as the planner sees it."""
    rewrite_joint(joint)
    static = kwargs.get("static_lifetime_input_indices") or ()
    return capture(joint, num_fwd_outputs=kwargs["num_fwd_outputs"], static_input_indices=static)
