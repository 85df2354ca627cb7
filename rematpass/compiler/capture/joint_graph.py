"""AOTAutograd's joint graph, read into a torch-free ``JointGraph``, with the way back to its fx nodes.

A node becomes an op when it makes a storage (or a size, or an effect). A node whose results all live in its arguments'
storages is a view and becomes nothing: ``emit`` replays it wherever it is read. Which is which comes from the op's
schema first and from the fake storages second, because some passes leave views whose fake storage is their own.

An input that forward overwrites is read through a clone of its old version (``clone_mutated_inputs.py``).
"""

from __future__ import annotations

import dataclasses
import logging
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import pytree
from rematpass.compiler.capture.subgraph_workspace import as_forward, subgraphs_run_by, workspace_of
from rematpass.compiler.graph_passes.clone_mutated_inputs import clone_old_version, overwritten_by_forward
from rematpass.compiler.graph_passes.dealias_subgraph_outputs import read_from_the_source
from rematpass.compiler.ops.node_info import (
    computed_in,
    device_name_of,
    is_object,
    is_tangent,
    module_of,
    mutated_arguments,
    pinned,
    projections,
    source_of,
    spanned,
)
from rematpass.compiler.ops.size_hints import hint, symbols_with_hints
from rematpass.compiler.ops.traits import Traits, aliased_argument, is_size, traits_of, user_mark
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Value
from rematpass.errors import CaptureError, PlanError

log = logging.getLogger("rematpass")


