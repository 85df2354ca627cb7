"""The bytes alive while Inductor's ops run in our order, each at its slot; and what moving ops to one slot adds.

What a kernel overwrites it need not allocate, and what it can overwrite depends on what is fused with it (``InplaceCandidate``):
the backward of a softmax sums over rows, then writes over what it has summed, but only in a kernel of its own. Before
the timeline knew that, Inductor took 13% more than the simulator says at the floor of a GPT-2 or a ViT, and 5% of a
Llama (torch 2.13, CPU); now it takes what the simulator says.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from rematpass.compiler import _torch
from rematpass.compiler._torch import V, inductor_ir, inductor_memory

Node = Any  # a node of Inductor's scheduler: one op, or several that are fused
Steps = np.ndarray[Any, np.dtype[np.int64]]


def predecessors(nodes: Sequence[Node]) -> dict[Node, set[Node]]:
    """For each node, those that have to run before it."""
    writer = {name: node for node in nodes for name in node.get_buffer_names()}
    return {node: {writer[d.name] for d in node.unmet_dependencies if d.name in writer} - {node} for node in nodes}


@dataclass
class Buffer:
    """``maker``: None for an input that backward may free. ``stays``: it is handed out at the end."""

    nbytes: int
    maker: Node | None = None
    readers: set[Node] = field(default_factory=set)
    stays: bool = False


class KernelTimeline:
    """The bytes alive at each step, if every op runs at its slot.

    A slot is a place in our order. A step is what allocates first and frees last (``steps``).
    """

    def __init__(self, scheduler: Any, nodes: Sequence[Node], split: bool) -> None:
        ops = [op for node in nodes for op in node.get_nodes()]
        self.slot: dict[Node, int] = {op: i for i, node in enumerate(nodes) for op in node.get_nodes()}
        self.step = steps(nodes, split)
        self.buffers = _buffers(scheduler, nodes, ops)
        self.before = predecessors(ops)
        self.after: dict[Node, set[Node]] = {op: set() for op in ops}
        self.touches: dict[Node, set[str]] = {op: set() for op in ops}
        for op in ops:
            for earlier in self.before[op]:
                self.after[earlier].add(op)
        for name, buffer in self.buffers.items():
            for op in buffer.readers | ({buffer.maker} if buffer.maker else set()):
                self.touches[op].add(name)
        self.inplace_candidates = _inplace_candidates(scheduler, ops, self.buffers)
        self.concerns: dict[str, set[Node]] = {name: set() for name in self.buffers}  # who may write over it
        for op, inplace_candidates in self.inplace_candidates.items():
            for name in {
                name
                for inplace_candidate in inplace_candidates
                for name in (inplace_candidate.old, inplace_candidate.new)
            }:
                self.concerns[name].add(op)
        self.live: Steps = np.zeros(self.step[-1] + 1, dtype=np.int64)
        for buffer in self.buffers.values():
            self._add(self.live, 0, buffer, {}, 1)
        for op in self.inplace_candidates:
            self.live[self.step[self.slot[op]]] -= self._overwrites(op, {})

    def _add(self, steps: Steps, first: int, buffer: Buffer, moved: dict[Node, int], sign: int) -> None:
        """Add the buffer's bytes over its life to ``steps``, which begin at step ``first``."""
        slots = [moved.get(op, self.slot[op]) for op in buffer.readers]
        start = moved.get(buffer.maker, self.slot[buffer.maker]) if buffer.maker else 0
        if self._stays_inside(buffer, start, slots):
            return
        end = len(self.live) - 1 if buffer.stays else self.step[max(slots, default=start)]
        a, b = max(self.step[start] - first, 0), min(end - first, len(steps) - 1)
        steps[a : b + 1] += sign * buffer.nbytes

    @staticmethod
    def _stays_inside(buffer: Buffer, start: int, readers: Sequence[int]) -> bool:
        """Whether it never leaves the kernel that makes it, at slot ``start``."""
        if buffer.maker is None or buffer.maker in buffer.readers or buffer.maker.is_extern() or buffer.stays:
            return False
        return bool(readers) and all(slot == start for slot in readers)

    def inplace_candidate(self, op: Node, moved: Mapping[Node, int] = MappingProxyType({})) -> InplaceCandidate | None:
        """What ``op`` overwrites, since it is the last to read it: then it allocates nothing."""
        slot = moved.get(op, self.slot[op])
        for inplace_candidate in self.inplace_candidates.get(op, ()):
            old, new = self.buffers[inplace_candidate.old], self.buffers[inplace_candidate.new]
            others = ((other, moved.get(other, self.slot[other])) for other in old.readers if other is not op)
            is_last = all(at < slot or (at == slot and other in inplace_candidate.alongside) for other, at in others)
            if is_last and not self._is_inside(old, moved) and not self._is_inside(new, moved):
                return inplace_candidate
        return None

    def _overwrites(self, op: Node, moved: dict[Node, int]) -> int:
        """The bytes of that."""
        inplace_candidate = self.inplace_candidate(op, moved)
        return self.buffers[inplace_candidate.new].nbytes if inplace_candidate else 0

    def _is_inside(self, buffer: Buffer, moved: Mapping[Node, int]) -> bool:
        if buffer.maker is None:
            return False
        slots = [moved.get(op, self.slot[op]) for op in buffer.readers]
        return self._stays_inside(buffer, moved.get(buffer.maker, self.slot[buffer.maker]), slots)

    def made(self) -> Counter[int]:
        """The bytes allocated at each slot, if nothing is overwritten: a function seldom overwrites what it makes."""
        made: Counter[int] = Counter()
        for buffer in self.buffers.values():
            if buffer.maker is not None and not self._is_inside(buffer, {}):
                made[self.slot[buffer.maker]] += buffer.nbytes
        return made

    def places(self, early: Sequence[Node], late: Sequence[Node]) -> list[int]:
        """The slots at which both can run as one without moving anything else: the later one's, the earlier one's."""
        both, first, last = {*early, *late}, self.slot[early[0]], self.slot[late[0]]
        places = []
        if all(self.slot[op] > last or op in both for part in early for op in self.after[part]):
            places.append(last)
        if all(self.slot[op] < first or op in both for part in late for op in self.before[part]):
            places.append(first)
        return places

    def difference(self, ops: Sequence[Node], place: int) -> tuple[int, Steps]:
        """What moving ``ops`` to one slot adds, from the first step that they touch on."""
        slots = [self.slot[op] for op in ops]
        low, high = min(slots), max(slots)
        first, last = self.step[low], self.step[high]
        moved = dict.fromkeys(ops, place)
        added: Steps = np.zeros(last - first + 1, dtype=np.int64)
        touched = set().union(*(self.touches[op] for op in ops))
        for name in touched:
            self._add(added, first, self.buffers[name], {}, -1)
            self._add(added, first, self.buffers[name], moved, 1)
        concerned = set().union(*(self.concerns[name] for name in touched))
        for op in (op for op in concerned if low <= self.slot[op] <= high):
            added[self.step[self.slot[op]] - first] += self._overwrites(op, {})
            added[self.step[moved.get(op, self.slot[op])] - first] -= self._overwrites(op, moved)
        return first, added

    def move(self, ops: Sequence[Node], place: int) -> None:
        first, added = self.difference(ops, place)
        self.live[first : first + len(added)] += added
        self.slot.update(dict.fromkeys(ops, place))


