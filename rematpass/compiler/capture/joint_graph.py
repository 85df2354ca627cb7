"""AOTAutograd's joint graph as a torch-free ``JointGraph``, with a mapping from ops and values to fx nodes.

An input that forward overwrites is read through a clone of its old version (``clone_mutated_inputs.py``).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import pytree
from rematpass.compiler.capture.graph_reader import GraphReader, ids
from rematpass.compiler.capture.subgraph_workspace import as_forward, workspace_of
from rematpass.compiler.graph_passes.clone_mutated_inputs import clone_mutated_inputs, old_versions
from rematpass.compiler.graph_passes.dealias_subgraph_outputs import dealias_subgraph_outputs
from rematpass.compiler.ops.node_info import device_name_of, is_tangent
from rematpass.core.graph import JointGraph
from rematpass.core.op import Origin
from rematpass.errors import CaptureError, PlanError

log = logging.getLogger("rematpass")


@dataclass(frozen=True)
class Captured:
    """The graph model and the fx nodes behind it.

    ``op_node[op]``: the call of an op; ``value_node[value]``: the node that stands for the whole storage (a ``getitem``
    where an op has several outputs; None when no node names it); ``stands_for``: the inverse of ``value_node``, with
    all nodes that stand for a value; ``node_values``: for every node, the values its results live in; ``fwd_outputs``
    and ``bwd_outputs``: the joint graph's output list, cut in two; ``old_versions``: each clone of an input that
    forward overwrites, with that input; ``channels_last``: whether Inductor lays convolutions out that way.
    """

    module: fx.GraphModule
    graph: JointGraph
    op_node: tuple[fx.Node, ...]
    value_node: tuple[fx.Node | None, ...]
    stands_for: dict[fx.Node, int]
    node_values: dict[fx.Node, tuple[int, ...]]
    fwd_outputs: tuple[Any, ...]
    bwd_outputs: tuple[Any, ...]
    old_versions: dict[fx.Node, fx.Node]
    static_inputs: tuple[fx.Node, ...]
    channels_last: bool = False


def capture(
    module: fx.GraphModule,
    *,
    num_fwd_outputs: int,
    static_input_indices: Sequence[int] = (),
    shared_input_indices: Sequence[int] | None = None,
    fuse: bool = True,
) -> Captured:
    """Read ``module``, a joint graph of ATen ops that ``rewrite_joint`` has prepared.

    ``fuse``: whether Inductor compiles the emitted modules.
    ``shared_input_indices``: inputs that are the same in all calls of a step; if None, inputs without a
    gradient are taken to be shared.

    Raises:
        CaptureError: the graph holds something that the model cannot represent; the message names the node.
    """
    output = module.graph.find_nodes(op="output")[0]
    outputs = pytree.arg_tree_leaves(*output.args)
    fwd, bwd = tuple(outputs[:num_fwd_outputs]), tuple(outputs[num_fwd_outputs:])
    descriptions = pytree.arg_tree_leaves(output.meta.get("desc", [None] * len(outputs)))
    primals = [n for n in module.graph.find_nodes(op="placeholder") if not is_tangent(n)]
    static = tuple(n for i, n in enumerate(primals) if i in set(static_input_indices))
    clones = old_versions(module)
    channels_last = fuse and _torch.lays_channels_last(module)
    workspace = partial(_workspace_of_subgraph, fuse=fuse)
    reader = GraphReader(
        frozenset(static), frozenset(clones.values()), frozenset(clones), channels_last, workspace, fuse
    )
    for node in module.graph.nodes:
        reader.read(node)
    if shared_input_indices is None:
        own = _with_gradient(primals, bwd, descriptions[num_fwd_outputs:])
    else:
        own = [n for i, n in enumerate(primals) if i not in set(shared_input_indices)]
    return Captured(
        module=module,
        graph=_graph(reader, fwd, bwd, primals, own, fuse),
        op_node=tuple(reader.op_node),
        value_node=tuple(reader.value_node),
        stands_for=reader.stands_for,
        node_values={node: ids(tree) for node, tree in reader.results.items()},
        fwd_outputs=fwd,
        bwd_outputs=bwd,
        old_versions=clones,
        static_inputs=static,
        channels_last=channels_last,
    )


def _graph(
    reader: GraphReader, fwd: Sequence[Any], bwd: Sequence[Any], primals: list[fx.Node], own: list[fx.Node], fuse: bool
) -> JointGraph:
    return JointGraph(
        fuse=fuse,
        ops=tuple(reader.ops_with_marks()),
        values=tuple(reader.values_with_marks()),
        fwd_outputs=reader.values_of(fwd),
        bwd_outputs=reader.values_of(bwd),
        device=device_name_of(primals),
        hints=tuple(sorted(reader.hints.items())),
        own_inputs=tuple(i for i in reader.values_of(own) if reader.values[i].origin is Origin.INPUT),
    )


def _with_gradient(primals: list[fx.Node], gradients: Sequence[Any], descriptions: Sequence[Any]) -> list[fx.Node]:
    """The inputs that a gradient is returned for, matched by description where the gradients have one.

    Positions alone do not match when tokens of effects are among the inputs.
    """
    described = {getattr(d, "grad_of", None) for d, g in zip(descriptions, gradients, strict=False) if g is not None}
    if described - {None}:
        return [n for n in primals if n.meta.get("desc") in described]
    return [n for n, gradient in zip(primals, gradients, strict=False) if gradient is not None]


def _workspace_of_subgraph(subgraph: fx.GraphModule, *, fuse: bool) -> int:
    """Bytes that a subgraph takes beyond its results; 0, with a log line, if the model cannot represent it."""
    module = as_forward(subgraph)
    results = pytree.arg_tree_leaves(*module.graph.find_nodes(op="output")[0].args)
    try:
        dealias_subgraph_outputs(module)
        clone_mutated_inputs(module)
        graph = capture(module, num_fwd_outputs=len(results), fuse=fuse).graph
        return workspace_of(graph, fuse=fuse)
    except (CaptureError, PlanError) as error:
        log.info("the workspace of a subgraph is not known, 0 bytes are assumed: %s", error)
        return 0
