"""The rewrites of fx graphs, in the order in which they run: over the joint graph, then over forward and backward.

All passes run before the dry run, and none after it, so Inductor compiles exactly the graphs of the dry run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import fx

from rematpass.compiler.graph_passes.avoid_addmm import avoid_addmm
from rematpass.compiler.graph_passes.clone_mutated_inputs import clone_mutated_inputs
from rematpass.compiler.graph_passes.dealias_subgraph_outputs import dealias_subgraph_outputs
from rematpass.compiler.graph_passes.drop_stray_ops import drop_stray_ops
from rematpass.compiler.graph_passes.eliminate_common_subexpressions import eliminate_common_subexpressions
from rematpass.compiler.graph_passes.flatten_convolution_inputs import flatten_convolution_inputs
from rematpass.compiler.graph_passes.force_saves import force_saves
from rematpass.compiler.graph_passes.infer_subgraph_results import infer_subgraph_results
from rematpass.compiler.graph_passes.offload import offload
from rematpass.compiler.graph_passes.step_facts import StepFacts
from rematpass.compiler.graph_passes.thread_random_states import thread_random_states

JOINT_PASSES: tuple[Callable[[fx.GraphModule], None], ...] = (
    eliminate_common_subexpressions,
    force_saves,
    infer_subgraph_results,
    dealias_subgraph_outputs,
    clone_mutated_inputs,
)


class StepPass(NamedTuple):
    """A pass over forward and backward. ``if_fused``: it runs only for a fusing compiler."""

    run: Callable[[fx.GraphModule, fx.GraphModule, StepFacts], None]
    if_fused: bool = False


STEP_PASSES = (
    StepPass(drop_stray_ops),
    StepPass(thread_random_states),
    StepPass(flatten_convolution_inputs, if_fused=True),
    StepPass(avoid_addmm, if_fused=True),
    StepPass(offload),
)


def rewrite_joint(joint: fx.GraphModule) -> None:
    """Prepare a joint graph for capture, in place."""
    for run in JOINT_PASSES:
        run(joint)
    joint.recompile()


def rewrite_step(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts, *, fuse: bool) -> None:
    """Prepare emitted modules for the compiler, in place. ``fuse``: whether it fuses."""
    for step_pass in STEP_PASSES:
        if fuse or not step_pass.if_fused:
            step_pass.run(fwd, bwd, facts)
