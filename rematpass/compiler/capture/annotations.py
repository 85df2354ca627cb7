"""The budget of a region, with which users annotate forward.

``torch.autograd.graph.region_activation_memory_budget(f)`` limits the memory of the graph traced under it. Like torch,
this backend accepts one budget per graph, which covers all of forward. The fraction is on this backend's scale, floor +
f x (ceiling - floor), so it can always be reached. If a budget in bytes is set too, the lower one holds.
"""

from __future__ import annotations

import dataclasses

from torch import fx

from rematpass.budget import Budget, BudgetKind
from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.core.frontier import Ladder, least_budget
from rematpass.core.op import Side
from rematpass.errors import ConfigError

_NAME = "torch.autograd.graph.region_activation_memory_budget"


def region_budget(captured: Captured) -> float | None:
    """The fraction that forward is annotated with, or None.

    Raises:
        ConfigError: a graph has two budgets, or a budget does not cover all of forward.
    """
    sides = captured.graph.sides
    nodes = [n for op, n in enumerate(captured.op_node) if sides[op] is Side.FORWARD and n not in captured.old_versions]
    subgraphs = [m for m in captured.module.modules() if isinstance(m, fx.GraphModule) and m is not captured.module]
    nodes += [n for subgraph in subgraphs for n in subgraph.graph.nodes if n.op == "call_function"]
    budgets = {_torch.region_budget_of(n) for n in nodes}
    if not budgets - {None}:
        return None
    if None in budgets:
        outside = next(n.name for n in nodes if _torch.region_budget_of(n) is None)
        raise ConfigError(
            f"{_NAME} covers only a part of this graph; {outside} is outside of it. "
            "Put all of forward into it, or split the graph with torch._dynamo.graph_break()"
        )
    if len(budgets) > 1:
        given = ", ".join(f"{b:g}" for b in sorted(b for b in budgets if b is not None))
        raise ConfigError(
            f"{_NAME} gives this graph several budgets: {given}. Split the graph with torch._dynamo.graph_break()"
        )
    return budgets.pop()


def within_region(budget: Budget, fraction: float | None, ladder: Ladder, device: str) -> Budget:
    """The budget of a graph, given the fraction of its region."""
    if fraction is None:
        return budget
    if budget.kind is BudgetKind.FRACTION:
        return dataclasses.replace(budget, fraction=fraction)
    nbytes = least_budget(ladder.limit(fraction), device)
    return dataclasses.replace(budget, nbytes=min(budget.nbytes, nbytes))
