"""Inductor runs ops in the plan's order and fuses kernels only where that does not raise the peak.

Three things in Inductor change the order and the lifetimes that a plan has fixed. Each costs memory, as these plans
show, which recompute every segment once (MiB of backward's peak, CPU, torch 2.13; the last column is the plan's own
order without values that fusion removes):

    plan                                        default   reorder off   no horizontal fusion   KeepOrder   ideal
    Llama, 2 layers, 3 segments                  38.15       35.93             31.22             29.91     29.91
    GPT-2, 2 layers, 3 segments                  93.09       91.1              79.10             63.08     62.3
    4 x residual MLP, 4 segments                 38.03       35.04             35.04             35.04     35.04
    8 layers that read one recomputed value      32.50       32.50             18.50             18.50     18.50
    16 x (Linear, Tanh), 4 segments              17.00       16.25             17.00             16.25     16.25

1. *Order.* Inductor sorts kernels by when their buffers are first needed, then by a depth-first search, then by
   estimated memory (``reorder_for_peak_memory``, switched off here). ``in_graph_order`` sorts by position in the graph.
2. *Fusion.* A fused kernel runs at the position of its first part, so fusion moves work: eight recomputations of one
   value, each just before its reader, become one kernel at the front that writes all eight. (Duplicates of a matrix
   product are never merged; duplicates of a pointwise op are, here.) ``Gate`` moves both parts together on a timeline:
   it fuses first what raises no local peak, then whatever stays below the remaining peak. A limit on the distance
   would cost kernels where memory is free; the Llama above has 109 kernels, 112 by default.
3. *Reuse.* Freed buffers are reused as long as Inductor's estimate of the peak is not exceeded. The estimate counts
   buffers that fusion has removed and ignores overwriting in place, so reuse raises the true peak (17.00 instead of
   16.25 above); without ``reorder_for_peak_memory`` it counts nothing at all. ``correct_reuse`` corrects it. Where a
   budget limits, buffers are not reused: those waiting for it cost ResNet-50's floor 4.9 MiB.

A fourth, ``mm`` and ``add`` becoming ``addmm``, is a graph pass (``graph_passes/avoid_addmm.py``).

One hook installs all of this: ``_pre_fusion_custom_pass``, which exists in torch 2.11 to 2.15 and is part of the cache
keys by its ``uuid``. It patches one scheduler, which lives for one graph. (``inductor_choices_class`` is read once per
thread and would stay.)

Only graphs that ``follow_plan`` has marked are treated so. All others, those of torch's own partitioner and of
inference, are compiled as without this backend: a compilation may hand out torch's own choice (``default_partition``).
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import V, inductor_ir, inductor_memory
from rematpass.compiler.inductor.buffer_liveness import KernelTimeline, Node, predecessors
from rematpass.compiler.inductor.fusion_gate import Gate, give_up, guard_fusion
from rematpass.compiler.inductor.kernel_batches import batch_kernels
from rematpass.compiler.source_hash import sources_hash

_MARK = "rematpass_follow_plan"  # in the meta of the output node, which survives copies of a graph


def config_patches(*, split: bool = True, strict: bool = True) -> dict[str, Any]:
    """Inductor's settings for both graphs and for their dry run; arguments as for ``KeepOrder``."""
    return {"_pre_fusion_custom_pass": KeepOrder(split, strict), "reorder_for_peak_memory": False}


def follow_plan(*modules: fx.GraphModule) -> None:
    """Mark modules, and the subgraphs that they call: their kernels have to run in the order of the graph."""
    for part in (part for module in modules for part in module.modules() if isinstance(part, fx.GraphModule)):
        part.graph.find_nodes(op="output")[0].meta[_MARK] = True


def follows_plan(module: fx.GraphModule) -> bool:
    """Whether ``follow_plan`` has marked the module."""
    return bool(module.graph.find_nodes(op="output")[0].meta.get(_MARK))


class KeepOrder(_torch.SchedulerPass):  # type: ignore[misc]
    """A scheduler pass: kernels in the order of the graph, fusion guarded by a ``Gate``.

    Graphs that no plan has made are left to Inductor (``follow_plan``).

    ``split``: memory is short, so on the CPU a function ends after a kernel whose reads have to be freed. ``strict``:
    errors are raised; else they are logged, and Inductor orders and fuses by itself. In a dry run errors have the same
    effect, so its bytes are those of the real compile.
    """

    def __init__(self, split: bool = True, strict: bool = True) -> None:
        self.split, self.strict = split, strict

    def __call__(self, nodes: list[Node]) -> list[Node]:
        if not nodes:
            return nodes
        if V.graph.is_inference or not follows_plan(V.graph.module):
            _reorder_for_peak_memory(nodes[0].scheduler)
            return nodes
        keep_mutation_renames(nodes)
        try:
            return self._keep(nodes)
        except Exception as error:
            if self.strict:
                raise
            give_up(error)
            return nodes

    def _keep(self, nodes: list[Node]) -> list[Node]:
        scheduler = nodes[0].scheduler
        nodes = in_graph_order(nodes, V.graph.module.graph.nodes)
        for position, node in enumerate(nodes):
            node.min_order = node.max_order = position
        guard_fusion(scheduler, Gate(KernelTimeline(scheduler, nodes, self.split), self.strict), self.split)
        if self.split:
            _forbid_reuse(V.graph.wrapper_code)
        batch_kernels(V.graph.wrapper_code)
        return nodes

    def uuid(self) -> bytes:
        """A part of the cache keys; an edit of any source file changes it."""
        return hashlib.sha256(sources_hash().encode() + bytes([self.split])).digest()


