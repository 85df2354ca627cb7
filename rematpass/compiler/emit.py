"""A Plan, carried out: a new joint graph in the plan's order, cut into forward and backward modules.

The schedule is obeyed, never reconsidered. Each ``Run`` becomes one node (and the ``getitem`` nodes of its results);
copies are nodes of their own, put in after common-subexpression elimination, so that nothing merges them again. Views
are replayed where they are read, on the copy that lives there. Then torch's own extraction cuts the graph at the saved
values: what backward computes are exactly the nodes that the plan runs there.

For a fusing compiler two things more are said. What the simulator takes for written is marked so (``realize_op.py``). And
an input of four or five dimensions that is saved is handed over as a flat view of itself: Inductor wants what a
convolution reads with its channels last, would hand on a copy of each weight in that layout, and keep all the copies
through forward and backward (ResNet-50: 41 MiB beside 90 MiB of parameters). So backward makes its own, one at a time.

A custom op that the user wants run again may draw random numbers and say so nowhere. As ``torch.utils.checkpoint`` does
in eager mode, every run but the first starts from the random state that the first one started from.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.inductor.realize_op import REALIZE
from rematpass.compiler.ops.traits import replays
from rematpass.core.op import Kind, Origin, Side
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.core.simulate import materialization
from rematpass.errors import CaptureError

POSITION = "remat_position"  # node.meta: the node's place in the schedule of its side


def emit(captured: Captured, plan: Plan, *, fuse: bool = False) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and the backward module that ``plan`` describes. ``fuse``: they are meant for Inductor."""
    writer = _Writer(captured, plan, fuse)
    writer.inputs()
    writer.walk(plan.fwd)
    fwd_outputs = [writer.result(n) for n in captured.fwd_outputs]
    saved = [writer.saved(v) for v in plan.saved]
    states = list(writer.random_states.values())
    writer.enter_backward(saved)
    writer.walk(plan.bwd)
    bwd_outputs = [writer.result(n) for n in captured.bwd_outputs]
    module = writer.finish(fwd_outputs + bwd_outputs)
    static = [writer.new_inputs[n] for n in captured.static_inputs]
    fwd, bwd = _torch.extract_fwd_bwd_modules(
        module, saved + states, num_fwd_outputs=len(fwd_outputs), static_inputs=static
    )
    _drop_strays(bwd)
    return _torch.thread_rng_states(fwd, bwd)


