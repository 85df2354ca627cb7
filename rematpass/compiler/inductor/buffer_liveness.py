"""The bytes alive while Inductor's kernels run in our order, and what moving ops to another position adds.

A kernel that overwrites a buffer allocates none, and what it can overwrite depends on what is fused with it
(``InplaceCandidate``): the backward of a softmax sums over rows, then overwrites what it has summed, but only in a
kernel of its own. Without this rule Inductor takes 5% (Llama) to 13% (GPT-2, ViT) more than simulated at the floor.

Attributes of scheduler nodes and buffers read here have these names in torch 2.11 to 2.15.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import V, inductor_ir, inductor_memory
from rematpass.compiler.ops.size_hints import hint_in

Node = Any  # a node of Inductor's scheduler: one op, or several fused ops
Bytes = np.ndarray[Any, np.dtype[np.int64]]


def predecessors(nodes: Sequence[Node]) -> dict[Node, set[Node]]:
    """For each node, the nodes that have to run before it."""
    writer = {name: node for node in nodes for name in node.get_buffer_names()}
    return {node: {writer[d.name] for d in node.unmet_dependencies if d.name in writer} - {node} for node in nodes}


@dataclass
class Buffer:
    """``maker``: None for an input that backward may free. ``is_output``: it is returned, so it lives to the end.

    ``parts``: the ops that write parts of it (the inputs of a cat, in place); the first to run allocates it.
    """

    nbytes: int
    maker: Node | None = None
    parts: list[Node] = field(default_factory=list)
    readers: set[Node] = field(default_factory=set)
    is_output: bool = False


class KernelTimeline:
    """The bytes alive during each launch, if every op runs at its position.

    A position is an index into our order of kernels. A launch allocates all its buffers first and frees them last:
    one kernel on a GPU, or several positions that share a C++ function (``launches``).
    """

    def __init__(self, scheduler: Any, nodes: Sequence[Node], split: bool) -> None:
        ops = [op for node in nodes for op in node.get_nodes()]
        self.position: dict[Node, int] = {op: i for i, node in enumerate(nodes) for op in node.get_nodes()}
        self.launch = launches(nodes, split)
        self.buffers = _buffers(scheduler, nodes, ops)
        self.before = predecessors(ops)
        self.after: dict[Node, set[Node]] = {op: set() for op in ops}
        self.touches: dict[Node, set[str]] = {op: set() for op in ops}
        for op in ops:
            for earlier in self.before[op]:
                self.after[earlier].add(op)
        for name, buffer in self.buffers.items():
            for op in buffer.readers.union(buffer.parts, {buffer.maker} - {None}):
                self.touches[op].add(name)
        self.inplace_candidates = _inplace_candidates(scheduler, ops, self.buffers)
        self.candidate_ops: dict[str, set[Node]] = {name: set() for name in self.buffers}
        for op, candidates in self.inplace_candidates.items():
            for name in {name for candidate in candidates for name in (candidate.old, candidate.new)}:
                self.candidate_ops[name].add(op)
        self.live: Bytes = np.zeros(self.launch[-1] + 1, dtype=np.int64)
        for buffer in self.buffers.values():
            self._add(self.live, 0, buffer, {}, 1)
        for op in self.inplace_candidates:
            self.live[self.launch[self.position[op]]] -= self._overwritten_nbytes(op, {})

    def _add(self, nbytes: Bytes, first: int, buffer: Buffer, moved: dict[Node, int], sign: int) -> None:
        """Add the buffer's bytes over its life to ``nbytes``, which begins at launch ``first``."""
        reads = [moved.get(op, self.position[op]) for op in buffer.readers]
        start = self._start(buffer, moved)
        if self._is_inside_kernel(buffer, start, reads):
            return
        end = len(self.live) - 1 if buffer.is_output else self.launch[max(reads, default=start)]
        a, b = max(self.launch[start] - first, 0), min(end - first, len(nbytes) - 1)
        nbytes[a : b + 1] += sign * buffer.nbytes

    def _start(self, buffer: Buffer, moved: Mapping[Node, int]) -> int:
        """The position at which the buffer is allocated; 0 for an input."""
        if buffer.maker is None:
            return 0
        return min(moved.get(op, self.position[op]) for op in (buffer.maker, *buffer.parts))

    @staticmethod
    def _is_inside_kernel(buffer: Buffer, start: int, reads: Sequence[int]) -> bool:
        """Whether the kernel at position ``start`` makes the buffer and alone reads it, so it is never allocated."""
        if buffer.maker is None or buffer.maker in buffer.readers or buffer.maker.is_extern() or buffer.is_output:
            return False
        if buffer.parts:
            return False
        return bool(reads) and all(position == start for position in reads)

    def inplace_candidate(self, op: Node, moved: Mapping[Node, int] = MappingProxyType({})) -> InplaceCandidate | None:
        """What ``op`` overwrites because it is the last reader: then it allocates nothing."""
        position = moved.get(op, self.position[op])
        for candidate in self.inplace_candidates.get(op, ()):
            old, new = self.buffers[candidate.old], self.buffers[candidate.new]
            others = ((other, moved.get(other, self.position[other])) for other in old.readers if other is not op)
            is_last = all(at < position or (at == position and o in candidate.alongside) for o, at in others)
            if is_last and not self._is_inside(old, moved) and not self._is_inside(new, moved):
                return candidate
        return None

    def _overwritten_nbytes(self, op: Node, moved: dict[Node, int]) -> int:
        candidate = self.inplace_candidate(op, moved)
        return self.buffers[candidate.new].nbytes if candidate else 0

    def is_inside(self, name: str) -> bool:
        """Whether the buffer never leaves the kernel that makes it, so it is not allocated."""
        return self._is_inside(self.buffers[name], {})

    def _is_inside(self, buffer: Buffer, moved: Mapping[Node, int]) -> bool:
        if buffer.maker is None:
            return False
        reads = [moved.get(op, self.position[op]) for op in buffer.readers]
        return self._is_inside_kernel(buffer, self._start(buffer, moved), reads)

    def allocated(self) -> Counter[int]:
        """The bytes allocated at each position without overwriting: a C++ function seldom overwrites its results."""
        allocated: Counter[int] = Counter()
        for buffer in self.buffers.values():
            if buffer.maker is not None and not self._is_inside(buffer, {}):
                allocated[self._start(buffer, {})] += buffer.nbytes
        return allocated

    def common_positions(self, early: Sequence[Node], late: Sequence[Node]) -> list[int]:
        """The positions at which both can run as one, if nothing else moves: those of ``late`` and of ``early``."""
        both, first, last = {*early, *late}, self.position[early[0]], self.position[late[0]]
        positions = []
        if all(self.position[op] > last or op in both for part in early for op in self.after[part]):
            positions.append(last)
        if all(self.position[op] < first or op in both for part in late for op in self.before[part]):
            positions.append(first)
        return positions

    def added(self, ops: Sequence[Node], position: int) -> tuple[int, Bytes]:
        """The bytes that moving ``ops`` to ``position`` adds to each launch, and the launch at which they begin."""
        positions = [self.position[op] for op in ops]
        low, high = min(positions), max(positions)
        first, last = self.launch[low], self.launch[high]
        moved = dict.fromkeys(ops, position)
        added: Bytes = np.zeros(last - first + 1, dtype=np.int64)
        touched = set().union(*(self.touches[op] for op in ops))
        for name in touched:
            self._add(added, first, self.buffers[name], {}, -1)
            self._add(added, first, self.buffers[name], moved, 1)
        affected = set().union(*(self.candidate_ops[name] for name in touched))
        for op in (op for op in affected if low <= self.position[op] <= high):
            added[self.launch[self.position[op]] - first] += self._overwritten_nbytes(op, {})
            added[self.launch[moved.get(op, self.position[op])] - first] -= self._overwritten_nbytes(op, moved)
        return first, added

    def move(self, ops: Sequence[Node], position: int) -> None:
        first, added = self.added(ops, position)
        self.live[first : first + len(added)] += added
        self.position.update(dict.fromkeys(ops, position))


