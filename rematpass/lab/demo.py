"""``rematpass demo``: train a small GPT three times, from the same weights on the same batches, and compare.

The three are eager mode, plain ``torch.compile``, and ``backend="remat"`` under a budget. The demo measures the peak of
a step, its seconds (the three train in turns), the losses, and the error of the gradients relative to eager mode. It
needs only the base installation.
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
from rematpass.lab.measure.memory_and_time import (
    StepMemory,
    compile_seconds,
    gradient_error,
    measure_memory,
    run_step,
    seconds_of,
)
from rematpass.lab.measure.warm_up import warm_up
from rematpass.lab.models.networks import TinyGPT, lowest_loss, walk
from rematpass.units import format_bytes, format_percent, format_seconds

BATCH, LENGTH, VOCABULARY = 8, 256, 128
GRADIENT_TOLERANCE = 1e-3  # relative to the largest entry; fused kernels differ by about 1e-6


@dataclass
class Trainee:
    """One of the three models with its measurements and its training.

    ``planned_peak``: bytes; None without a plan. ``compile_seconds``: 0.0 in eager mode.
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
    """Train and print a table. The exit code is 1 if memory did not fall or gradients are wrong, otherwise 0.

    Raises:
        ConfigError, BudgetInfeasible: as the backend raises them (Dynamo wraps the latter).
        MeasureError: the device cannot be used.
    """
    on = devices.usable(device)
    Config.read({"memory_budget": budget})  # refuse an invalid budget at once
    generator = torch.Generator().manual_seed(0)
    batches = [walk(BATCH, LENGTH, VOCABULARY, generator).to(on) for _ in range(steps)]
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("warming torch.compile up", total=4 + steps)
        warm_up(on)  # otherwise the first model's compilation includes imports and precompiled headers
        progress.advance(task)

        def prepare(name: str, compile_it: Callable[[TinyGPT], None] | None = None) -> Trainee:
            progress.update(task, description=f"{name}: {'compiling' if compile_it else 'measuring'}")
            trainee = _prepare(name, compile_it, batches[0])
            progress.advance(task)
            return trainee

        eager = prepare("eager")
        # Before torch.compile: Dynamo takes the later one for a recompile, where an infeasible budget only warns.
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
    """A new model with the same weights as the others, compiled and measured on the first batch."""
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
    table.add_column("", overflow="fold")
    for title in ("eager", "torch.\ncompile", f"remat,\n{budget}"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row("peak of a step, measured", *(f"[bold]{format_bytes(t.memory.peak)}[/]" for t in trainees))
    table.add_row(
        "peak of a step, planned", "", "", "" if under.planned_peak is None else format_bytes(under.planned_peak)
    )
    table.add_row("parameter gradients in it", *(format_bytes(t.memory.gradients) for t in trainees))
    table.add_row("alive when backward starts", *(format_bytes(t.memory.saved) for t in trainees))
    table.add_row("training step, median", *(format_seconds(t.step_seconds) for t in trainees))
    table.add_row("compilation", *(format_seconds(t.compile_seconds) if t.compile_seconds else "" for t in trainees))
    errors = (f"{gradient_error(t.gradients, eager.gradients):.0e}" for t in (without, under))
    table.add_row("error of the gradients", "", *errors, end_section=True)
    last = len(eager.losses) - 1
    for step in sorted({0, last // 4, last // 2, 3 * last // 4, last}):
        table.add_row(f"loss, step {step + 1}", *(f"{t.losses[step]:.3f}" for t in trainees))
    return table


def _verdict(eager: Trainee, without: Trainee, under: Trainee, console: Console) -> int:
    share = under.memory.peak / without.memory.peak
    console.print(
        f"The same training in {format_percent(share, 0)} of torch.compile's memory, in "
        f"{under.step_seconds / without.step_seconds:.2f} times its seconds.\n"
        f"Guessing has a loss of {math.log(VOCABULARY):.2f}; the lowest possible loss is {lowest_loss():.2f}."
    )
    problems = []
    if share >= 1:
        problems.append("the peak is not lower than torch.compile's; try a smaller budget")
    if (error := gradient_error(under.gradients, eager.gradients)) > GRADIENT_TOLERANCE:
        problems.append(f"gradients differ from eager mode's by {error:.1e} of their largest entry")
    if len(under.losses) > 1 and under.losses[-1] >= under.losses[0]:
        problems.append("the loss did not go down")
    for problem in problems:
        console.print(f"[red]Problem:[/] {problem}.")
    return 1 if problems else 0
