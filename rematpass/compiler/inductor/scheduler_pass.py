"""Inductor runs ops in our order, and merges kernels only where that does not raise the peak.

Four things in Inductor change the order and the lifetimes that a plan has fixed (found by running hand plans, with
one recomputation of every segment, through the real compiler; MiB of backward's peak on the CPU, torch 2.13; the last
column is what the plan's own order takes when values that are merged away are left out):

    plan                                        default   reorder off   no horizontal fusion   KeepOrder   ideal
    Llama, 2 layers, 3 segments                  38.15       35.93             31.22             29.91     29.91
    GPT-2, 2 layers, 3 segments (keep_apart too) 93.09       91.1              79.10             63.08     62.3
    4 x residual MLP, 4 segments                 38.03       35.04             35.04             35.04     35.04
    8 layers that read one recomputed value      32.50       32.50             18.50             18.50     18.50
    16 x (Linear, Tanh), 4 segments              17.00       16.25             17.00             16.25     16.25

1. *Order.* Inductor sorts kernels by when their buffers were first needed, then by a depth-first search, then by
   estimated memory (``reorder_for_peak_memory``, switched off here). ``in_our_order`` sorts by place in the fx graph.
2. *Fusion.* A fused kernel runs where its first part stood, so fusing moves work: eight recomputations of one value,
   each just before its reader, become one kernel at the front that writes all eight. DuplicatePlans of a matrix product are
   never merged; twins of a pointwise op are, here. Forbidding fusion by distance costs kernels where there is memory
   to spare. ``Gate`` moves the two parts together on a timeline: first only what raises no local peak is fused, then
   whatever stays under the peak that is left. On the Llama above: 109 kernels, 112 by default.
3. *Reuse.* Freed buffers are handed on as long as Inductor's estimate of the peak is not exceeded; the estimate counts
   buffers that fusion has removed and forgets that kernels overwrite in place, so reuse raises the true peak (17.00
   instead of 16.25 above). Without ``reorder_for_peak_memory`` it counts nothing at all. ``tell_reuse`` corrects it.
   Where a budget limits, nothing is handed on later: buffers that waited for it cost ResNet-50's floor 4.9 MiB.

A fifth is mended in the graph before Inductor sees it: ``mm`` then ``add`` becomes ``addmm`` at the place of the add,
and the operands of the ``mm`` wait until then (tied embeddings: the logits' gradient, through all of backward).

All of it hangs on one hook, ``_pre_fusion_custom_pass``, present in torch 2.11 and 2.13 and part of the cache keys by
its ``uuid``. What it replaces, it replaces on one scheduler, which lives for one graph. (``inductor_choices_class``
is no such hook: it is read once per thread, and stays.) Kernels and memory are the same question for Triton.
"""

from __future__ import annotations

import functools
import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import V, inductor_ir, inductor_memory
from rematpass.compiler.inductor.buffer_liveness import KernelTimeline, Node, predecessors
from rematpass.compiler.inductor.fusion_gate import Gate, give_up, guard_fusion
from rematpass.compiler.ops.size_hints import hint
from rematpass.compiler.ops.traits import kind_of
from rematpass.core.op import Kind

_NEVER_FUSED = {Kind.MATMUL, Kind.CONVOLUTION, Kind.ATTENTION}


def config_patches(*, split: bool = True, strict: bool = True) -> dict[str, Any]:
    """What to set in Inductor's config, for both graphs and for a dry run of them. For the rest see ``KeepOrder``."""
    return {
        "_pre_fusion_custom_pass": KeepOrder(split, strict),
        "reorder_for_peak_memory": False,
        "allow_buffer_reuse": not split,
    }


class KeepOrder(_torch.SchedulerPass):  # type: ignore[misc]
    """Inductor's scheduler pass: our order, and fusion guarded by a ``Gate``. Inference is left to Inductor.

    ``split``: memory is short, so on the CPU a function ends after a kernel whose reads have to be freed. ``strict``:
    what goes wrong in here is raised; else it is warned of, and Inductor orders and fuses by itself. A dry run meets
    the same, so that its bytes are those of what will run.
    """

    def __init__(self, split: bool = True, strict: bool = True) -> None:
        self.split, self.strict = split, strict

    def __call__(self, nodes: list[Node]) -> list[Node]:
        if not nodes:
            return nodes
        if V.graph.is_inference:
            _reorder_for_peak_memory(nodes[0].scheduler)
            return nodes
        remember_what_is_overwritten(nodes)
        try:
            return self._keep(nodes)
        except Exception as error:
            if self.strict:
                raise
            give_up(error)
            return nodes

    def _keep(self, nodes: list[Node]) -> list[Node]:
        scheduler = nodes[0].scheduler
        nodes = in_our_order(nodes, V.graph.module.graph.nodes)
        for slot, node in enumerate(nodes):
            node.min_order = node.max_order = slot
        guard_fusion(scheduler, Gate(KernelTimeline(scheduler, nodes, self.split), self.strict), self.split)
        return nodes

    def uuid(self) -> bytes:
        """A part of the cache keys."""
        here = Path(__file__)
        sources = [here, here.with_name("fusion_gate.py"), here.with_name("buffer_liveness.py")]
        return hashlib.sha256(b"".join(file.read_bytes() for file in sources) + bytes([self.split])).digest()