def steps(nodes: Sequence[Node], split: bool) -> list[int]:
    """The step of each slot.

    A kernel on a GPU is a step. On the CPU Inductor writes all loops between two extern calls into one C++ function;
    with ``split`` a kernel is a step there, too, unless there is room for more (``join_loops``).
    """
    devices = [node.get_device() for node in nodes]
    merged = not split and all(device is None or device.type == "cpu" for device in devices)
    found = [0]
    for previous, node in itertools.pairwise(nodes):
        same = merged and not previous.is_extern() and not node.is_extern()
        found.append(found[-1] + (not same))
    return found


@dataclass(frozen=True)
class InplaceCandidate:
    """An op that reads ``old`` and makes ``new`` can write it over ``old``, if nobody reads that later.

    ``alongside``: who may read ``old`` in the same kernel.
    """

    old: str
    new: str
    alongside: frozenset[Node]


def _inplace_candidates(
    scheduler: Any, ops: Sequence[Node], buffers: dict[str, Buffer]
) -> dict[Node, list[InplaceCandidate]]:
    """For each op what it can overwrite, by the rules of Inductor's ``decide_inplace_update``.

    One of them: what a kernel reads in loops of different shapes (for a sum over each row, then element by element) is
    overwritten in none of them. So the backward of a softmax, fused, takes one matrix of scores more than in two.
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
                fits &= old.node.get_dtype() == new.node.get_dtype() and not buffers[read.name].stays
                user = next((user for user in old.users if user.node is op), None)
                if fits and len(where) == 1 and user is not None and user.can_inplace and _can_be_overwritten(old):
                    readers = (r for r in buffers[read.name].readers if r.get_name() in op.ancestors)
                    alongside = frozenset(r for r in readers if _reads(r, read.name) == where)
                    found.setdefault(op, []).append(InplaceCandidate(read.name, new.get_name(), alongside))
    return found


def _reads(op: Node, name: str) -> set[Any]:
    """In which ways ``op`` reads a buffer: index and loops."""
    return {d for d in op.read_writes.reads if d.name == name}


def _is_allocated(buffer: Any) -> bool:
    """Whether the op that makes it allocates it."""
    node = buffer.node
    return node.should_allocate() and not node.get_inputs_that_alias_output() and not node.get_mutation_names()


def _can_be_overwritten(buffer: Any) -> bool:
    """Whether it is a tensor of its own, and no input that the caller keeps."""
    layout, kept = buffer.node.get_output_spec(), V.graph.graph_inputs.keys() - buffer.scheduler.name_to_donated_buffer
    unlike = inductor_ir.NoneLayout, inductor_ir.MultiOutputLayout, inductor_ir.MutationLayoutSHOULDREMOVE
    return not isinstance(layout, unlike) and buffer.get_name() not in kept


def _buffers(scheduler: Any, nodes: Sequence[Node], ops: Sequence[Node]) -> dict[str, Buffer]:
    """What the ops write, and the inputs that can be freed; a buffer that is overwritten is one buffer."""
    inductor_memory.assign_memory_planning_info_for_scheduler_buffers(nodes, scheduler.name_to_buf)
    inputs = inductor_memory.get_freeable_input_buf(nodes, _torch.OrderedSet(V.graph.graph_inputs))
    stays = set(V.graph.get_output_names())
    buffers = {name: Buffer(b.mpi_buffer.size_free, stays=name in stays) for name, b in inputs.items()}
    writer = {name: op for op in ops for name in op.get_buffer_names()}
    parts: dict[str, Node] = {}
    for op in ops:
        for b in op.get_outputs():
            name, maker = b.get_name(), op
            if isinstance(op.node, inductor_ir.MultiOutput):  # the call that made the tuple has allocated it
                maker = next((writer[d.name] for d in op.unmet_dependencies if d.name in writer), op)
            if whole := whole_of(b):
                parts.setdefault(whole, op)  # written into a part of another buffer, which has to be there by then
            else:
                buffers[name] = Buffer(b.mpi_buffer.size_free, parts.get(name, maker), stays=name in stays)
    for op in ops:
        for dependency in op.read_writes.reads | op.unmet_dependencies:
            if not isinstance(dependency, _torch.WeakDep):
                name = dependency.name
                while name in scheduler.mutation_real_name:
                    name = scheduler.mutation_real_name[name]
                if name in buffers:
                    buffers[name].readers.add(op)
    return {name: buffer for name, buffer in buffers.items() if buffer.nbytes}


def whole_of(buffer: Any) -> str:
    """The name of the buffer that this one is a part of (an input of cat, written in place); "" when it is its own."""
    layout = buffer.node.layout
    if not isinstance(layout, inductor_ir.NonOwningLayout):
        return ""
    return str(layout.view.get_name())
