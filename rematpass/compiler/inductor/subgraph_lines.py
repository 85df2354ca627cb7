"""Marks in the lines of Inductor's wrapper: where the call of a subgraph begins and ends.

The patches apply to methods of one wrapper, which lives for one graph: ``codegen_subgraph_common`` and
``codegen_invoke_subgraph`` exist in torch 2.11, 2.13 and 2.14. Branches are a ``Conditional`` with
``codegen_conditional`` in torch 2.11 and 2.13, and a ``Switch`` with ``codegen_switch`` in torch 2.14.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rematpass.compiler._torch import inductor_ir

_BRANCHES = getattr(inductor_ir, "Conditional", None) or inductor_ir.Switch
_CALLS = ("codegen_invoke_subgraph", "codegen_conditional", "codegen_switch")


@dataclass(frozen=True)
class SubgraphBegin:
    """The first line of a call that runs subgraphs. ``node``: Inductor's call."""

    node: Any

    @property
    def has_branches(self) -> bool:
        return isinstance(self.node, _BRANCHES)

    @property
    def operands(self) -> Any:
        return self.node.operands if self.has_branches else self.node.inputs

    @property
    def subgraphs(self) -> list[Any]:
        """Inductor's graphs; one of them runs."""
        if not self.has_branches:
            return [self.node.subgraph.graph]
        branches = getattr(self.node, "branches", None) or (self.node.true_subgraph, self.node.false_subgraph)
        return [branch.graph for branch in branches]


@dataclass(frozen=True)
class SubgraphEnd(SubgraphBegin):
    """The last line of the same call."""


def mark_subgraphs(wrapper: Any, plan_lines: Callable[[Any], None]) -> None:
    """Let ``wrapper`` mark calls of subgraphs, whose lines ``plan_lines`` plans without writing code."""
    write_subgraph = wrapper.codegen_subgraph_common

    def plan_subgraph(subgraph: Any) -> None:
        subgraph.graph.codegen = functools.partial(_plan_without_code, subgraph.graph, plan_lines)
        write_subgraph(subgraph)

    wrapper.codegen_subgraph_common = plan_subgraph
    for name in _CALLS:
        if hasattr(wrapper, name):
            setattr(wrapper, name, functools.partial(_between_marks, wrapper, getattr(wrapper, name)))


def _between_marks(wrapper: Any, write: Callable[[Any], None], node: Any) -> None:
    wrapper.writeline(SubgraphBegin(node))
    write(node)
    wrapper.writeline(SubgraphEnd(node))


def _plan_without_code(graph: Any, plan_lines: Callable[[Any], None]) -> tuple[Any, Any]:
    plan_lines(graph)
    graph.wrapper_code.pop_codegened_graph()
    empty = types.SimpleNamespace(value="")
    return empty, empty
