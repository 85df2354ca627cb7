"""A copy of a graph module that passes may change."""

from __future__ import annotations

from torch import fx


def copy_module(module: fx.GraphModule) -> fx.GraphModule:
    """A copy with nodes and subgraphs of its own; constants are shared."""
    graph = fx.Graph()
    results = graph.graph_copy(module.graph, {})
    graph.output(results).meta = dict(module.graph.find_nodes(op="output")[0].meta)
    new = fx.GraphModule(module, graph)
    for name, child in list(new.named_children()):
        if isinstance(child, fx.GraphModule):
            setattr(new, name, copy_module(child))
    return new
