"""REMAT_CHECK=1: a training run measures its own first steps and warns if one takes more than planned.

The backend passes its compiled function to ``check_steps``. The returned function measures some of its calls, and
afterwards only forwards them.

        forward is called ───▶ outputs ─ ─ (loss, other graphs) ─ ─▶ backward node runs ───▶ gradients
        ╰───── window ───────╯                                       ╰────── window ──────╯

Like a plan, the check counts only bytes that are allocated inside the two windows, not those in between, such as the
loss. The autograd node of the graph's backward is found behind the outputs, and hooks before and
after it open and close the second window. How a window measures is up to the device (``devices/peak_window.py``).

On the CPU a window is a profiler, which must stop in the call (or around the node) that started it. A profiler that
runs from forward to backward crashes the process: spans of torch (``Torch-Compiled Region``, ``Optimizer.step``) that
begin under one profiler and end under the next write into freed memory of the first. So no window is open between
calls, two graphs never share one, and profilers of the user are not disturbed.
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
from rematpass.compiler.runtime.backward_node import backward_node
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
    """Wrap a compiled forward so that ``steps`` of its calls are measured, after ``skip`` that compile the backward.

    ``planned``: the planned peak in bytes, or a function that computes it from a call's arguments, since it is known
    only after compilation and may depend on sizes. If it returns None, the check ends.
    ``hint``: further advice if a step takes more than planned, appended to the message. ``report(measured, planned,
    message)`` is called after each measured call; by default the message is logged, as a warning if ``measured`` is
    larger. Calls that need no gradient are not counted. Each of several calls in a training step counts as one.
    """
    check = _Check(planned, torch.device(device), name, hint, steps, skip, report or _log)

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        return check.call(compiled, args, kwargs)

    return run


def _log(measured: int, planned: int, message: str) -> None:
    logger.log(logging.WARNING if measured > planned else logging.INFO, message)


class _Check:
    """The state of the check of one graph."""

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
        self._in_backward: ExitStack | None = None  # the open window; left over at the next call if backward raised

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
        """Whether the window is open. A call that cannot be measured is logged and skipped."""
        try:
            stack.enter_context(window())
        except MeasureError as error:
            logger.warning("the check cannot measure this step of %s: %s", self.name, error)
            self.left -= 1
            return False
        return True

    def _watch(self, window: PeakWindow, node: Any, planned: int | None) -> None:
        """Measure the node when it runs, once, by hooks before and after it on the thread that runs it."""
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
                self._conclude(window.peak, planned)

        hooks += [node.register_prehook(before), node.register_hook(after)]

    def _abandon(self) -> None:
        """Close the window that a failed backward left open, and end the check: the profiler's state is undefined."""
        stack, self._in_backward, self.left = self._in_backward, None, 0
        if stack is not None:
            with suppress(RuntimeError, AssertionError):
                stack.close()

    def _conclude(self, measured: int, planned: int | None) -> None:
        if planned is None:
            self.left = 0
            logger.warning(
                "the check of %s ends: its plan is not known, because planning failed or its code comes from a compile "
                "cache; set TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 to plan it again", self.name
            )  # fmt: skip
            return
        self.left -= 1
        self.done += 1
        self.report(measured, planned, self._message(measured, planned))

    def _message(self, measured: int, planned: int) -> str:
        found = f"{self.name}, measured step {self.done}: a peak of {format_bytes(measured)}"
        if measured <= planned:
            return f"{found}, within the {format_bytes(planned)} planned"
        excess = measured - planned
        return (
            f"{found}, {format_bytes(excess)} ({excess / max(1, planned):.1%}) more than the {format_bytes(planned)} "
            f"planned; lower the budget by {format_bytes(excess, round_up=True)} to stay under it{self.hint}"
        )


_one_at_a_time = threading.RLock()  # threads may train side by side, and a recording covers the whole process