def launches(nodes: Sequence[Node], split: bool) -> list[int]:
    """The launch of each position.

    Every GPU kernel is a launch. For the CPU, Inductor writes all loops between two extern calls into one C++
    function; with ``split`` every kernel is a launch there too, unless there is memory to spare (``join_kernels``).
    """
    used = {node.get_device() for node in nodes} - {None}
    merged = not split and all(devices.of(device).codegen == "cpp" for device in used)
    found = [0]
    for previous, node in itertools.pairwise(nodes):
        same = merged and not previous.is_extern() and not node.is_extern()
        found.append(found[-1] + (not same))
    return found


@dataclass(frozen=True)
class InplaceCandidate:
    """An op that reads ``old`` and makes ``new`` can write it over ``old``, if nothing reads ``old`` later.

    ``alongside``: ops that may read ``old`` in the same kernel.
    """

    old: str
    new: str
    alongside: frozenset[Node]


def _inplace_candidates(
    scheduler: Any, ops: Sequence[Node], buffers: dict[str, Buffer]
) -> dict[Node, list[InplaceCandidate]]:
    """What each op can overwrite, by the rules of Inductor's ``decide_inplace_update``.

    For example, a kernel that reads a buffer in loops of different shapes (for a sum over each row, then element by
    element) does not overwrite it. So the backward of a softmax takes one matrix of scores more if it is fused.
    """
    found: dict[Node, list[InplaceCandidate]] = {}
    for op in ops:
        for new in filter(_is_allocated, op.get_outputs()):
            for read in op.read_writes.reads:
                old = scheduler.name_to_donated_buffer.get(read.name) or scheduler.name_to_buf.get(read.name)
                if old is None or not {read.name, new.get_name()} <= buffers.keys():
                    continue
                where = _reads(op, read.name)
                fits = buffers[read.name].nbytes == buffers[new.get_name()].nbytes
                fits &= old.node.get_dtype() == new.node.get_dtype() and not buffers[read.name].is_output
                user = next((user for user in old.users if user.node is op), None)
                if fits and len(where) == 1 and user is not None and user.can_inplace and _can_be_overwritten(old):
                    readers = (r for r in buffers[read.name].readers if r.get_name() in op.ancestors)
                    alongside = frozenset(r for r in readers if _reads(r, read.name) == where)
                    found.setdefault(op, []).append(InplaceCandidate(read.name, new.get_name(), alongside))
    return found


