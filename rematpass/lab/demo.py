"""``rematpass demo``: train a small GPT three times, from the same weights on the same batches, and compare.

Without compilation, with ``torch.compile`` as it comes, and with ``backend="remat"`` under a budget. What is shown is
measured here and now: the peak of a step, its seconds (the three train in turns), the losses, and how far gradients
are from those without compilation. It needs the base installation only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from rematpass.compiler import devices
from rematpass.compiler.backend import remat
from rematpass.compiler.planned import plans
from rematpass.config import Config
from rematpass.lab.measure.memory_and_time import StepMemory, compile_seconds, measure_memory, run_step, seconds_of
from rematpass.lab.models.networks import TinyGPT, lowest_loss, walk
from rematpass.units import format_bytes, format_percent, format_seconds

BATCH, LENGTH, VOCABULARY = 8, 256, 128
GRADIENT_TOLERANCE = 1e-3  # of the largest entry; fused kernels round differently, by about 1e-6


@dataclass
class Trainee:
    """One of the three: the model, what was measured of it, and how its training goes.

    ``planned_peak``: bytes, None without a plan; ``compile_seconds``: 0.0 in eager.
    """

    name: str
    module: TinyGPT
    optimizer: torch.optim.Optimizer
    memory: StepMemory
    gradients: dict[str, torch.Tensor]
    compile_seconds: float
    planned_peak: int | None
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.seconds)

    def update(self, batch: torch.Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.module(batch)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.detach().item())


def run(*, budget: str, steps: int, device: str, console: Console) -> int:
    """Train, print the table and a verdict; the exit code: 1 if memory did not fall or gradients are off.

    Raises:
        ConfigError, BudgetInfeasible: as the backend raises them (Dynamo wraps the latter).
        MeasureError: there is no such device.
    """
    on = devices.usable(device)
    Config.read({"memory_budget": budget})  # a budget that cannot be read is refused at once
    generator = torch.Generator().manual_seed(0)
    batches = [walk(BATCH, LENGTH, VOCABULARY, generator).to(on) for _ in range(steps)]
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=3 + steps)

        def prepare(name: str, compile_it: Callable[[TinyGPT], None] | None = None) -> Trainee:
            progress.update(task, description=f"{name}: {'compiling' if compile_it else 'measuring'}")
            trainee = _prepare(name, compile_it, batches[0])
            progress.advance(task)
            return trainee

        eager = prepare("eager")
        # Before torch.compile: to Dynamo the later one is a recompile, and a budget out of reach only warns in those.
        under = prepare("remat", lambda m: m.compile(backend=remat, options={"memory_budget": budget}))
        without = prepare("torch.compile", lambda m: m.compile())
        for batch in batches:
            progress.update(task, description="training", advance=1)
            for trainee in (eager, without, under):
                trainee.seconds.append(seconds_of(partial(trainee.update, batch), on))
    parameters = sum(p.numel() for p in eager.module.parameters())
    console.print(f"A GPT of {parameters / 1e6:.1f} million parameters, {BATCH} x {LENGTH} tokens a step, on {on}:")
    console.print(_table(eager, without, under, budget))
    return _verdict(eager, without, under, console)


def _prepare(name: str, compile_it: Callable[[TinyGPT], None] | None, batch: torch.Tensor) -> Trainee:
    """A model with the same weights as every other, compiled and measured on its first batch."""
    plans(clear=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = TinyGPT(vocabulary=VOCABULARY, length=LENGTH).to(batch.device)
    parameters = list(module.parameters())
    if compile_it:
        compile_it(module)
    step = partial(module, batch)
    compiling = compile_seconds(partial(run_step, step, parameters), device=batch.device, warm=1)
    gradients = {n: p.grad.detach().cpu() for n, p in module.named_parameters() if p.grad is not None}
    return Trainee(
        name=name,
        module=module,
        optimizer=torch.optim.AdamW(parameters, lr=2e-3),
        memory=measure_memory(step, parameters, device=batch.device, warm=0),
        gradients=gradients,
        compile_seconds=compiling if compile_it else 0.0,
        planned_peak=max((summary.planned_peak for summary in plans(clear=True)), default=None),
    )


def _table(eager: Trainee, without: Trainee, under: Trainee, budget: str) -> Table:
    trainees = (eager, without, under)
    table = Table()
    for title in ("", "eager", "torch.compile", f"remat, {budget}"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("peak of a step, measured", *(f"[bold]{format_bytes(t.memory.peak)}[/]" for t in trainees))
    table.add_row("the same, planned", "", "", "" if under.planned_peak is None else format_bytes(under.planned_peak))
    table.add_row("of it parameter gradients", *(format_bytes(t.memory.gradients) for t in trainees))
    table.add_row("alive when backward starts", *(format_bytes(t.memory.saved) for t in trainees))
    table.add_row("a training step, median", *(format_seconds(t.step_seconds) for t in trainees))
    table.add_row("compilation", *(format_seconds(t.compile_seconds) if t.compile_seconds else "" for t in trainees))
    errors = (f"{gradient_error(t, eager):.0e}" for t in (without, under))
    table.add_row("gradients: off eager's by", "", *errors, end_section=True)
    last = len(eager.losses) - 1
    for step in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        table.add_row(f"loss, step {step + 1}", *(f"{t.losses[step]:.3f}" for t in trainees))
    return table


def gradient_error(one: Trainee, other: Trainee) -> float:
    """The largest difference of a gradient's entry, relative to the largest entry of that parameter's gradient."""
    return max(
        float((one.gradients[name] - gradient).abs().max() / gradient.abs().max().clamp(min=1e-30))
        for name, gradient in other.gradients.items()
    )


def _verdict(eager: Trainee, without: Trainee, under: Trainee, console: Console) -> int:
    share = under.memory.peak / without.memory.peak
    console.print(
        f"The same training in {format_percent(share, 0)} of torch.compile's memory, at "
        f"{under.step_seconds / without.step_seconds:.2f} times its seconds.\n"
        f"The loss of a guess is {math.log(VOCABULARY):.2f}, and the best that can be learned {lowest_loss():.2f}."
    )
    wrong = []
    if share >= 1:
        wrong.append("the peak is not lower than torch.compile's; give a smaller budget")
    if (error := gradient_error(under, eager)) > GRADIENT_TOLERANCE:
        wrong.append(f"gradients differ from eager's by {error:.1e} of their largest entry, which is too much")
    if len(under.losses) > 1 and under.losses[-1] >= under.losses[0]:
        wrong.append("the loss did not go down")
    for what in wrong:
        console.print(f"[red]Not as it should be:[/] {what}.")
    return 1 if wrong else 0
