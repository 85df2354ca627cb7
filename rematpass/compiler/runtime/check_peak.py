"""REMAT_CHECK=1: a training run measures its own first steps and says so if they took more than was planned.

The backend hands over its compiled function; what comes back measures some calls of it and then does nothing more.

        forward is called ───▶ outputs ─ ─ (loss, other graphs) ─ ─▶ backward node runs ───▶ gradients
        ╰───── window ───────╯                                       ╰────── window ──────╯

Bytes count if they were allocated inside the two windows, which is what a plan speaks of: what lies between them, the
loss say, belongs to others. The node of a graph's backward is found behind its outputs, and hooks right before and
right after it open and close the second window. On CUDA the device's peak statistics are reset at its beginning.

On the CPU each window is a profiler of its own, stopped in the very call (or around the very node) that started it.
One that ran from forward to backward, or to the next forward, crashed the process: torch's spans (``Torch-Compiled
Region``, ``Optimizer.step``) that began under one profiler and ended under the next wrote into the first one's freed
memory. So no window is open between calls, two graphs never share one, and none of the user's profilers is disturbed.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import Any

import torch

from rematpass.compiler import devices
from rematpass.compiler.devices.peak_window import PeakWindow
from rematpass.compiler.runtime.step_warnings import backward_node
from rematpass.errors import MeasureError
from rematpass.units import format_bytes

logger = logging.getLogger("rematpass")


def check_steps(
    compiled: Callable[..., Any],
    planned: int | Callable[[Sequence[Any]], int | None],
    *,
    device: torch.device | str,
    name: str = "the graph",
    hint: str = "",
    steps: int = 3,
    skip: int = 1,
    report: Callable[[int, int, str], None] | None = None,
) -> Callable[..., Any]:
    """Wrap a compiled forward so that ``steps`` of its steps are measured, after ``skip`` that compile the backward.

    ``planned``: bytes of peak, or a function of a call's arguments for them, since they are known only later and may
    depend on sizes; None ends the check.
    ``hint``: what else to do if more was measured than planned, the end of a sentence. ``report(measured, planned,
    message)`` is called after each measured step; by default the message is logged, as a warning if more was measured
    than planned. Calls without a gradient are not counted; of several calls in a step each is one to be measured.
    """
    check = _Check(planned, torch.device(device), name, hint, steps, skip, report or _log)

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        return check.call(compiled, args, kwargs)

    return run


def _log(measured: int, planned: int, message: str) -> None:
    logger.log(logging.WARNING if measured > planned else logging.INFO, message)


class _Check:
    """What is left to do for one graph."""

    def __init__(
        self,
        planned: int | Callable[[Sequence[Any]], int | None],
        device: torch.device,
        name: str,
        hint: str,
        steps: int,
        skip: int,
        report: Callable[[int, int, str], None],
    ) -> None:
        self.planned, self.device, self.name, self.hint, self.report = planned, device, name, hint, report
        self.left, self.skip, self.done = steps, skip, 0
        self._in_backward: ExitStack | None = None  # still there at the next call if that backward raised

    def call(self, compiled: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._in_backward is not None:
            self._abandon()
        if self.left < 1 or not torch.is_grad_enabled():
            return compiled(*args, **kwargs)
        if self.skip > 0:
            outputs = compiled(*args, **kwargs)
            self.skip -= backward_node(outputs, args) is not None
            return outputs
        window = devices.of(self.device).peak_window(self.device)
        with _one_at_a_time, ExitStack() as stack:
            if not self._open(stack, window.forward):
                return compiled(*args, **kwargs)
            outputs = compiled(*args, **kwargs)
        if (node := backward_node(outputs, args)) is not None:
            window.set_outputs(outputs)
            self._watch(window, node, self.planned(args) if callable(self.planned) else self.planned)
        return outputs

    def _open(self, stack: ExitStack, window: Callable[[], AbstractContextManager[None]]) -> bool:
        """Whether measuring began; a step in which it cannot is told of and given up."""
        try:
            stack.enter_context(window())
        except MeasureError as error:
            logger.warning("the check measures nothing in this step of %s: %s", self.name, error)
            self.left -= 1
            return False
        return True

    def _watch(self, window: PeakWindow, node: Any, planned: int | None) -> None:
        """Measure this node when it runs, once: hooks before and after it, on the thread that runs it."""
        hooks: list[Any] = []
        stack = ExitStack()
        is_open = [False]

        def before(_: object) -> None:
            if self.left > 0:
                stack.enter_context(_one_at_a_time)
                self._in_backward = stack
                is_open[0] = self._open(stack, window.backward)

        def after(_: object, __: object) -> None:
            for hook in hooks:
                hook.remove()
            stack.close()
            self._in_backward = None
            if is_open[0]:
                self._tell(window.peak, planned)

        hooks += [node.register_prehook(before), node.register_hook(after)]

    def _abandon(self) -> None:
        """End a window that a failed backward left open, and measure no more: its profiler is in no known state."""
        stack, self._in_backward, self.left = self._in_backward, None, 0
        if stack is not None:
            with suppress(RuntimeError, AssertionError):
                stack.close()

    def _tell(self, measured: int, planned: int | None) -> None:
        if planned is None:
            self.left = 0
            logger.warning(
                "the check of %s has nothing to compare with: its plan is not known, since planning failed or its code "
                "comes from a compile cache; TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 plans it anew", self.name
            )  # fmt: skip
            return
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
            f"planned; lower the budget by {format_bytes(excess, round_up=True)} to stay under it{self.hint}"
        )


_one_at_a_time = threading.RLock()  # several threads may train, and the profiler's memory events are the process's
