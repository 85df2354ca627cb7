"""What a training step really takes: peak bytes, exactly, and seconds.

A step is a function without arguments that returns the loss; forward and backward of it are measured, gradients
included and set to None before. The peak is what is alive beyond what stood before the step, so parameters, inputs
and optimizer state are left out. Three figures tell the gradients apart, since a planner can do nothing about them:

        bytes     ╭─╮      peak              all of it
              ╭───╯ ╰─╮    peak_other        the highest point of what is no parameter gradient
          ╭───╯  ▁▂▃▄▅╰─   gradients         what the parameters' gradients take once the step is done
        ──╯▁▁▁▁▁▁▁▁▁▁▁▁▁   peak - gradients  what is left of the peak if all of them are taken off

Seconds are compared in rounds that run every candidate once, so that a machine that slows down for a while slows all
of them down; quotients are taken within a round and their median is reported.
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

Step = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step, beyond what stood before it.

    ``saved``: alive between forward and backward, the loss included. ``reserved``: what the CUDA allocator took from
    the device for the step, ``requested``: what the step asked it for at most, where ``peak`` counts the blocks that
    it handed out; None on the CPU, whose allocator keeps nothing back and hands out what it is asked for.
    """

    peak: int
    peak_other: int
    gradients: int
    saved: int
    reserved: int | None
    requested: int | None
    course: tuple[AllocatedBytes, ...]

    @property
    def peak_less_gradients(self) -> int:
        """The peak, less all of the gradients, as if they had stood there from the start."""
        return self.peak - self.gradients


def loss_of(step: Step) -> torch.Tensor:
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


def run_step(step: Step, parameters: Iterable[torch.nn.Parameter], between: Callable[[], None] | None = None) -> None:
    """Forward and backward, into fresh gradients. ``between`` is called when forward is done.

    Raises:
        MeasureError: the step returns no loss, or the loss depends on no parameter that is trained.
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
    step: Step, parameters: Iterable[torch.nn.Parameter], *, device: torch.device | str = "cpu", warm: int = 2
) -> StepMemory:
    """Run ``warm`` steps, which compile what has to be compiled, then measure one. Gradients are None afterwards.

    CUDA's caches are emptied before, so that ``reserved`` is this step's own.

    Raises:
        MeasureError: as ``run_step`` does; the device cannot be measured; a profiler is running.
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


def _recorded(step: Step, parameters: list[torch.nn.Parameter], device: torch.device) -> StepMemory:
    with devices.record(device) as recording:
        run_step(step, parameters, between=lambda: recording.mark("backward"))
    grads = {p.grad.untyped_storage().data_ptr(): p.grad.untyped_storage().nbytes() for p in _with_grad(parameters)}
    moments = live_bytes(recording.events, set(grads))
    for parameter in parameters:
        parameter.grad = None
    before_backward = [m.nbytes for m in moments if m.nanoseconds < recording.marks["backward"]]
    return StepMemory(
        peak=max((m.nbytes for m in moments), default=0),
        peak_other=max((m.nbytes - m.gradients for m in moments), default=0),
        gradients=sum(grads.values()),
        saved=before_backward[-1] if before_backward else 0,
        reserved=None,
        requested=None,
        course=moments,
    )


def _with_grad(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [p for p in parameters if p.grad is not None]


@dataclass(frozen=True)
class Timing:
    """Seconds of every measured run, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and the upper quartile: half of all runs took a time between them."""
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper

    def relative_to(self, other: Timing) -> Timing:
        """The quotients of the two within each round, which a slow minute of the machine cancels out of."""
        return Timing(tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True)))


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    device: torch.device | str = "cpu",
    after_round: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time every one of ``runs`` once per round, each round beginning with another one; the first call is not warm.

    The garbage collector is off while a run is timed and called in between.
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
    """What the first call takes longer than a warm one: the least of ``warm`` further calls."""
    first = seconds_of(run, device)
    return max(0.0, first - min(seconds_of(run, device) for _ in range(warm)))


def gradient_error(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of a gradient's entry from ``theirs``, relative to its parameter's largest entry there.

    A parameter whose gradient is nothing but rounding (a key's bias under softmax) would make noise look like error,
    so what is divided by is never below a thousandth of the largest entry of all gradients. A gradient that only one
    of the two has, or that is not finite, is infinitely far off.
    """
    if ours.keys() != theirs.keys():
        return math.inf
    largest, off = {}, {}
    for name, gradient in theirs.items():
        here = gradient.to(ours[name].device)  # a GPU compares a billion entries in no time, a CPU in seconds
        largest[name] = float(here.abs().max())
        off[name] = float((ours[name].float() - here.float()).abs().max())
    least = 1e-3 * max(largest.values(), default=0.0)
    worst = 0.0
    for name in theirs:
        error = off[name] / (max(largest[name], least) or 1.0)
        worst = max(worst, error) if math.isfinite(error) else math.inf
    return worst
