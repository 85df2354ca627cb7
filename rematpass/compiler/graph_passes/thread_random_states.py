"""Pass the random states of regions' subgraphs through the inputs of forward and backward.

A region that draws random numbers (``torch.compiler.nested_compile_region``) takes its generator's state as an
argument, and so must the graphs that call the region.
"""

from __future__ import annotations

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.graph_passes.step_facts import StepFacts


def thread_random_states(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts) -> None:
    """Add placeholders for the states and hand them to the calls."""
    _torch.thread_rng_states(fwd, bwd)
