"""Reads the nodes of a joint graph one by one into ops and values.

A node becomes an op when it makes a storage, a size, or an effect. A node whose results all live in the storages of its
arguments is a view and becomes no op: ``emit`` replays it wherever it is read. The op's schema says which results are
views; the fake storages decide where it does not, because some passes leave views whose fake storage is their own.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import pytree
from rematpass.compiler.capture.element_order import ElementReader, Orders, has_strides
from rematpass.compiler.capture.subgraph_workspace import subgraphs_run_by
from rematpass.compiler.ops.node_info import (
    arithmetic_dtype,
    is_object,
    is_tangent,
    module_of,
    mutated_arguments,
    pinned,
    projections,
    read_element_by_element,
    slow_to_repeat,
    source_of,
    spanned,
)
from rematpass.compiler.ops.size_hints import hint, is_size, symbols_with_hints
from rematpass.compiler.ops.traits import Traits, aliased_argument, traits_of, user_mark
from rematpass.core.cost import FUSIBLE
from rematpass.core.op import Kind, Op, Origin, Value
from rematpass.errors import CaptureError


@dataclass
class GraphReader:
    """Reads the nodes in order and collects ops and values.

    ``results[node]`` has the structure of the node's result; each leaf is the id of the value that the tensor lives in,
    or None. So ``getitem`` is one index into it. ``replay[view]``: all values that replaying a view reads, which are
    the value it views and the sizes it takes. ``workspace_of_subgraph``: a subgraph's bytes beyond its results.
    ``fuse``: whether Inductor compiles the graph.
    """

    static: frozenset[fx.Node]
    overwritten: frozenset[fx.Node]
    old_versions: frozenset[fx.Node]
    channels_last: bool
    workspace_of_subgraph: Callable[[fx.GraphModule], int]
    fuse: bool = True
    ops: list[Op] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    op_node: list[fx.Node] = field(default_factory=list)
    value_node: list[fx.Node | None] = field(default_factory=list)
    stands_for: dict[fx.Node, int] = field(default_factory=dict)
    results: dict[fx.Node, Any] = field(default_factory=dict)
    replay: dict[fx.Node, tuple[int, ...]] = field(default_factory=dict)
    unnamed: dict[fx.Node, set[int]] = field(default_factory=dict)  # fresh values of calls with several results
    must_save: set[int] = field(default_factory=set)
    hints: dict[str, int] = field(default_factory=dict)
    workspaces: dict[fx.GraphModule, int] = field(default_factory=dict)  # of subgraphs
    elements: ElementReader = field(default_factory=ElementReader)
    storages: list[int | None] = field(default_factory=list)  # of values
    strided: set[int] = field(default_factory=set)  # values viewed by strides, which Inductor writes to memory for that

    def read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.results[node] = self._input(node)
        elif node.op == "get_attr":
            self.results[node] = None
        elif node.op == "call_function":
            self.results[node] = self._call(node)
        elif node.op != "output":
            raise CaptureError(f"a joint graph holds no {node.op} nodes, but this one has {node.format_node()}")
        if user_mark(node) == "save":
            self.must_save.update(ids(self.results.get(node)))

    def values_of(self, nodes: Iterable[Any]) -> tuple[int, ...]:
        """The values that reading ``nodes`` needs."""
        wanted = [v for n in nodes if isinstance(n, fx.Node) for v in (*ids(self.results[n]), *self.replay.get(n, ()))]
        return tuple(dict.fromkeys(wanted))

    def values_with_marks(self) -> list[Value]:
        """The values with their marks, and the orders of their elements in memory."""
        marked, orders = self._marked, self._orders.of_value
        return [dataclasses.replace(v, must_save=v.id in marked, order=orders.get(v.id, 0)) for v in self.values]

    def ops_with_marks(self) -> list[Op]:
        """The ops with their marks resolved: a mark on a view applies to the value it views, and "save" wins.

        Torch marks what one region reads from another as saved, after common subexpressions are merged. What backward
        derives from a marked value without a tangent (the derivative of an activation function, say) is not saved
        either: a saved derivative would keep the region from running again.
        """
        saved, recomputed = self._marked, set[int]()
        from_tangents = {v.id for v in self.values if v.origin is Origin.TANGENT}
        ops = []
        for op, node in zip(self.ops, self.op_node, strict=True):
            if not from_tangents.isdisjoint(op.reads):
                from_tangents.update(op.writes)
                derived = False
            else:
                in_backward = "backward" in node.meta.get("partitioner_tag", "")
                derived = in_backward and not op.never_recompute and not recomputed.isdisjoint(op.reads)
            must = (op.must_recompute or derived) and saved.isdisjoint(op.writes)
            if must:
                recomputed.update(op.writes)
            elsewhere = tuple(sorted(self._orders.elsewhere.get(op.id, ())))
            written = op.kind in FUSIBLE and not self.strided.isdisjoint(op.writes)
            op = dataclasses.replace(op, must_recompute=must, reads_elsewhere=elsewhere, always_written=written)
            ops.append(op)
        return ops

    @cached_property
    def _orders(self) -> Orders:
        """How all ops read their arguments; asked for when all nodes are read."""
        return self.elements.orders()

    @property
    def _marked(self) -> set[int]:
        return {v for v in self.must_save if self.values[v].origin is Origin.OP and not self.values[v].cannot_save}

    def _input(self, node: fx.Node) -> int:
        origin = Origin.INPUT
        if is_tangent(node):
            origin = Origin.TANGENT
        elif node in self.static or is_size(node.meta.get("val")) or is_object(node):
            origin = Origin.STATIC
        return self._value(node.name, node, node.meta.get("val"), origin=origin, mutated=node in self.overwritten)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            self.replay[node] = self.replay.get(node.args[0], ())
            return self._project(node, self.results[node.args[0]][node.args[1]])
        if "val" not in node.meta and node.users:
            raise CaptureError(f"{node.format_node()} has no fake result, so its bytes are not known")
        leaves, spec = pytree.tree_flatten(node.meta.get("val"))
        owners = [self._owner(node, leaf, index) for index, leaf in enumerate(leaves)]
        fresh = [i for i, leaf in enumerate(leaves) if owners[i] is None and leaf is not None]
        if fresh and any(o is not None for o in owners):
            # A call that makes values and also returns arguments: readers of the arguments have to wait for the call.
            fresh = [i for i, leaf in enumerate(leaves) if leaf is not None]
        traits = traits_of(node, channels_last=self.channels_last, fuse=self.fuse)
        if fresh or traits.kind in (Kind.MUTATION, Kind.EFFECT) or not any(o is not None for o in owners):
            first = len(self.values)
            alone = len(leaves) == 1 and not isinstance(node.meta.get("val"), (tuple, list, dict))
            for i in fresh:
                name = node.name if alone else f"{node.name}.{i}"
                owners[i] = self._value(name, node if alone else None, leaves[i])
            if not alone:
                self.unnamed[node] = set(range(first, len(self.values)))
            self._op(node, traits, tuple(range(first, len(self.values))))
        else:
            self.replay[node] = self.values_of(node.all_input_nodes)
            if node.target is torch.ops.aten.as_strided.default:
                self.strided.update(ids(self.results[node.args[0]]))
        return pytree.tree_unflatten(owners, spec)

    def _project(self, node: fx.Node, result: Any) -> Any:
        """Record that a ``getitem`` that picks a fresh value of an op with several outputs stands for that value."""
        call = node
        while call.target is operator.getitem and isinstance(call.args[0], fx.Node):
            call = call.args[0]
        if isinstance(result, int) and result in self.unnamed.get(call, ()):
            self.stands_for[node] = result
            if self.value_node[result] is None:
                self.value_node[result] = node
        return result

    def _owner(self, node: fx.Node, leaf: Any, index: int) -> int | None:
        """The value of the argument whose storage this result lives in; None for a fresh storage."""
        if not isinstance(leaf, torch.Tensor):
            return None
        by_schema = aliased_argument(node, index)
        if by_schema is not None:
            return next(iter(ids(self.results[by_schema])), None)
        key = _torch.storage_key(leaf)
        for argument in node.all_input_nodes:
            argument_leaves = pytree.tree_leaves(argument.meta.get("val"))
            for value, other in zip(pytree.tree_leaves(self.results[argument]), argument_leaves, strict=False):
                if (
                    value is not None
                    and isinstance(other, torch.Tensor)
                    and _torch.storage_key(other) == key is not None
                ):
                    return int(value)
        return None

    def _value(self, name: str, node: fx.Node | None, leaf: Any, **fields: Any) -> int:
        tensor = isinstance(leaf, torch.Tensor)
        keepable = tensor or is_size(leaf) or (node is not None and is_object(node))
        nbytes = leaf.untyped_storage().nbytes() if tensor and _torch.storage_key(leaf) is not None else 0
        if tensor or isinstance(leaf, torch.SymInt):
            self.hints |= symbols_with_hints(leaf)
        self.values.append(
            Value(
                id=len(self.values),
                nbytes=hint(nbytes),
                nbytes_expr=str(nbytes),
                name=name,
                dtype=str(leaf.dtype).removeprefix("torch.") if tensor else type(leaf).__name__,
                shape=tuple(str(n) for n in leaf.shape) if tensor else (),
                cannot_save="" if keepable else f"{type(leaf).__name__} is not a tensor",
                **fields,
            )
        )
        self.value_node.append(node)
        self.storages.append(_torch.storage_key(leaf) if tensor else None)
        if node is not None:
            self.stands_for[node] = len(self.values) - 1
        return len(self.values) - 1

    def _workspace(self, subgraph: fx.GraphModule) -> int:
        if subgraph not in self.workspaces:
            self.workspaces[subgraph] = self.workspace_of_subgraph(subgraph)
        return self.workspaces[subgraph]

    def _op(self, node: fx.Node, traits: Traits, written: tuple[int, ...]) -> None:
        never = traits.never_recompute
        if node in self.old_versions:
            never = "its argument is overwritten after it has run"
        marked = user_mark(node) == "recompute" or any(user_mark(u) == "recompute" for u in projections(node))
        must = marked and (not never or traits.honours_marks)
        must = must and not any(user_mark(n) == "save" for n in (node, *projections(node)))
        changed = tuple(dict.fromkeys(v for n in mutated_arguments(node) for v in ids(self.results[n])))
        overwrites_all = node.target is torch.ops.aten.copy_.default  # it does not read what it writes
        reads = self.values_of(n for n in node.all_input_nodes if not (overwrites_all and n is node.args[0]))
        if traits.kind in FUSIBLE:
            self._read_elements(node, written)
        self.op_node.append(node)
        self.ops.append(
            Op(
                id=len(self.ops),
                kind=traits.kind,
                reads=reads,
                writes=written,
                mutates=changed,
                name=node.name,
                flops=traits.flops,
                nbytes_read=sum(spanned(n.meta.get("val")) for n in node.all_input_nodes),
                nbytes_workspace=traits.workspace + max(map(self._workspace, subgraphs_run_by(node)), default=0),
                dtype=arithmetic_dtype(node, traits.kind, next((self.values[v].dtype for v in (*written, *reads)), "")),
                never_recompute="" if must else never,
                must_recompute=must,
                pinned=pinned(node, traits.kind),
                source=source_of(node),
                module=module_of(node),
                slow_to_repeat=slow_to_repeat(node),
            )
        )

    def _read_elements(self, node: fx.Node, written: tuple[int, ...]) -> None:
        """Record how the next op reads its arguments; a view without the bytes of what it views is read elsewhere."""
        each, result = read_element_by_element(node), node.meta.get("val")
        reads = []
        for argument in node.all_input_nodes:
            tensors = pytree.tree_leaves(argument.meta.get("val"))
            for value, tensor in zip(pytree.tree_leaves(self.results[argument]), tensors, strict=False):
                if value is not None and has_strides(tensor):
                    same = _torch.storage_key(tensor) == self.storages[value]
                    reads.append((value, tensor, argument in each and same))
        alone = len(written) == 1 and has_strides(result)
        self.elements.add(len(self.ops), reads, (written[0], result) if alone else None)


def ids(tree: Any) -> tuple[int, ...]:
    """The leaves that are not None, without repetition, in order."""
    return tuple(dict.fromkeys(v for v in pytree.tree_leaves(tree) if v is not None))
