"""Users' marks that are not about single ops: the budget of a region, and values to be moved to the CPU.

``torch.autograd.graph.region_activation_memory_budget(f)`` caps the graph that is traced under it. Torch accepts one
budget per graph, over all of its forward, and so does this backend; the fraction is of its own scale (floor + f x
(ceiling - floor)), so that it can always be reached. Under a budget in bytes the lower of the two holds.

The policy MUST_CPU_OFFLOAD saves a value and hands the wish on to torch's own offloading, which acts on it where
``torch._functorch.config.enable_activation_offloading`` is set.
"""

from __future__ import annotations

import dataclasses

from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.config import Budget, BudgetKind
from rematpass.core.frontier import Ladder, least_budget
from rematpass.core.op import Side
from rematpass.errors import ConfigError

_NAME = "torch.autograd.graph.region_activation_memory_budget"
_OFFLOAD = getattr(CheckpointPolicy, "MUST_CPU_OFFLOAD", None)


def region_budget(captured: Captured) -> float | None:
    """The fraction that forward is annotated with; None where it is not.

    Raises:
        ConfigError: two budgets in one graph, or one that leaves a part of forward out.
    """
    sides = captured.graph.sides
    nodes = [n for op, n in enumerate(captured.op_node) if sides[op] is Side.FORWARD and n not in captured.old_versions]
    bodies = [m for m in captured.module.modules() if isinstance(m, fx.GraphModule) and m is not captured.module]
    nodes += [n for body in bodies for n in body.graph.nodes if n.op == "call_function"]
    budgets = {_torch.region_budget_of(n) for n in nodes}
    if not budgets - {None}:
        return None
    if None in budgets:
        outside = next(n.name for n in nodes if _torch.region_budget_of(n) is None)
        raise ConfigError(
            f"{_NAME} covers a part of this graph only; {outside} is outside of it. "
            "Put all of forward into it, or part the graphs by torch._dynamo.graph_break()"
        )
    if len(budgets) > 1:
        given = ", ".join(f"{b:g}" for b in sorted(b for b in budgets if b is not None))
        raise ConfigError(
            f"{_NAME} gives this graph several budgets: {given}. Part the regions by torch._dynamo.graph_break()"
        )
    return budgets.pop()


def within_region(budget: Budget, fraction: float | None, ladder: Ladder, device: str) -> Budget:
    """The budget of a graph whose region has one of its own."""
    if fraction is None:
        return budget
    if budget.kind is BudgetKind.FRACTION:
        return dataclasses.replace(budget, fraction=fraction)
    nbytes = least_budget(ladder.limit(fraction), device)
    return dataclasses.replace(budget, nbytes=min(budget.nbytes, nbytes))


def offload(captured: Captured, fwd: fx.GraphModule, bwd: fx.GraphModule) -> None:
    """Hand MUST_CPU_OFFLOAD on to torch's own offloading."""
    for node in fwd.graph.nodes:
        if _OFFLOAD is not None and node.meta.get("recompute") is _OFFLOAD:
            node.meta["should_offload"] = True
    static = {n.name for n in captured.static_inputs}
    inputs = [n for n in fwd.graph.find_nodes(op="placeholder") if n.name in static]
    _torch.insert_offloads(fwd, bwd, len(captured.fwd_outputs), inputs)