class _Writer:
    """Writes the new graph; ``living`` holds, for each value, the nodes of its living copies, the newest last."""

    def __init__(self, captured: Captured, plan: Plan, fuse: bool) -> None:
        self.captured, self.plan, self.fuse = captured, plan, fuse
        self.realized = _realized(captured, plan) if fuse else frozenset()
        self.side = Side.FORWARD
        self.graph = fx.Graph()
        self.new_inputs: dict[fx.Node, fx.Node] = {}
        self.constants: dict[fx.Node, fx.Node] = {}
        self.living: dict[int, list[tuple[int, fx.Node]]] = {}
        self.views: dict[tuple[fx.Node, tuple[fx.Node, ...]], fx.Node] = {}
        runs = Counter(s.op for s in (*plan.fwd, *plan.bwd) if isinstance(s, Run))
        self.replayed = {op for op, times in runs.items() if times > 1 and replays(captured.op_node[op])}
        self.random_states: dict[fx.Node, fx.Node] = {}  # before the first run of each of these
        self.is_op = set(captured.op_node)

    def inputs(self) -> None:
        """Copies of the placeholders and of the subgraphs and constants that calls refer to."""
        for node in self.captured.module.graph.nodes:
            if node.op == "placeholder":
                self.new_inputs[node] = self.graph.node_copy(node)
                self.living[self.captured.stands_for[node]] = [(0, self.new_inputs[node])]
        for node in self.captured.module.graph.find_nodes(op="get_attr"):
            self.constants[node] = self.graph.node_copy(node)

    def walk(self, steps: Sequence[Step]) -> None:
        for position, step in enumerate(steps):
            if isinstance(step, Drop):
                there = self.living.get(step.value, [])  # empty for a result that no node names
                self.living[step.value] = [c for c in there if c[0] != step.copy]
            else:
                self.run(step, position)

    def run(self, step: Run, position: int) -> None:
        node = self.captured.op_node[step.op]
        if node in self.captured.old_versions and self._clone_is_needless(step):
            new = self.new_inputs[self.captured.old_versions[node]]
        elif step.op in self.replayed:
            new = self._replay(node, step.copy, position)
        else:
            new = self._copy(node, self.argument, step.copy, position)
        for v in self.captured.graph.ops[step.op].writes:
            named = self.captured.value_node[v]
            if named is None:
                continue
            result = new if named is node else self._projection(named, new, step.copy, position)
            if (v, step.copy) in self.realized:
                result = self._call(REALIZE, result)
            self.living.setdefault(v, []).append((step.copy, result))

    def _clone_is_needless(self, step: Run) -> bool:
        """The old version of an overwritten input is read from the input itself, unless backward needs it."""
        (value,) = self.captured.graph.ops[step.op].writes
        return value not in self.plan.saved

    def _copy(
        self, node: fx.Node, argument: Callable[[fx.Node], fx.Node], copy: int = 0, position: int | None = None
    ) -> fx.Node:
        new = self.graph.node_copy(node, argument)
        new.meta = dict(node.meta)
        if position is not None:
            new.meta[POSITION] = position
        if copy:
            new.name = self.graph._graph_namespace.create_name(f"{node.name}_again", None)
        if self.side is Side.BACKWARD:
            new.meta["partitioner_tag"] = "is_backward"
            new.meta.pop("recompute", None)  # carried out
        return new

    def _replay(self, node: fx.Node, copy: int, position: int) -> fx.Node:
        """The call, from the random state that its first run started from; the first run hands that out."""
        new = self._copy(node, self.argument, copy, position)
        if node in self.random_states:
            new.args = (self.random_states[node], new.target, *new.args)
            new.target = _torch.run_with_rng_state
            return new
        new.args, new.target = (new.target, *new.args), _torch.run_and_save_rng_state
        state, result = (self.graph.call_function(operator.getitem, (new, place)) for place in (0, 1))
        result.meta = dict(new.meta)
        state.meta = {"val": _torch.random_state_before(node)}
        new.meta["val"] = (state.meta["val"], node.meta["val"])
        self.random_states[node] = state
        return result

    def _call(self, target: Any, node: fx.Node, *arguments: Any, name: str | None = None) -> fx.Node:
        """A node of our own, which stands for the same value as ``node``."""
        new = self.graph.create_node("call_function", target, (node, *arguments), name=name)
        new.meta = {k: v for k, v in node.meta.items() if k not in ("desc", POSITION)}
        new.meta["val"] = target(node.meta["val"], *arguments)
        if self.side is Side.BACKWARD:
            new.meta["partitioner_tag"] = "is_backward"
        return new

    def _projection(self, named: fx.Node, new: fx.Node, copy: int, position: int) -> fx.Node:
        """The ``getitem`` chain from the call to the node that names the value, on this run's result."""
        path = [named]
        while path[-1].args[0] not in self.is_op:
            path.append(path[-1].args[0])  # type: ignore[arg-type]
        for node in reversed(path):
            key = (node, (new,))
            if key not in self.views:
                self.views[key] = self._copy(node, {node.args[0]: new}.__getitem__, copy, position)
            new = self.views[key]
        return new

    def argument(self, node: fx.Node) -> fx.Node:
        """The new node that stands for ``node`` at this point of the schedule."""
        if node in self.constants:
            return self.constants[node]
        if node in self.captured.stands_for:
            return self.living[self.captured.stands_for[node]][-1][1]
        if node in self.is_op:
            raise CaptureError(f"all results of {node.name} are handed on at once, which a schedule cannot express")
        return self._view(node)

    def _view(self, node: fx.Node) -> fx.Node:
        """Replay a view on the living copies of what it views; once for the same copies."""
        arguments = tuple(self.argument(n) for n in node.all_input_nodes)
        key = (node, arguments)
        if key not in self.views:
            there = dict(zip(node.all_input_nodes, arguments, strict=True))
            self.views[key] = self._copy(node, there.__getitem__)
        return self.views[key]

    def result(self, output: Any) -> Any:
        return self.argument(output) if isinstance(output, fx.Node) else output

    def saved(self, value: int) -> fx.Node:
        node = self.living[value][-1][1]
        if self.fuse and self._is_for_convolutions(value):
            # By its name Inductor tells what is an input of forward, and that dropping it frees nothing.
            return self._call(torch.ops.aten.view.default, node, [-1], name=f"{node.name}_flat")
        return node

    def _is_for_convolutions(self, value: int) -> bool:
        """Whether it is an input that a convolution reads, dense and of known sizes."""
        graph = self.captured.graph
        if graph.values[value].origin not in (Origin.STATIC, Origin.INPUT):
            return False
        tensor = self.living[value][-1][1].meta["val"]
        if not isinstance(tensor, torch.Tensor):
            return False  # a size that is an input
        known = all(isinstance(n, int) for n in tensor.shape)
        read = any(graph.ops[op].kind is Kind.CONVOLUTION for op in graph.readers[value])
        return read and known and tensor.is_contiguous()

    def enter_backward(self, saved: Sequence[fx.Node]) -> None:
        """Nothing but the saved values and the tangents is there; views are replayed anew."""
        self.side = Side.BACKWARD
        tangents = [
            n
            for n in self.new_inputs
            if self.captured.graph.values[self.captured.stands_for[n]].origin is Origin.TANGENT
        ]
        there = set(self.plan.saved) | {self.captured.stands_for[n] for n in tangents}
        self.living = {v: copies for v, copies in self.living.items() if v in there}
        self.views.clear()
        for v, node in zip(self.plan.saved, saved, strict=True):
            ((copy, whole),) = self.living[v]
            if node is not whole:
                shape = list(whole.meta["val"].shape)
                self.living[v] = [(copy, self._call(torch.ops.aten.view.default, node, shape))]

    def finish(self, outputs: list[Any]) -> fx.GraphModule:
        old = self.captured.module.graph.find_nodes(op="output")[0]
        self.graph.output(outputs).meta = dict(old.meta)
        self.graph.lint()
        return _torch.graph_module(self.captured.module, self.graph)


def _realized(captured: Captured, plan: Plan) -> frozenset[tuple[int, int]]:
    """The (value, copy) that the simulator takes for written though a compiler would rather not."""
    there = materialization(captured.graph, plan)
    return frozenset((int(there.lives.value[c]), int(there.lives.number[c])) for c in there.realized)


def _drop_strays(bwd: fx.GraphModule) -> None:
    """Drop what the plan does not run in backward and nothing there reads, though extraction keeps it.

    Those are random ops that depend on no input, and forward's assertions about sizes that follow from the data, with
    all that the sizes are made of, where that can be computed from what backward has. Both would draw anew.
    """
    before = len(bwd.graph.nodes)
    for node in reversed(list(bwd.graph.nodes)):
        ours = node.meta.get("partitioner_tag") == "is_backward" and _torch.is_impure(node)
        if node.op == "call_function" and not node.users and not ours:
            bwd.graph.erase_node(node)
    if len(bwd.graph.nodes) < before:
        bwd.recompile()
