"""What passes over forward and backward know of the joint graph that the two were cut from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepFacts:
    """Names are those of forward's placeholders.

    ``num_fwd_outputs``: how many of forward's outputs the caller sees; the saved values follow them.
    ``static_inputs``: parameters and buffers, which exist before and after the step.
    ``convolution_inputs``: inputs of forward that a convolution reads, in forward or in backward.
    """

    num_fwd_outputs: int
    static_inputs: frozenset[str] = frozenset()
    convolution_inputs: frozenset[str] = frozenset()
