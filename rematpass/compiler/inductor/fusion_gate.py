"""Kernels are merged only where that does not raise the peak; and what Inductor's reuse of buffers has to know.

A fused kernel runs at one place, so fusing moves work, and with it the lives of what is read and written:

        slot      3: a = cos(x)   4: mm(a, ..)   5: b = cos(x)   6: mm(b, ..)       a is gone when b is made
        fused     3: a, b = cos(x), cos(x)   4: mm(a, ..)   6: mm(b, ..)            b waits beside a

``KernelTimeline`` (``buffer_liveness.py``) holds the bytes alive at each step of our order, ``Gate`` refuses a pair that raises the
highest point between its two places. When no such pair is left, the peak is known, and a second round takes every pair
that stays well under it: where there is memory to spare nothing is given up. (Well under: the timeline does not know
calls' workspaces.)
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from rematpass.compiler import _torch
from rematpass.compiler._torch import inductor_ir, inductor_memory
from rematpass.compiler.inductor.buffer_liveness import KernelTimeline, Node, steps, whole_of

log = logging.getLogger("rematpass")

_SPARE = 15 / 16  # of the peak is what the second round may fill


def join_loops(scheduler: Any, timeline: KernelTimeline, nodes: Sequence[Node], limit: int) -> None:
    """On the CPU, which kernels become one C++ function: neighbours, as long as no more than ``limit`` bytes live.

    A function's buffers are all allocated before it and freed after it, so Inductor's own choice, everything between
    two extern calls, keeps what a plan wants freed. A function for each kernel costs a compile and a call more each.
    """
    followed = _followed(timeline, nodes, limit)
    for device in {node.get_device() for node in scheduler.nodes} - {None}:
        backend = scheduler.get_backend(device)
        if device.type == "cpu" and hasattr(backend, "_set_flush_status"):
            backend.codegen_node = functools.partial(_codegen_and_flush, backend, backend.codegen_node, followed)


def _followed(timeline: KernelTimeline, nodes: Sequence[Node], limit: int) -> set[str]:
    """The first ops of the kernels after which their function goes on."""
    made, followed = timeline.made(), set()
    held = 0
    for node, following in itertools.pairwise(nodes):
        slot, its = (timeline.slot.get(part.get_nodes()[0]) for part in (node, following))
        if slot is None or its is None or node.is_extern() or following.is_extern():
            held = 0
            continue
        held = max(held, int(timeline.live[slot])) + made[its]
        if held <= limit:
            followed.add(node.get_first_name())
        else:
            held = 0
    return followed


def _codegen_and_flush(backend: Any, codegen_node: Callable[[Node], None], followed: set[str], node: Node) -> None:
    codegen_node(node)
    if node.get_first_name() not in followed:
        backend._set_flush_status(True)


def give_up(error: Exception) -> None:
    """Say that Inductor goes on by itself, which costs memory and nothing else."""
    log.warning(
        "Inductor could not be kept to the plan's order (%s: %s); it orders and merges kernels by itself from here on, "
        "and may take more than planned. REMAT_STRICT=1 raises instead", type(error).__name__, error, exc_info=True
    )  # fmt: skip


class Gate:
    """Whether two kernels may be fused: not when that raises the highest point between them above ``limit``."""

    def __init__(self, timeline: KernelTimeline, strict: bool = True) -> None:
        self.timeline, self.strict = timeline, strict
        self.limit = 0
        self.refused = 0
        self.is_open = False  # once something went wrong in here: Inductor chooses

    def place(self, one: Node, other: Node) -> int | None:
        """The slot at which the two run as one with the lowest peak; None when they should not."""
        try:
            return self._place(one, other)
        except Exception as error:
            self.leave_open(error)
            return None

    def move(self, ops: Sequence[Node], place: int) -> None:
        """Take note that ``ops`` run at one slot."""
        try:
            self.timeline.move(ops, place)
        except Exception as error:
            self.leave_open(error)

    def leave_open(self, error: Exception) -> None:
        """Let Inductor choose from now on."""
        if self.strict:
            raise error
        self.is_open = True
        give_up(error)

    def _place(self, one: Node, other: Node) -> int | None:
        t = self.timeline
        early, late = sorted((one.get_nodes(), other.get_nodes()), key=lambda ops: t.slot[ops[0]])
        best: tuple[int, int] | None = None
        for place in t.places(early, late):
            first, added = t.difference([*early, *late], place)
            before = t.live[first : first + len(added)]
            peak = int((before + added).max())
            if peak <= max(int(before.max()), self.limit) and (best is None or peak < best[0]):
                best = peak, place
        self.refused += best is None
        return best[1] if best else None

    def knows(self, *nodes: Node) -> bool:
        return not self.is_open and all(op in self.timeline.slot for node in nodes for op in node.get_nodes())


def guard_fusion(scheduler: Any, gate: Gate, split: bool) -> None:
    """Put the gate into one scheduler: two rounds of fusion, then the truth for the reuse of buffers."""
    can_fuse, fuse, fuse_all = scheduler.can_fuse, scheduler.fuse_two_nodes, scheduler.fuse_nodes

    def guarded(one: Node, other: Node, *args: Any, **kwargs: Any) -> bool:
        if gate.knows(one, other) and gate.place(one, other) is None:
            return False
        return bool(can_fuse(one, other, *args, **kwargs))

    def fuse_two_nodes(one: Node, other: Node, *args: Any, **kwargs: Any) -> Node:
        place = gate.place(one, other) if gate.knows(one, other) else None
        fused = fuse(one, other, *args, **kwargs)
        if place is not None:
            gate.move(fused.get_nodes(), place)
            fused.min_order = fused.max_order = place  # by which Inductor sorts after each round
        return fused

    def fuse_nodes(nodes: list[Node]) -> list[Node]:
        nodes = fuse_all(nodes)
        gate.limit = int(gate.timeline.live.max() * _SPARE)
        if gate.refused:
            nodes = fuse_all(nodes)
        log.debug("kernels: %d, about %d bytes at the peak", len(nodes), gate.limit)
        try:
            prefer(scheduler, gate.timeline)
            if split:
                join_loops(scheduler, gate.timeline, nodes, gate.limit)
            else:
                tell_reuse(scheduler, nodes, gate.timeline)
        except Exception as error:
            gate.leave_open(error)
        return nodes

    scheduler.can_fuse, scheduler.fuse_two_nodes, scheduler.fuse_nodes = guarded, fuse_two_nodes, fuse_nodes


def prefer(scheduler: Any, timeline: KernelTimeline) -> None:
    """Let ops overwrite what frees bytes.

    Inductor takes the first of an op's reads that it can write over, be it one that never leaves the kernel: then that
    one is allocated after all. (A dropout's mask: drawn, read and overwritten, beside the values that it is for.) Only
    then another one is put first, and only what kernels compute and read: what a call hands back may share its bytes.
    """
    for op, inplace_candidates in timeline.inplace_candidates.items():
        inplace_candidate = timeline.inplace_candidate(op)
        if (
            inplace_candidate is None
            or inplace_candidate is inplace_candidates[0]
            or inplace_candidate.old not in scheduler.name_to_buf
        ):
            continue
        computed = isinstance(scheduler.name_to_buf[inplace_candidate.old].node, inductor_ir.ComputedBuffer)
        if computed and not any(reader.is_extern() for reader in timeline.buffers[inplace_candidate.old].readers):
            reads = sorted(op.read_writes.reads, key=lambda read, old=inplace_candidate.old: read.name != old)  # type: ignore[misc]
            op.read_writes = dataclasses.replace(op.read_writes, reads=_torch.OrderedSet(reads))


def tell_reuse(scheduler: Any, nodes: Sequence[Node], timeline: KernelTimeline) -> None:
    """Correct what Inductor knows when it decides which freed buffers to hand on: their sizes and their ends.

    What fusion removed and what is a part of another buffer takes nothing; what is overwritten in place is freed
    nowhere and allocated nowhere; nothing is freed before its step ends.
    """
    inductor_memory.assign_memory_planning_info_for_scheduler_buffers(nodes, scheduler.name_to_buf)
    index, step = {node: i for i, node in enumerate(nodes)}, steps(nodes, split=False)
    closing = dict(zip(step, nodes, strict=True))  # the last node of each step
    for i, node in enumerate(nodes):
        for b in node.get_outputs():
            end = max((index[user] for user in b.mpi_buffer.succ_nodes), default=i)
            b.mpi_buffer.succ_nodes.add(closing[step[end]])
    for node in (node for node in nodes if not node.is_extern()):
        names = node.get_operation_names()
        for b in node.get_outputs():
            inside = len(names) > 1 and b.users and all(user.get_name() in names for user in b.users)
            if inside or whole_of(b):
                b.mpi_buffer.size_alloc = b.mpi_buffer.size_free = 0
    for op in timeline.inplace_candidates:
        inplace_candidate = timeline.inplace_candidate(op)
        if inplace_candidate is not None and inplace_candidate.old in scheduler.name_to_buf:
            scheduler.name_to_buf[inplace_candidate.old].mpi_buffer.size_free = 0
            scheduler.name_to_buf[inplace_candidate.new].mpi_buffer.size_alloc = 0
