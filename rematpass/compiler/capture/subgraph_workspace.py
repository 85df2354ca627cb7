"""Bytes that a call takes in the bodies that it is given: regions that are compiled once, branches of ``torch.cond``.

A body is a graph like any other, so the simulator is asked: it runs like a forward, and what stands at its highest
point beyond its results is the workspace of the call. Of two branches the one counts that takes more. (Inductor is
asked for the peak of the whole step afterwards, bodies included: ``wrapper_memory.py``.)

    body      x ──▶ [mm] ──▶ a ──▶ [gelu] ──▶ b ──▶ [mm] ──▶ y        workspace: a and b, or b and y, less y
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rematpass.compiler._torch import HigherOrderOperator
from rematpass.compiler.ops.traits import bodies_of
from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.simulate import simulate
from rematpass.core.solve.schedule_late import schedule_late

# Those that run their bodies as they are; the bodies of others describe what happens to one element.
_RUNS_BODIES = frozenset({"invoke_subgraph", "cond"})


def bodies_run_by(node: fx.Node) -> Iterator[fx.GraphModule]:
    """The graphs that a call runs."""
    if isinstance(node.target, HigherOrderOperator) and node.target.name() in _RUNS_BODIES:
        yield from bodies_of(node)


def as_forward(body: fx.GraphModule) -> fx.GraphModule:
    """A copy whose inputs are all alike: a body of backward has some that are called tangents."""
    module = copied(body)
    for index, node in enumerate(module.graph.find_nodes(op="placeholder")):
        node.target = f"given_{index}"
    return module


def beyond_results(graph: JointGraph, *, fuse: bool) -> int:
    """Bytes at the highest point of a graph that is all forward, less those of its results."""
    costs = Costs(run=(0.0,) * len(graph.ops), keep=(0.0,) * len(graph.values))
    peak = simulate(graph, schedule_late(graph, (), "body"), costs, fuse=fuse).peak
    return max(0, peak - sum(graph.values[v].nbytes for v in {*graph.fwd_outputs} - {*graph.handed_in}))


def copied(module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose nodes and subgraphs can be changed; constants are shared."""
    graph = fx.Graph()
    results = graph.graph_copy(module.graph, {})
    graph.output(results).meta = dict(module.graph.find_nodes(op="output")[0].meta)
    new = fx.GraphModule(module, graph)
    for name, child in list(new.named_children()):
        if isinstance(child, fx.GraphModule):
            setattr(new, name, copied(child))
    return new