def in_our_order(nodes: Sequence[Node], graph: Iterable[fx.Node]) -> list[Node]:
    """The topological order that comes nearest to the fx graph's: always the ready node that stands first there."""
    place = {node: i for i, node in enumerate(graph)}
    key: dict[Node, int] = {}
    for i, node in enumerate(nodes):
        origins = (o for part in node.get_nodes() if part.node is not None for o in part.node.get_origins())
        found = max((place[o] for o in origins if o in place), default=-1)
        if isinstance(node.node, inductor_ir.MultiOutput):
            found = -1  # takes an item out of a tuple: at once, so that the tuple can go
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


def remember_what_is_overwritten(nodes: Iterable[Node]) -> None:
    """Let ops that read what another op has overwritten go on reading that op's result.

    When an op's loops are laid out anew, to fit those of the op that it is fused with, Inductor takes its reads from
    its body again, under the names from before the overwriting (``SchedulerNode.recompute_size_and_body``, torch 2.11
    and 2.13; in 2.11 without what the body does not say, too). So it could be fused into the very kernel that scatters
    into what it reads, and read half of it.
    """
    for op in (op for node in nodes for op in node.get_nodes()):
        if hasattr(op, "recompute_size_and_body") and (op.mutation_renames or _beside_its_body(op)):
            op.recompute_size_and_body = functools.partial(_recompute_and_rename, op, op.recompute_size_and_body)


def _recompute_and_rename(op: Node, recompute: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    beside = _beside_its_body(op)
    recompute(*args, **kwargs)
    op.set_read_writes(op.read_writes.with_read(beside).rename(op.mutation_renames))


def _beside_its_body(op: Node) -> Any:
    """What an op waits for though its loops do not read it."""
    return _torch.OrderedSet(d for d in op.read_writes.reads if isinstance(d, (_torch.WeakDep, _torch.StarDep)))


def _reorder_for_peak_memory(scheduler: Any) -> None:
    """What ``config_patches`` switches off, for a graph that is not ours."""
    fuse_all: Callable[[list[Node]], list[Node]] = scheduler.fuse_nodes

    def fuse_nodes(nodes: list[Node]) -> list[Node]:
        names = (_torch.OrderedSet(V.graph.graph_inputs), _torch.OrderedSet(V.graph.get_output_names()))
        known = (scheduler.name_to_buf, scheduler.name_to_fused_node)
        return inductor_memory.reorder_for_peak_memory(fuse_all(nodes), *known, *names)  # type: ignore[no-any-return]

    scheduler.fuse_nodes = fuse_nodes


def keep_apart(module: fx.GraphModule) -> int:
    """Keep Inductor from merging a matrix product into an addition that comes much later; how many were kept apart.

    ``add(mm(a, b), c)`` becomes ``addmm(c, a, b)`` where the addition stands, so ``a`` and ``b`` have to wait for it.
    Where they would hold more bytes than the product itself, the addition is written on a view that the pattern does
    not know: ``squeeze(add(unsqueeze(mm, 0), c), 0)``. The result is the same, bit for bit, as that of mm and add.
    """
    place = {node: i for i, node in enumerate(module.graph.nodes)}
    count = 0
    for add in module.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor):
        for product in [a for a in add.args[:2] if isinstance(a, fx.Node) and a.target is torch.ops.aten.mm.default]:
            if len(add.args) == 2 and not add.kwargs and _would_wait(product, add, place):
                _hide(module.graph, product, add)
                count += 1
                break
    if count:
        module.recompile()
    return count


def _would_wait(product: fx.Node, add: fx.Node, place: dict[fx.Node, int]) -> bool:
    """Whether the operands of ``product`` have to live on for ``add``, past other products, in more bytes than its."""
    start, end = place[product], place[add]
    between = (n for n, i in place.items() if start < i < end and n.op == "call_function")
    if len(product.users) > 1 or all(kind_of(n) not in _NEVER_FUSED for n in between):
        return False
    roots = {_root(n) for n in product.all_input_nodes}
    idle = [r for r in roots if _last_read(r, product, place) < (start + end) // 2 and not _stays(r)]
    return sum(_nbytes(r) for r in idle) > _nbytes(product)


def _root(node: fx.Node) -> fx.Node:
    while getattr(node.target, "is_view", False):
        node = node.all_input_nodes[0]
    return node


def _last_read(node: fx.Node, besides: fx.Node, place: dict[fx.Node, int]) -> int:
    """The place of the last read, through views; -1 when nothing but ``besides`` reads it."""
    reads = [-1]
    for user in node.users:
        if getattr(user.target, "is_view", False):
            reads.append(_last_read(user, besides, place))
        elif user is not besides:
            reads.append(place[user])
    return max(reads)


def _stays(node: fx.Node) -> bool:
    """Whether it lives on whatever we do: a parameter, or another argument of forward."""
    return node.op == "placeholder" and str(node.target).startswith("primals")


def _nbytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    return hint(value.numel()) * value.element_size()


def _hide(graph: fx.Graph, product: fx.Node, add: fx.Node) -> None:
    """Write ``add`` with a view of ``product`` that the pattern does not look through."""
    aten, value = torch.ops.aten, product.meta["val"]
    meta = {k: v for k, v in add.meta.items() if k != "val"}
    with graph.inserting_before(add):
        view = graph.call_function(aten.unsqueeze.default, (product, 0))
        view.meta = {**meta, "val": aten.unsqueeze.default(value, 0)}
        args = tuple(view if a is product else a for a in add.args)
        wide = graph.call_function(aten.add.Tensor, args)
        wide.meta = {**meta, "val": aten.unsqueeze.default(add.meta["val"], 0)}
        result = graph.call_function(aten.squeeze.dim, (wide, 0))
        result.meta = dict(add.meta)
    name = add.name
    add.replace_all_uses_with(result)
    graph.erase_node(add)
    result.name = name