def in_graph_order(nodes: Sequence[Node], graph: Iterable[fx.Node]) -> list[Node]:
    """The topological order closest to that of the fx graph: always the ready node that comes first there."""
    position = {node: i for i, node in enumerate(graph)}
    key: dict[Node, int] = {}
    for i, node in enumerate(nodes):
        origins = (o for part in node.get_nodes() if part.node is not None for o in part.node.get_origins())
        found = max((position[o] for o in origins if o in position), default=-1)
        if isinstance(node.node, inductor_ir.MultiOutput):
            found = -1  # it takes an item out of a tuple, and runs at once so that the tuple can be freed
        elif found < 0 and i:
            found = key[nodes[i - 1]]
        key[node] = found
    return _sorted(nodes, key)


def _sorted(nodes: Sequence[Node], key: dict[Node, int]) -> list[Node]:
    index = {node: i for i, node in enumerate(nodes)}
    before = predecessors(nodes)
    after: dict[Node, list[Node]] = {node: [] for node in nodes}
    for node in nodes:
        for earlier in before[node]:
            after[earlier].append(node)
    missing = {node: len(before[node]) for node in nodes}
    ready = [(key[node], index[node], node) for node in nodes if not missing[node]]
    heapq.heapify(ready)
    order: list[Node] = []
    while ready:
        order.append(heapq.heappop(ready)[-1])
        for later in after[order[-1]]:
            missing[later] -= 1
            if not missing[later]:
                heapq.heappush(ready, (key[later], index[later], later))
    if len(order) != len(nodes):
        raise ValueError(f"{len(nodes) - len(order)} of {len(nodes)} kernels wait for each other")
    return order


def keep_mutation_renames(nodes: Iterable[Node]) -> None:
    """Let ops that read the result of an overwriting op continue to depend on that op.

    When Inductor lays out an op's loops again, to fit the op that it is fused with, it takes the reads from the body,
    under the names from before the overwriting (``SchedulerNode.recompute_size_and_body``, torch 2.11 to 2.15), and
    torch 2.11 drops dependencies that the body does not name. The op could then be fused into the kernel that scatters
    into what it reads.
    """
    for op in (op for node in nodes for op in node.get_nodes()):
        if hasattr(op, "recompute_size_and_body") and (op.mutation_renames or _ordering_dependencies(op)):
            op.recompute_size_and_body = functools.partial(_recompute_and_rename, op, op.recompute_size_and_body)


def _recompute_and_rename(op: Node, recompute: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    dependencies = _ordering_dependencies(op)
    recompute(*args, **kwargs)
    op.set_read_writes(op.read_writes.with_read(dependencies).rename(op.mutation_renames))


def _ordering_dependencies(op: Node) -> Any:
    """What an op waits for though its loops do not read it."""
    return _torch.OrderedSet(d for d in op.read_writes.reads if isinstance(d, (_torch.WeakDep, _torch.StarDep)))


def _forbid_reuse(wrapper: Any) -> None:
    """Let the wrapper of one graph allocate every buffer anew."""
    plan_lines: Callable[..., None] = wrapper.run_wrapper_ir_passes

    def run_wrapper_ir_passes(*args: Any, **kwargs: Any) -> None:
        with _torch.inductor_config.patch(allow_buffer_reuse=False):
            plan_lines(*args, **kwargs)

    wrapper.run_wrapper_ir_passes = run_wrapper_ir_passes


def _reorder_for_peak_memory(scheduler: Any) -> None:
    """Do what ``config_patches`` switches off, for a graph that is not planned."""
    fuse_all: Callable[[list[Node]], list[Node]] = scheduler.fuse_nodes

    def fuse_nodes(nodes: list[Node]) -> list[Node]:
        names = (_torch.OrderedSet(V.graph.graph_inputs), _torch.OrderedSet(V.graph.get_output_names()))
        known = (scheduler.name_to_buf, scheduler.name_to_fused_node)
        return inductor_memory.reorder_for_peak_memory(fuse_all(nodes), *known, *names)  # type: ignore[no-any-return]

    scheduler.fuse_nodes = fuse_nodes
