"""Plan -> the forward and the backward module: a new joint graph in the order of the plan, cut at the saved values.

``emit`` obeys the schedule and never reconsiders it. Each ``Run`` becomes one node, with the ``getitem`` nodes of its
results. Recomputed copies are nodes of their own; common subexpressions are eliminated earlier, so nothing merges
them again. Views are replayed where they are read, on the copy that is alive there. torch's own extraction then cuts
the graph; backward computes exactly the nodes that the plan runs there.

Copies that the plan wants in memory (``Plan.realized``) are followed by an op that makes Inductor write them
(``realize_op.py``).

A custom op that the user allows to run again may draw random numbers without declaring it. Every run after the first
starts from the random state that the first run started from, as ``torch.utils.checkpoint`` does in eager mode.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.graph_passes.step_facts import StepFacts
from rematpass.compiler.inductor.realize_op import REALIZE
from rematpass.compiler.inductor.scheduler_pass import follow_plan
from rematpass.compiler.ops.kinds import needs_random_state
from rematpass.compiler.ops.node_info import is_tangent
from rematpass.core.op import Kind, Origin, Side
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.errors import CaptureError

POSITION = "remat_position"  # in node.meta: the position of the node's run in the schedule of its side


def emit(captured: Captured, plan: Plan) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The forward and the backward module of ``plan``, before the passes of ``graph_passes.pipeline.STEP_PASSES``.

    Raises:
        CaptureError: an op's results are used all at once, as a tuple.
    """
    writer = _Writer(captured, plan)
    writer.inputs()
    writer.walk(plan.fwd)
    fwd_outputs = [writer.result(n) for n in captured.fwd_outputs]
    saved = [writer.newest(v) for v in plan.saved]
    states = list(writer.random_states.values())
    writer.enter_backward()
    writer.walk(plan.bwd)
    bwd_outputs = [writer.result(n) for n in captured.bwd_outputs]
    module = writer.finish(fwd_outputs + bwd_outputs)
    static = [writer.new_inputs[n] for n in captured.static_inputs]
    modules = _torch.extract_fwd_bwd_modules(
        module, saved + states, num_fwd_outputs=len(fwd_outputs), static_inputs=static
    )
    follow_plan(*modules)
    return modules


def step_facts(captured: Captured) -> StepFacts:
    """What the passes over the emitted modules need to know of the joint graph."""
    graph = captured.graph
    read = {v for op in graph.ops if op.kind is Kind.CONVOLUTION for v in graph.touched[op.id]}
    return StepFacts(
        num_fwd_outputs=len(captured.fwd_outputs),
        static_inputs=frozenset(n.name for n in captured.static_inputs),
        convolution_inputs=frozenset(
            node.name
            for node in captured.module.graph.find_nodes(op="placeholder")
            if captured.stands_for[node] in read and not is_tangent(node)
        ),
    )


