"""Kernels are fused only where that does not raise the peak, and Inductor's reuse of buffers gets exact sizes.

A fused kernel runs at one position, so fusion moves work, and with it the lives of what is read and written:

        position  3: a = cos(x)   4: mm(a, ..)   5: b = cos(x)   6: mm(b, ..)       a is freed before b is made
        fused     3: a, b = cos(x), cos(x)   4: mm(a, ..)   6: mm(b, ..)            b is alive beside a

``KernelTimeline`` (``buffer_liveness.py``) holds the bytes alive during each launch, and ``Gate`` refuses a pair that
raises the highest of them between its two positions. When no other pair is left, the peak is known, and a second round
fuses every pair that stays below ``_SPARE`` of it, so kernels stay apart only where memory is short. The margin is for
the workspaces of calls, which the timeline does not know.

All patches apply to one scheduler, which lives for one graph. The methods have these names and
signatures in torch 2.11 to 2.15.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import inductor_memory
from rematpass.compiler.inductor.buffer_liveness import KernelTimeline, Node, launches, whole_of

log = logging.getLogger("rematpass")

_SPARE = 15 / 16  # the second round may fill this part of the peak


def join_kernels(scheduler: Any, timeline: KernelTimeline, nodes: Sequence[Node], limit: int) -> None:
    """For the CPU, write neighbouring kernels into one C++ function while at most ``limit`` bytes are alive.

    A function's buffers are all allocated before it and freed after it, so Inductor's own choice, everything between
    two extern calls, keeps what a plan wants freed. A function per kernel costs compile time and a call each.
    """
    continued = _continued(timeline, nodes, limit)
    for device in {node.get_device() for node in scheduler.nodes} - {None}:
        backend = scheduler.get_backend(device)
        if devices.of(device).codegen == "cpp" and hasattr(backend, "_set_flush_status"):
            backend.codegen_node = functools.partial(_codegen_and_flush, backend, backend.codegen_node, continued)


def _continued(timeline: KernelTimeline, nodes: Sequence[Node], limit: int) -> set[str]:
    """The names of the first ops of the kernels after which the function continues."""
    allocated, continued = timeline.allocated(), set()
    nbytes = 0
    # The result of a cat is a node without code, which ends no function.
    with_code = [node for node in nodes if not isinstance(node, _torch.inductor_scheduler.NopKernelSchedulerNode)]
    for node, following in itertools.pairwise(with_code):
        position, next_position = (timeline.position.get(part.get_nodes()[0]) for part in (node, following))
        if position is None or next_position is None or node.is_extern() or following.is_extern():
            nbytes = 0
            continue
        nbytes = max(nbytes, int(timeline.live[position])) + allocated[next_position]
        if nbytes <= limit:
            continued.add(node.get_first_name())
        else:
            nbytes = 0
    return continued


def _codegen_and_flush(backend: Any, codegen_node: Callable[[Node], None], continued: set[str], node: Node) -> None:
    codegen_node(node)
    if node.get_first_name() not in continued:
        backend._set_flush_status(True)


def give_up(error: Exception) -> None:
    """Warn that Inductor continues by itself, which costs only memory."""
    log.warning(
        "Inductor could not be kept to the plan's order (%s: %s); it orders and fuses kernels by itself from here on, "
        "and may take more than planned. REMAT_STRICT=1 raises instead", type(error).__name__, error, exc_info=True
    )  # fmt: skip


class Gate:
    """Decides whether two kernels may be fused: not if that raises the peak between them above ``limit`` bytes.

    ``refused``: the number of refused pairs. ``is_open``: set after an error; Inductor then decides by itself.
    """

    def __init__(self, timeline: KernelTimeline, strict: bool = True) -> None:
        self.timeline, self.strict = timeline, strict
        self.limit = 0
        self.refused = 0
        self.is_open = False

    def position(self, one: Node, other: Node) -> int | None:
        """The position at which the two run as one with the lowest peak; None if they should stay apart."""
        try:
            return self._position(one, other)
        except Exception as error:
            self.leave_open(error)
            return None

    def move(self, ops: Sequence[Node], position: int) -> None:
        """Record that ``ops`` run at one position."""
        try:
            self.timeline.move(ops, position)
        except Exception as error:
            self.leave_open(error)

    def leave_open(self, error: Exception) -> None:
        """Let Inductor decide from now on; with ``strict``, raise instead."""
        if self.strict:
            raise error
        self.is_open = True
        give_up(error)

    def _position(self, one: Node, other: Node) -> int | None:
        t = self.timeline
        early, late = sorted((one.get_nodes(), other.get_nodes()), key=lambda ops: t.position[ops[0]])
        best: tuple[int, int] | None = None
        for position in t.common_positions(early, late):
            first, added = t.added([*early, *late], position)
            before = t.live[first : first + len(added)]
            peak = int((before + added).max())
            if peak <= max(int(before.max()), self.limit) and (best is None or peak < best[0]):
                best = peak, position
        self.refused += best is None
        return best[1] if best else None

    def knows(self, *nodes: Node) -> bool:
        return not self.is_open and all(op in self.timeline.position for node in nodes for op in node.get_nodes())


def guard_fusion(scheduler: Any, gate: Gate, split: bool) -> None:
    """Patch one scheduler: two rounds of fusion through the gate, then exact sizes for the reuse of buffers."""
    can_fuse, fuse, fuse_all = scheduler.can_fuse, scheduler.fuse_two_nodes, scheduler.fuse_nodes

    def guarded(one: Node, other: Node, *args: Any, **kwargs: Any) -> bool:
        if gate.knows(one, other) and gate.position(one, other) is None:
            return False
        return bool(can_fuse(one, other, *args, **kwargs))

    def fuse_two_nodes(one: Node, other: Node, *args: Any, **kwargs: Any) -> Node:
        position = gate.position(one, other) if gate.knows(one, other) else None
        fused = fuse(one, other, *args, **kwargs)
        if position is not None:
            gate.move(fused.get_nodes(), position)
            fused.min_order = fused.max_order = position  # Inductor sorts by these after each round
        return fused

    def fuse_nodes(nodes: list[Node]) -> list[Node]:
        nodes = fuse_all(nodes)
        gate.limit = int(gate.timeline.live.max() * _SPARE)
        if gate.refused:
            nodes = fuse_all(nodes)
        log.debug("%d kernels, about %d bytes at the peak", len(nodes), gate.limit)
        try:
            allow_only_what_frees_bytes(scheduler, gate.timeline)
            if split:
                join_kernels(scheduler, gate.timeline, nodes, gate.limit)
            else:
                correct_reuse(scheduler, nodes, gate.timeline)
        except Exception as error:
            gate.leave_open(error)
        return nodes

    scheduler.can_fuse, scheduler.fuse_two_nodes, scheduler.fuse_nodes = guarded, fuse_two_nodes, fuse_nodes


def allow_only_what_frees_bytes(scheduler: Any, timeline: KernelTimeline) -> None:
    """Keep ops from overwriting what never leaves their kernel.

    Inductor takes the first of an op's reads that the op can overwrite. If that one is not allocated, it is allocated
    after all, and the next one stays alive: the mask of a dropout, which the kernel draws and reads, beside the values
    that it masks; a gradient that is added up in the kernel that multiplies it with a product.
    """
    for op, candidates in timeline.inplace_candidates.items():
        for old in {candidate.old for candidate in candidates if timeline.is_inside(candidate.old)}:
            for user in scheduler.name_to_buf[old].users:
                user.can_inplace &= user.node is not op


def correct_reuse(scheduler: Any, nodes: Sequence[Node], timeline: KernelTimeline) -> None:
    """Correct the sizes and ends of buffers from which Inductor decides which freed buffers to reuse.

    Buffers that fusion removed or that are part of another buffer have no bytes; a buffer overwritten in place is not
    freed, nor is the new one allocated; nothing is freed before its launch ends.
    """
    inductor_memory.assign_memory_planning_info_for_scheduler_buffers(nodes, scheduler.name_to_buf)
    index, launch = {node: i for i, node in enumerate(nodes)}, launches(nodes, split=False)
    closing = dict(zip(launch, nodes, strict=True))  # the last node of each launch
    for i, node in enumerate(nodes):
        for b in node.get_outputs():
            end = max((index[user] for user in b.mpi_buffer.succ_nodes), default=i)
            b.mpi_buffer.succ_nodes.add(closing[launch[end]])
    for node in (node for node in nodes if not node.is_extern()):
        names = node.get_operation_names()
        for b in node.get_outputs():
            inside = len(names) > 1 and b.users and all(user.get_name() in names for user in b.users)
            if inside or whole_of(b):
                b.mpi_buffer.size_alloc = b.mpi_buffer.size_free = 0
    for op in timeline.inplace_candidates:
        chosen = timeline.inplace_candidate(op)
        if chosen is not None and chosen.old in scheduler.name_to_buf:
            scheduler.name_to_buf[chosen.old].mpi_buffer.size_free = 0
            scheduler.name_to_buf[chosen.new].mpi_buffer.size_alloc = 0