def _reads(op: Node, name: str) -> set[Any]:
    """The ways in which ``op`` reads a buffer: index and loops."""
    return {d for d in op.read_writes.reads if d.name == name}


def _is_allocated(buffer: Any) -> bool:
    """Whether the op that makes the buffer allocates it."""
    node = buffer.node
    return node.should_allocate() and not node.get_inputs_that_alias_output() and not node.get_mutation_names()


def _can_be_overwritten(buffer: Any) -> bool:
    """Whether the buffer has a storage of its own and is neither the result of a cat nor an input that is kept."""
    if isinstance(buffer.defining_op, _torch.inductor_scheduler.NopKernelSchedulerNode):
        return False
    layout, kept = buffer.node.get_output_spec(), V.graph.graph_inputs.keys() - buffer.scheduler.name_to_donated_buffer
    without_storage = inductor_ir.NoneLayout, inductor_ir.MultiOutputLayout, inductor_ir.MutationLayoutSHOULDREMOVE
    return not isinstance(layout, without_storage) and buffer.get_name() not in kept


def _buffers(scheduler: Any, nodes: Sequence[Node], ops: Sequence[Node]) -> dict[str, Buffer]:
    """What the ops write and the inputs that can be freed; an overwritten buffer stays one buffer."""
    inductor_memory.assign_memory_planning_info_for_scheduler_buffers(nodes, scheduler.name_to_buf)
    inputs = inductor_memory.get_freeable_input_buf(nodes, _torch.OrderedSet(V.graph.graph_inputs))
    outputs = set(V.graph.get_output_names())
    buffers = {name: Buffer(_input_nbytes(name), is_output=name in outputs) for name in inputs}
    writer = {name: op for op in ops for name in op.get_buffer_names()}
    parts: dict[str, list[Node]] = {}
    for op in ops:
        for b in op.get_outputs():
            name, maker = b.get_name(), op
            if isinstance(op.node, inductor_ir.MultiOutput):  # allocated by the call that made the tuple
                maker = next((writer[d.name] for d in op.unmet_dependencies if d.name in writer), op)
            if whole := whole_of(b):
                parts.setdefault(whole, []).append(op)
            else:
                buffers[name] = Buffer(b.mpi_buffer.size_free, maker, parts.get(name, []), is_output=name in outputs)
    for op in ops:
        for dependency in op.read_writes.reads | op.unmet_dependencies:
            if not isinstance(dependency, _torch.WeakDep):
                name = dependency.name
                while name in scheduler.mutation_real_name:
                    name = scheduler.mutation_real_name[name]
                if name in buffers:
                    buffers[name].readers.add(op)
    return {name: buffer for name, buffer in buffers.items() if buffer.nbytes}


def _input_nbytes(name: str) -> int:
    """The bytes of an input. Inductor's own planning counts what the last of its readers reads, such as a slice."""
    layout = V.graph.graph_inputs[name].get_layout()
    return hint_in(V.graph, layout.storage_size()) * int(_torch.get_dtype_size(layout.dtype))


def whole_of(buffer: Any) -> str:
    """The name of the buffer that this one is a part of (an input of cat, written in place), or ""."""
    layout = buffer.node.layout
    if not isinstance(layout, inductor_ir.NonOwningLayout):
        return ""
    return str(layout.view.get_name())