class _Writer:
    """Writes the new graph. ``living``: for each value, the copies that are alive and their nodes, newest last."""

    def __init__(self, captured: Captured, plan: Plan) -> None:
        self.captured, self.plan = captured, plan
        self.realized = frozenset(plan.realized)
        self.side = Side.FORWARD
        self.graph = fx.Graph()
        self.new_inputs: dict[fx.Node, fx.Node] = {}
        self.constants: dict[fx.Node, fx.Node] = {}
        self.living: dict[int, list[tuple[int, fx.Node]]] = {}
        self.views: dict[tuple[fx.Node, tuple[fx.Node, ...]], fx.Node] = {}
        runs = Counter(s.op for s in (*plan.fwd, *plan.bwd) if isinstance(s, Run))
        self.replayed = {op for op, times in runs.items() if times > 1 and needs_random_state(captured.op_node[op])}
        self.random_states: dict[fx.Node, fx.Node] = {}  # the state before the first run of each replayed call
        self.is_op = set(captured.op_node)

    def inputs(self) -> None:
        """Copy the placeholders, and the subgraphs and constants that calls refer to."""
        for node in self.captured.module.graph.nodes:
            if node.op == "placeholder":
                self.new_inputs[node] = self.graph.node_copy(node)
                self.living[self.captured.stands_for[node]] = [(0, self.new_inputs[node])]
        for node in self.captured.module.graph.find_nodes(op="get_attr"):
            self.constants[node] = self.graph.node_copy(node)

    def walk(self, steps: Sequence[Step]) -> None:
        for position, step in enumerate(steps):
            if isinstance(step, Drop):
                copies = self.living.get(step.value, [])  # none for a result that no node names
                self.living[step.value] = [c for c in copies if c[0] != step.copy]
            else:
                self.run(step, position)

    def run(self, step: Run, position: int) -> None:
        node = self.captured.op_node[step.op]
        if node in self.captured.old_versions and not self._saves_clone(step):
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
                result = self._realize(result)
            self.living.setdefault(v, []).append((step.copy, result))

    def _saves_clone(self, step: Run) -> bool:
        """Whether backward needs the old version of an overwritten input; forward can read the input itself."""
        (value,) = self.captured.graph.ops[step.op].writes
        return value in self.plan.saved

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
            new.meta.pop("recompute", None)  # the plan has obeyed the mark
        return new

    def _replay(self, node: fx.Node, copy: int, position: int) -> fx.Node:
        """The call, started from the random state before its first run; the first run returns that state."""
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

    def _realize(self, node: fx.Node) -> fx.Node:
        """A node for the same value that makes Inductor write it to memory."""
        new = self.graph.call_function(REALIZE, (node,))
        new.meta = {k: v for k, v in node.meta.items() if k not in ("desc", POSITION)}
        new.meta["val"] = REALIZE(node.meta["val"])
        if self.side is Side.BACKWARD:
            new.meta["partitioner_tag"] = "is_backward"
        return new

    def _projection(self, named: fx.Node, new: fx.Node, copy: int, position: int) -> fx.Node:
        """The ``getitem`` chain from this run's result to the value that ``named`` stands for."""
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
        """The new node for ``node`` at this point of the schedule."""
        if node in self.constants:
            return self.constants[node]
        if node in self.captured.stands_for:
            return self.newest(self.captured.stands_for[node])
        if node in self.is_op:
            raise CaptureError(
                f"all results of {node.name} are used at once, as a tuple; a plan has only single values"
            )
        return self._view(node)

    def _view(self, node: fx.Node) -> fx.Node:
        """Replay a view on the copies that are alive; once for the same copies."""
        arguments = tuple(self.argument(n) for n in node.all_input_nodes)
        key = (node, arguments)
        if key not in self.views:
            new = dict(zip(node.all_input_nodes, arguments, strict=True))
            self.views[key] = self._copy(node, new.__getitem__)
        return self.views[key]

    def result(self, output: Any) -> Any:
        return self.argument(output) if isinstance(output, fx.Node) else output

    def newest(self, value: int) -> fx.Node:
        """The node of the newest copy that is alive."""
        return self.living[value][-1][1]

    def enter_backward(self) -> None:
        """Keep only the saved values and the tangents; views are replayed again."""
        self.side = Side.BACKWARD
        tangents = [
            n
            for n in self.new_inputs
            if self.captured.graph.values[self.captured.stands_for[n]].origin is Origin.TANGENT
        ]
        kept = set(self.plan.saved) | {self.captured.stands_for[n] for n in tangents}
        self.living = {v: copies for v, copies in self.living.items() if v in kept}
        self.views.clear()

    def finish(self, outputs: list[Any]) -> fx.GraphModule:
        old = self.captured.module.graph.find_nodes(op="output")[0]
        self.graph.output(outputs).meta = dict(old.meta)
        self.graph.lint()
        return _torch.graph_module(self.captured.module, self.graph)
