"""The values that torch's own partitioner would save, as a comparison in reports."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured

log = logging.getLogger("rematpass")


def saved_by_torch(
    captured: Captured, joint_inputs: Sequence[object], kwargs: Mapping[str, Any]
) -> frozenset[int] | None:
    """The values of ``captured.graph`` that torch's partitioner would save; ``kwargs``: the arguments from Inductor.

    None if that is not known: the partitioner fails, or saves a node that is not in the joint graph, or there are
    subgraphs, which it would change.
    """
    if any(isinstance(child, fx.GraphModule) for child in captured.module.children()):
        return None
    nodes = {node.name: node for node in captured.module.graph.nodes}
    try:
        module = fx.GraphModule(captured.module, copy.deepcopy(captured.module.graph))
        fwd, _ = _torch.default_partition(module, joint_inputs, **kwargs)
        saved = fwd.graph.find_nodes(op="output")[0].args[0][kwargs["num_fwd_outputs"] :]
        return frozenset(v for n in saved if isinstance(n, fx.Node) for v in captured.node_values[nodes[n.name]])
    except Exception:
        log.debug("the values that torch's own partitioner would save are not known", exc_info=True)
        return None
