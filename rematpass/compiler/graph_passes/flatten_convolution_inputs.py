"""Save inputs of convolutions as flat views, so that Inductor makes no copies of them in another layout.

Inductor lays out what a convolution reads with channels last. For an input that is saved as it is, it would hand over a
copy in that layout and keep it through forward and backward: ResNet-50 would hold 41 MiB of copies beside 90 MiB of
parameters. With a flat view, backward makes each copy when it needs it::

    forward     primals_3 ──▶ output                    primals_3 ──▶ [view -1] primals_3_flat ──▶ output
    backward    primals_3 ──▶ [convolution]             primals_3_flat ──▶ [view shape] ──▶ [convolution]

Complex values of four dimensions that lead to a convolution would be saved in that layout too. They keep theirs with a
flat view, because the decompositions of complex ops rely on the strides that they were traced with: ``view.dtype``
needs a last stride of 1.

The name of the view begins with that of the input: by the name, Inductor recognizes an input of forward, whose memory
it does not free in backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from rematpass.compiler.graph_passes.step_facts import StepFacts


def flatten_convolution_inputs(fwd: fx.GraphModule, bwd: fx.GraphModule, facts: StepFacts) -> None:
    """Flatten the saved inputs among ``facts.convolution_inputs`` and complex values: the dense ones of known sizes."""
    output = fwd.graph.find_nodes(op="output")[0]
    results = list(output.args[0])
    taken = {node.name: node for node in bwd.graph.find_nodes(op="placeholder")}
    saved = [node for node in results[facts.num_fwd_outputs :] if _can_be_flat(node, facts)]
    if not saved:
        return
    flat: dict[fx.Node, fx.Node] = {}
    for node in saved:
        with fwd.graph.inserting_before(output):
            flat[node] = _view(fwd.graph, node, [-1], node.meta, f"{node.name}_flat")
    of_caller, handed_over = results[: facts.num_fwd_outputs], results[facts.num_fwd_outputs :]
    output.args = (type(output.args[0])([*of_caller, *(flat.get(node, node) for node in handed_over)]),)
    first = next(node for node in bwd.graph.nodes if node.op not in ("placeholder", "get_attr"))
    for node in saved:
        _read_through_view(bwd.graph, taken[node.name], flat[node], first)
    fwd.recompile()
    bwd.recompile()


def _can_be_flat(node: Any, facts: StepFacts) -> bool:
    tensor = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(tensor, torch.Tensor):
        return False  # a size
    is_read_by_convolution = node.op == "placeholder" and node.name in facts.convolution_inputs
    if not is_read_by_convolution and not (tensor.is_complex() and tensor.ndim == 4):
        return False
    return all(isinstance(n, int) for n in tensor.shape) and tensor.is_contiguous()


def _read_through_view(graph: fx.Graph, old: fx.Node, flat: fx.Node, first: fx.Node) -> None:
    """Replace the placeholder ``old`` of backward by ``flat`` and a view of it in front of ``first``."""
    with graph.inserting_before(old):
        placeholder = graph.placeholder(flat.name)
    placeholder.meta = dict(flat.meta)
    with graph.inserting_before(first):
        view = _view(graph, placeholder, list(old.meta["val"].shape), old.meta, f"{old.name}_shaped")
    view.meta["partitioner_tag"] = "is_backward"
    if "autograd_backward" in first.meta:  # set by the extraction of backward; torch 2.11 does not
        view.meta["autograd_backward"] = True
    old.replace_all_uses_with(view)
    graph.erase_node(old)


def _view(graph: fx.Graph, node: fx.Node, shape: list[int], meta: dict[str, Any], name: str) -> fx.Node:
    view = graph.create_node("call_function", torch.ops.aten.view.default, (node, shape), name=name)
    view.meta = {k: v for k, v in meta.items() if k != "desc"}
    view.meta["val"] = torch.ops.aten.view.default(node.meta["val"], shape)
    return view