@dataclass(frozen=True)
class Captured:
    """The graph model and the fx nodes behind it.

    ``op_node[op]``: the call; ``value_node[value]``: the node that stands for the whole storage (a ``getitem`` where
    an op has several outputs; None when no node names it); ``stands_for``: that the other way round, with every node
    that would do; ``node_values``: for every node, the values its results live in; ``fwd_outputs`` and
    ``bwd_outputs``: the joint graph's output list, cut in two; ``old_versions``: each clone of an input that forward
    overwrites, and that input; ``channels_last``: whether Inductor is going to lay convolutions out so.
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
    """Read ``module``, a joint graph of ATen ops; clones of the inputs that forward overwrites are added to it,
    and aliases are taken out of it (``bodies``). ``fuse``: whether Inductor compiles what becomes of it.

    ``shared_input_indices``: inputs that are the same in all calls of a step; None where that is not known: then
    those that no gradient is returned for are taken to be.

    Raises:
        CaptureError: the graph holds something that has no place in the model; the message names the node.
    """
    read_from_the_source(module)
    output = module.graph.find_nodes(op="output")[0]
    outputs = pytree.arg_tree_leaves(*output.args)
    fwd, bwd = tuple(outputs[:num_fwd_outputs]), tuple(outputs[num_fwd_outputs:])
    descriptions = pytree.arg_tree_leaves(output.meta.get("desc", [None] * len(outputs)))
    primals = [n for n in module.graph.find_nodes(op="placeholder") if not is_tangent(n)]
    static = tuple(n for i, n in enumerate(primals) if i in set(static_input_indices))
    overwritten = overwritten_by_forward(module.graph, primals, descriptions[:num_fwd_outputs])
    old_versions = {clone_old_version(module.graph, n): n for n in sorted(overwritten)}
    channels_last = fuse and _torch.lays_channels_last(module)
    reader = _Reader(frozenset(static), overwritten, frozenset(old_versions), channels_last, fuse)
    for node in module.graph.nodes:
        reader.read(node)
    if shared_input_indices is None:
        own = _with_gradient(primals, bwd, descriptions[num_fwd_outputs:])
    else:
        own = [n for i, n in enumerate(primals) if i not in set(shared_input_indices)]
    graph = JointGraph(
        fuse=fuse,
        ops=tuple(reader.ops_with_marks()),
        values=tuple(reader.values_with_marks()),
        fwd_outputs=reader.values_of(fwd),
        bwd_outputs=reader.values_of(bwd),
        device=device_name_of(primals),
        hints=tuple(sorted(reader.hints.items())),
        own_inputs=tuple(i for i in reader.values_of(own) if reader.values[i].origin is Origin.INPUT),
    )
    node_values = {node: _ids(tree) for node, tree in reader.results.items()}
    return Captured(
        module=module,
        graph=graph,
        op_node=tuple(reader.op_node),
        value_node=tuple(reader.value_node),
        stands_for=reader.stands_for,
        node_values=node_values,
        fwd_outputs=fwd,
        bwd_outputs=bwd,
        old_versions=old_versions,
        static_inputs=static,
        channels_last=channels_last,
    )


def _with_gradient(primals: list[fx.Node], gradients: Sequence[Any], descriptions: Sequence[Any]) -> list[fx.Node]:
    """The inputs that a gradient is returned for: its description says for which, where it has one. (By their places
    gradients and inputs are apart where tokens of effects stand among the inputs.)"""
    described = {getattr(d, "grad_of", None) for d, g in zip(descriptions, gradients, strict=False) if g is not None}
    if described - {None}:
        return [n for n in primals if n.meta.get("desc") in described]
    return [n for n, gradient in zip(primals, gradients, strict=False) if gradient is not None]


@dataclass
class _Reader:
    """Reads the nodes in order, and what it has read so far.

    ``results[node]`` has the structure of the node's result, with the id of the value that each tensor lives in (None
    where there is none) for a leaf. So ``getitem`` is one index into it. ``replay[view]``: all the values that
    replaying a view reads: what it views, and the sizes that it takes.
    """

    static: frozenset[fx.Node]
    overwritten: frozenset[fx.Node]
    old_versions: frozenset[fx.Node]
    channels_last: bool
    fuse: bool
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
    inside: dict[fx.GraphModule, int] = field(default_factory=dict)  # bytes that a body takes beyond its results

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
            self.must_save.update(_ids(self.results.get(node)))

    def values_of(self, nodes: Iterable[Any]) -> tuple[int, ...]:
        """The values that have to be there for ``nodes`` to be read."""
        wanted = [v for n in nodes if isinstance(n, fx.Node) for v in (*_ids(self.results[n]), *self.replay.get(n, ()))]
        return tuple(dict.fromkeys(wanted))

    def values_with_marks(self) -> list[Value]:
        marked = self._marked
        return [dataclasses.replace(v, must_save=True) if v.id in marked else v for v in self.values]

    def ops_with_marks(self) -> list[Op]:
        """A mark on a view is about what it views, and to save goes before to recompute: torch marks what one region
        reads of another as saved, once common subexpressions are one."""
        marked = self._marked
        return [
            dataclasses.replace(op, must_recompute=False) if op.must_recompute and marked & {*op.writes} else op
            for op in self.ops
        ]

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
            # Arguments handed through by a call that makes something too: who reads them has to wait for the call.
            fresh = [i for i, leaf in enumerate(leaves) if leaf is not None]
        traits = traits_of(node, channels_last=self.channels_last)
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
        return pytree.tree_unflatten(owners, spec)

    def _project(self, node: fx.Node, result: Any) -> Any:
        """A ``getitem`` that picks one fresh value of an op with several outputs stands for that value."""
        call = node
        while call.target is operator.getitem and isinstance(call.args[0], fx.Node):
            call = call.args[0]
        if isinstance(result, int) and result in self.unnamed.get(call, ()):
            self.stands_for[node] = result
            if self.value_node[result] is None:
                self.value_node[result] = node
        return result

    def _owner(self, node: fx.Node, leaf: Any, index: int) -> int | None:
        """The value of an argument whose storage this result lives in; None when it is fresh."""
        if not isinstance(leaf, torch.Tensor):
            return None
        by_schema = aliased_argument(node, index)
        if by_schema is not None:
            return next(iter(_ids(self.results[by_schema])), None)
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
        if node is not None:
            self.stands_for[node] = len(self.values) - 1
        return len(self.values) - 1

    def _inside(self, body: fx.GraphModule) -> int:
        if body not in self.inside:
            self.inside[body] = _inside(body, fuse=self.fuse)
        return self.inside[body]

    def _op(self, node: fx.Node, traits: Traits, written: tuple[int, ...]) -> None:
        never = traits.never_recompute
        if node in self.old_versions:
            never = "its argument is overwritten after it has run"
        marked = user_mark(node) == "recompute" or any(user_mark(u) == "recompute" for u in projections(node))
        must = marked and (not never or traits.honours_marks)
        must = must and not any(user_mark(n) == "save" for n in (node, *projections(node)))
        changed = tuple(dict.fromkeys(v for n in mutated_arguments(node) for v in _ids(self.results[n])))
        overwrites_all = node.target is torch.ops.aten.copy_.default  # it does not read what it writes
        reads = self.values_of(n for n in node.all_input_nodes if not (overwrites_all and n is node.args[0]))
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
                nbytes_workspace=traits.workspace + max(map(self._inside, subgraphs_run_by(node)), default=0),
                dtype=computed_in(node, traits.kind, next((self.values[v].dtype for v in (*written, *reads)), "")),
                never_recompute="" if must else never,
                must_recompute=must,
                pinned=pinned(node, traits.kind),
                source=source_of(node),
                module=module_of(node),
            )
        )


def _inside(body: fx.GraphModule, *, fuse: bool) -> int:
    """Bytes that a body takes beyond its results; 0 where it has no place in the model: it still runs."""
    module = as_forward(body)
    results = pytree.arg_tree_leaves(*module.graph.find_nodes(op="output")[0].args)
    try:
        graph = capture(module, num_fwd_outputs=len(results), fuse=fuse).graph
        return workspace_of(graph, fuse=fuse)
    except (CaptureError, PlanError) as error:
        log.info("what a body takes inside itself is not known: %s", error)
        return 0


def _ids(tree: Any) -> tuple[int, ...]:
    return tuple(dict.fromkeys(v for v in pytree.tree_leaves(tree) if v is not None))
