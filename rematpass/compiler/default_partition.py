"""What torch's own partitioner would have saved, for a report to compare a plan with."""

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
    """The values that torch's partitioner would save of ``captured.graph``; ``kwargs`` are what Inductor calls it with.

    None where that cannot be told: it fails, it saves what has no node in the joint graph, or there are subgraphs,
    which it would change.
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
        log.debug("what torch's own partitioner would save is not known", exc_info=True)
        return None
