"""Measurements of a training step: peak bytes, exactly, and seconds.

A step is a function without arguments that returns the loss. Its forward and backward are measured, with gradients that
are None at the start. The peak counts bytes beyond those allocated before the step, which excludes parameters, inputs
and optimizer state. Parameter gradients are reported separately, since no plan can avoid them:

        bytes     ╭─╮      peak              everything
              ╭───╯ ╰─╮    peak_other        the highest point, excluding parameter gradients
          ╭───╯  ▁▂▃▄▅╰─   gradients         the parameter gradients at the end of the step
        ──╯▁▁▁▁▁▁▁▁▁▁▁▁▁   peak - gradients  the peak less all parameter gradients

Seconds are compared in rounds that run every candidate once, so that a slow phase of the machine affects all of them.
Quotients are taken within a round, and their median is reported.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from rematpass.compiler import devices
from rematpass.compiler.devices.allocator_trace import AllocatedBytes, live_bytes
from rematpass.errors import MeasureError

TrainingStep = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step, beyond those allocated before it.

    ``saved``: alive between forward and backward, including the loss. ``requested``: the most that the step requested
    at a time, whereas ``peak`` counts the allocator's blocks. ``reserved``: what the allocator took from the device for
    the step. Both are None on the CPU, whose allocator reserves nothing and does not round requests up.
    """

    peak: int
    peak_other: int
    gradients: int
    saved: int
    reserved: int | None
    requested: int | None
    history: tuple[AllocatedBytes, ...]

    @property
    def peak_less_gradients(self) -> int:
        """The peak as if all gradients had been allocated before the step."""
        return self.peak - self.gradients


def loss_of(step: TrainingStep) -> torch.Tensor:
    """Run forward and return its loss.

    Raises:
        MeasureError: the step returns no loss, or a loss that requires no gradient.
    """
    loss = step()
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise MeasureError(f"the step returned {found}; return the loss, a tensor with one element")
    if not loss.requires_grad:
        raise MeasureError(
            "the loss does not require a gradient, so there is nothing to train: are all parameters frozen?"
        )
    return loss


def run_step(
    step: TrainingStep, parameters: Iterable[torch.nn.Parameter], between: Callable[[], None] | None = None
) -> None:
    """Run forward and backward, into new gradients. ``between`` is called after forward.

    Raises:
        MeasureError: the step returns no loss, or the loss does not depend on a trained parameter.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    loss = loss_of(step)
    if between:
        between()
    loss.backward()  # type: ignore[no-untyped-call]
    if all(parameter.grad is None for parameter in parameters):
        raise MeasureError("backward gave none of the model's parameters a gradient: does the step use another model?")


def measure_memory(
    step: TrainingStep, parameters: Iterable[torch.nn.Parameter], *, device: torch.device | str = "cpu", warm: int = 2
) -> StepMemory:
    """Run ``warm`` steps, which compile the model, then measure one. Gradients are None afterwards.

    The device's cache is emptied first, so that ``reserved`` counts only this step.

    Raises:
        MeasureError: as ``run_step``; the device cannot be measured; a profiler is running.
    """
    device = torch.device(device)
    parameters = list(parameters)
    for _ in range(warm):
        run_step(step, parameters)
    for parameter in parameters:
        parameter.grad = None
    gc.collect()
    counted = devices.of(device).allocator_peak(device, lambda between: run_step(step, parameters, between=between))
    recorded = _recorded(step, parameters, device)
    return recorded if counted is None else replace(recorded, **vars(counted))


def _recorded(step: TrainingStep, parameters: list[torch.nn.Parameter], device: torch.device) -> StepMemory:
    with devices.record(device) as recording:
        run_step(step, parameters, between=lambda: recording.mark("backward"))
    grads = {p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage().nbytes() for p in _with_grad(parameters)}
    history = live_bytes(recording.events, set(grads))
    for parameter in parameters:
        parameter.grad = None
    before_backward = [m.nbytes for m in history if m.nanoseconds < recording.marks["backward"]]
    return StepMemory(
        peak=max((m.nbytes for m in history), default=0),
        peak_other=max((m.nbytes - m.gradients for m in history), default=0),
        gradients=sum(grads.values()),
        saved=before_backward[-1] if before_backward else 0,
        reserved=None,
        requested=None,
        history=history,
    )


def _with_grad(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [p for p in parameters if p.grad is not None]


@dataclass(frozen=True)
class Timing:
    """Seconds of each run, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and the upper quartile, in seconds."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def relative_to(self, other: Timing) -> Timing:
        """The quotients with ``other`` within each round; a phase in which the machine is slow cancels out."""
        return Timing(tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True)))


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device | str = "cpu",
    after_round: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time each of ``runs`` once per round, starting each round with the next one. The runs are not warmed up.

    The garbage collector runs between the runs and is off while a run is timed.
    """
    device = torch.device(device)
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(rounds):
        start = round_ % max(1, len(names))
        for name in names[start:] + names[:start]:
            seconds[name].append(seconds_of(runs[name], device))
        if after_round:
            after_round()
    return {name: Timing(tuple(taken)) for name, taken in seconds.items()}


def seconds_of(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Wall-clock seconds of one call, until the device has finished."""
    device = torch.device(device)
    kind = devices.of(device)
    gc.collect()
    gc.disable()
    try:
        kind.synchronize(device)
        start = time.perf_counter()
        run()
        kind.synchronize(device)
        return time.perf_counter() - start
    finally:
        gc.enable()


def compile_seconds(run: Callable[[], object], *, device: torch.device | str = "cpu", warm: int = 2) -> float:
    """Seconds of the first call minus those of the fastest of ``warm`` further calls."""
    first = seconds_of(run, device)
    return max(0.0, first - min(seconds_of(run, device) for _ in range(warm)))


def gradient_error(gradients: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of an entry, relative to the largest entry of the same gradient in ``reference``.

    The divisor is at least a thousandth of the largest entry of all gradients: the gradient of some parameters (a key's
    bias under softmax) is only rounding noise. The error is infinite if only one of the two has some gradient, or if a
    difference is not finite.
    """
    if gradients.keys() != reference.keys():
        return math.inf
    largest, difference = {}, {}
    for name, gradient in reference.items():
        here = gradient.to(gradients[name].device)  # comparing a billion entries is fast on a GPU only
        largest[name] = float(here.abs().max())
        difference[name] = float((gradients[name].float() - here.float()).abs().max())
    least = 1e-3 * max(largest.values(), default=0.0)
    worst = 0.0
    for name in reference:
        error = difference[name] / (max(largest[name], least) or 1.0)
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst
