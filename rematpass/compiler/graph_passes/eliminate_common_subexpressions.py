"""Remove dead code and compute common subexpressions once, as torch's own partitioner does before it decides.

torch's pass recognizes a few random ops by name and would merge all others: two calls of a custom op, or of
``uniform``, on the same tensor. A temporary extra keyword makes each call of such an op unique while the pass compares.
"""

from __future__ import annotations

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.ops.kinds import must_stay_separate

_UNIQUE = "rematpass_unique"


def eliminate_common_subexpressions(module: fx.GraphModule) -> None:
    """Rewrite the joint graph; torch's setting ``functorch.config.cse`` turns the merging off."""
    module.graph.eliminate_dead_code()
    if not _torch.functorch_config.cse:
        return
    for node in filter(must_stay_separate, module.graph.nodes):
        node.kwargs = {**node.kwargs, _UNIQUE: node.name}
    module.graph = _torch.fx_graph_cse(module.graph)
    for node in module.graph.nodes:
        if _UNIQUE in node.kwargs:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != _UNIQUE}
