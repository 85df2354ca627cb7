"""A training run measures its own first steps and says so if they took more than was planned.

The backend hands over its compiled function; what comes back measures some calls of it and then does nothing more.

        forward is called ───▶ outputs ─ ─ (loss, other graphs) ─ ─▶ backward node runs ───▶ gradients
        ╰───── window ───────╯                                       ╰────── window ──────╯

Bytes count if they were allocated inside the two windows, which is what a plan speaks of: what lies between them, the
loss say, belongs to others. The node of a graph's backward is found behind its outputs, and hooks on it open and close
the second window. On the CPU a profiler runs from the first to the second, and on to the optimizer's step or the next
forward, so none of the user's can at that time; on CUDA the device's peak statistics are reset.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rematpass.errors import MeasureError
from rematpass.lab.allocations import Event, Recording, course, record
from rematpass.units import format_bytes

logger = logging.getLogger("rematpass")

BACKWARD_NODE = "CompiledFunctionBackward"
FORWARD_DONE, BACKWARD_STARTS, BACKWARD_DONE = "forward done", "backward starts", "backward done"


def check_steps(
    compiled: Callable[..., Any],
    planned: int | Callable[[], int | None],
    *,
    device: torch.device | str,
    name: str = "the graph",
    steps: int = 3,
    skip: int = 1,
    report: Callable[[int, int, str], None] | None = None,
) -> Callable[..., Any]:
    """Wrap a compiled forward so that ``steps`` of its steps are measured, after ``skip`` that compile the backward.

    ``planned``: bytes of peak, or a function for them where they are known only later; None ends the check.
    ``report(measured, planned, message)`` is called after each measured step; by default the message is logged, as a
    warning if more was measured than planned. Calls without a gradient are not counted, and a step whose backward
    does not come before the next forward is passed over.
    """
    check = _Check(planned, torch.device(device), name, steps, skip, report or _log)

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        return check.call(compiled, args, kwargs)

    return run


def _log(measured: int, planned: int, message: str) -> None:
    logger.log(logging.WARNING if measured > planned else logging.INFO, message)


class _Check:
    """What is left to do, and the step under way, if any."""

    def __init__(
        self,
        planned: int | Callable[[], int | None],
        device: torch.device,
        name: str,
        steps: int,
        skip: int,
        report: Callable[[int, int, str], None],
    ) -> None:
        self.planned, self.device, self.name, self.report = planned, device, name, report
        self.left, self.skip, self.done = steps, skip, 0
        self.window: _CpuWindow | _CudaWindow | None = None
        self.before_optimizer: Any = (
            None  # the hook's handle; removed at the next call, since torch iterates over hooks
        )

    def call(self, compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._settle()
        if self.before_optimizer is not None:
            self.before_optimizer.remove()
            self.before_optimizer = None
        if self.left < 1 or not torch.is_grad_enabled():
            return compiled(*args, **kwargs)
        if self.skip > 0:
            outputs = compiled(*args, **kwargs)
            self.skip -= backward_node(outputs) is not None
            return outputs
        try:
            self.window = _CudaWindow(self.device) if self.device.type == "cuda" else _CpuWindow(self.device)
        except MeasureError as error:
            logger.warning("the check measures nothing in this step of %s: %s", self.name, error)
            self.left -= 1
            return compiled(*args, **kwargs)
        try:
            outputs = compiled(*args, **kwargs)
        except BaseException:
            self._settle()
            raise
        self.window.forward_done()
        if (node := backward_node(outputs)) is None:
            self._settle()
        else:
            self._watch(self.window, node)
        return outputs

    def _watch(self, window: _CpuWindow | _CudaWindow, node: Any) -> None:
        hooks: list[Any] = []

        def opened(_: object) -> None:
            if self.window is window:
                window.backward_starts()

        def closed(_: object, __: object) -> None:
            for hook in hooks:
                hook.remove()
            if self.window is window:
                window.backward_done()
                self.before_optimizer = register_optimizer_step_pre_hook(settle)

        def settle(*_: object) -> None:
            if self.window is window:
                self._settle()

        hooks += [node.register_prehook(opened), node.register_hook(closed)]

    def _settle(self) -> None:
        """End the step under way, outside of backward: autograd brings back a profiler that is stopped inside it."""
        if self.window is None:
            return
        measured, self.window = self.window.close(), None
        planned = self.planned() if callable(self.planned) else self.planned
        if planned is None:
            self.left = 0
        elif measured is not None:
            self.left -= 1
            self.done += 1
            self.report(measured, planned, self._message(measured, planned))

    def _message(self, measured: int, planned: int) -> str:
        what = f"{self.name}, measured step {self.done}: a peak of {format_bytes(measured)}"
        if measured <= planned:
            return f"{what}, within the {format_bytes(planned)} planned"
        excess = measured - planned
        return (
            f"{what}, {format_bytes(excess)} ({excess / max(1, planned):.1%}) more than the {format_bytes(planned)} "
            f"planned; lower the budget by {format_bytes(excess, round_up=True)} to stay under it"
        )


class _CpuWindow:
    def __init__(self, device: torch.device) -> None:
        self.stack = ExitStack()
        self.recording = self.stack.enter_context(record(device))

    def forward_done(self) -> None:
        self.recording.mark(FORWARD_DONE)

    def backward_starts(self) -> None:
        self.recording.mark(BACKWARD_STARTS)

    def backward_done(self) -> None:
        self.recording.mark(BACKWARD_DONE)

    def close(self) -> int | None:
        """The peak, None if backward has not come."""
        self.stack.close()
        if BACKWARD_DONE not in self.recording.marks:
            return None
        return max((moment.nbytes for moment in course(tuple(own_events(self.recording)), set())), default=0)


class _CudaWindow:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stood = torch.cuda.memory_allocated(device)
        self.others = 0
        self.in_backward: int | None = None
        torch.cuda.reset_peak_memory_stats(device)

    def forward_done(self) -> None:
        self.in_forward = torch.cuda.max_memory_allocated(self.device) - self.stood
        self.after = torch.cuda.memory_allocated(self.device)

    def backward_starts(self) -> None:
        self.others = max(0, torch.cuda.memory_allocated(self.device) - self.after)
        torch.cuda.reset_peak_memory_stats(self.device)

    def backward_done(self) -> None:
        self.in_backward = torch.cuda.max_memory_allocated(self.device) - self.stood - self.others

    def close(self) -> int | None:
        return None if self.in_backward is None else max(self.in_forward, self.in_backward)


def own_events(recording: Recording) -> Iterator[Event]:
    """Events of blocks that were allocated in forward or in backward, not between or after them."""
    left, entered, done = (recording.marks[name] for name in (FORWARD_DONE, BACKWARD_STARTS, BACKWARD_DONE))
    own: set[int] = set()
    for event in recording.events:
        if event.nanoseconds > done:
            break
        if event.nbytes > 0 and not left < event.nanoseconds < entered:
            own.add(event.address)
            yield event
        elif event.nbytes < 0 and event.address in own:
            own.discard(event.address)
            yield event


def backward_node(outputs: Any) -> Any:
    """The autograd node that runs the compiled backward of these outputs; None if they need no gradient.

    An output that is a view of another has nodes of its own in front of it.
    """
    found = outputs if isinstance(outputs, Sequence) else [outputs]
    todo = [o.grad_fn for o in found if isinstance(o, torch.Tensor) and o.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node.name().endswith(BACKWARD_NODE):
            return node
        behind = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= behind
        todo += behind
    return None
