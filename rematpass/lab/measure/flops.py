"""FLOPs of a training step, counted exactly: matrix products, convolutions and attention; a multiply-add counts as two.

In eager mode torch's ``FlopCounterMode`` sees every call. It cannot see into compiled kernels, so for compiled code the
forward and backward graphs are counted, by the same formulas, just before Inductor generates code for them. FLOPs
beyond eager's total are recomputation.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from rematpass.compiler._torch import CustomGraphPass, inductor_config, run_and_save_rng_state
from rematpass.compiler.inductor.without_trace import is_dry_run
from rematpass.compiler.ops.flops import ATTENTION_FLOPS
from rematpass.compiler.ops.size_hints import hint
from rematpass.lab.measure.memory_and_time import TrainingStep, run_step


@dataclass(frozen=True)
class Flops:
    """FLOPs of forward alone, and of the whole step including recomputation."""

    forward: int
    step: int


def eager_flops(step: TrainingStep, parameters: Iterable[torch.nn.Parameter]) -> Flops:
    """Count one uncompiled step, checkpointed regions included.

    Raises:
        MeasureError: as ``run_step``.
    """
    after_forward: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        run_step(step, parameters, between=lambda: after_forward.append(int(counter.get_total_flops())))
        return Flops(after_forward[0], int(counter.get_total_flops()))


class GraphFlops(CustomGraphPass):
    """Counts each graph that Inductor compiles. ``total`` is the step's total if the step runs every graph once.

    Each object has a new id, so that Inductor's cache never hides a graph; compiled code is not reused.
    """

    def __init__(self) -> None:
        self.total = 0
        self.graphs = 0
        self._id = uuid.uuid4().hex

    def __call__(self, graph: fx.Graph) -> None:
        if is_dry_run():
            return
        self.total += graph_flops(graph)
        self.graphs += 1

    def uuid(self) -> str:
        return self._id


@contextmanager
def compiled_flops() -> Iterator[GraphFlops]:
    """Count the graphs that are compiled inside the ``with``. A backward is compiled when it first runs."""
    counter = GraphFlops()
    with inductor_config.patch(post_grad_custom_pre_pass=counter):
        yield counter


def graph_flops(graph: fx.Graph) -> int:
    """FLOPs of one run of ``graph``, whose nodes carry example values; symbolic sizes count at their hints."""
    total = 0
    formulas = {**flop_registry, **ATTENTION_FLOPS}
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        op, args, kwargs, value = _without_random_state(node)
        packet = getattr(op, "overloadpacket", None)
        if packet in formulas:
            args, kwargs = fx.node.map_arg((args, kwargs), lambda n: n.meta["val"])
            total += hint(formulas[packet](*args, **kwargs, out_val=value))
    return total


def _without_random_state(node: fx.Node) -> tuple[Any, tuple[Any, ...], dict[str, Any], Any]:
    """The op that a node runs, its arguments and its result, unwrapped if torch also passes a generator's state.

    In checkpointed regions torch wraps each op that could draw random numbers, which includes attention without
    dropout.
    """
    value = node.meta.get("val")
    wrapped = next((i for i, arg in enumerate(node.args[:2]) if hasattr(arg, "overloadpacket")), None)
    if wrapped is None:
        return node.target, node.args, dict(node.kwargs), value
    kwargs = {name: arg for name, arg in node.kwargs.items() if name != "rng_state"}
    returns_state = node.target is run_and_save_rng_state
    return node.args[wrapped], node.args[wrapped + 1 :], kwargs, value[1] if returns_state and value else value
