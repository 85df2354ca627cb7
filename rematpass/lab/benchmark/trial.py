"""Measure one strategy on one model in the calling process: bytes, FLOPs, gradients and compile seconds.

Gradients and FLOPs are compared with the model's eager step (``subject.py``). A model that draws random numbers
(dropout) draws different ones when it is compiled, on the CPU even with ``fallback_random``. The reference of a
compiled strategy is then plain Inductor under the same seed, which draws the same numbers as all compiled strategies.

Compile seconds are cold if the process has a compile cache that contains nothing but ``warm_up``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rematpass.compiler import devices
from rematpass.compiler._torch import functorch_config
from rematpass.compiler.backend import remat
from rematpass.compiler.default_partition import SOLVER as TORCH
from rematpass.compiler.planned import Record, listening, plans
from rematpass.core.frontier import least_budget
from rematpass.errors import BudgetInfeasible, MeasureError, cause_of
from rematpass.lab.benchmark import malloc
from rematpass.lab.benchmark.job import Job, blank
from rematpass.lab.benchmark.subject import SEED, Gradients, Subject, clear_gradients, first_line, gradients_of, on_cpu
from rematpass.lab.measure.flops import compiled_flops, eager_flops
from rematpass.lab.measure.memory_and_time import (
    StepMemory,
    compile_seconds,
    gradient_error,
    measure_memory,
    run_step,
    seconds_of,
)
from rematpass.lab.models.build import Model
from rematpass.report.measurement import FAILED, INFEASIBLE, Measurement, Strategy
from rematpass.report.summary import Summary
from rematpass.units import format_bytes


class PlanKnown(BaseException):
    """Ends a compilation whose plan is measured elsewhere; not an Exception, on which the partitioner falls back."""


def measure(
    job: Job,
    subject: Subject,
    stage: Callable[[str], None] = lambda _: None,
    is_known: Callable[[str], bool] = lambda _: False,
) -> tuple[Measurement, Callable[[], None] | None]:
    """Apply the job's strategy to the subject's model and measure it; also returns a function that runs one more step.

    The function is None if the strategy fails, which the measurement then records. It is also None if ``is_known``
    accepts the hash of a graph's plan: that compilation is stopped, and the measurement contains the plan only.
    """
    found = blank(job)
    model, strategy = subject.model, job.strategy
    step = partial(run_step, model.step, model.parameters)
    plans(clear=True)
    try:
        with listening(_stop_at(is_known)):
            apply(strategy, model, job.per_block)
            stage("compiling" if strategy.runner != "eager" else "measuring")
            torch.manual_seed(SEED)
            with compiled_flops() as counter:
                compiling = compile_seconds(step, device=job.device, warm=1)
            stage("measuring")
            flops = counter.total if counter.graphs and not job.per_block else None  # a graph runs once for each block
            if strategy.runner == "eager" and subject.flops:
                flops = eager_flops(model.step, model.parameters).step
            memory = measure_memory(model.step, model.parameters, device=job.device, warm=0)
            error, reference = _compare_gradients(job, subject)
            clear_gradients(model)
    except PlanKnown:
        return _with_plan(found, plans()), None
    except Exception as failure:
        return _failed(found, failure), None
    found = replace(
        _with_figures(_with_plan(found, plans()), memory, subject),
        step_flops=flops,
        gradient_error=error,
        gradient_reference=reference,
        compile_seconds=compiling if strategy.runner != "eager" else None,
    )
    return found, step


def apply(strategy: Strategy, model: Model, per_block: bool = False) -> None:
    """Make the model train as the strategy says from its next step on. Torch's budget is set for the whole process.

    Raises:
        MeasureError: the strategy needs blocks and the model has none, or has blocks that cannot be compiled alone.
    """
    if strategy.checkpoint:
        model.checkpoint_blocks()
    how: dict[str, Any] = {}
    if strategy.runner == "inductor":
        functorch_config.activation_memory_budget = float(strategy.budget or 1)
    elif strategy.runner == "remat":
        # The step returns only its loss, so a budget in bytes need not count forward's other outputs.
        holds = strategy.nbytes is None
        how = {"backend": remat, "options": {"memory_budget": strategy.memory_budget, "hold_outputs": holds}}
    if strategy.runner != "eager":
        modules = model.required_blocks if per_block else [model.module]
        if per_block and any(isinstance(block, torch.nn.Sequential) for block in modules):
            raise MeasureError(
                "the blocks are nn.Sequential, which compile() does not compile; make each block a module class"
            )
        for module in modules:
            module.compile(**how)


def _stop_at(is_known: Callable[[str], bool]) -> Callable[[Record], None]:
    def listener(record: Record) -> None:
        if is_known(_emitted_hash(record.summary)):
            raise PlanKnown

    return listener


def _emitted_hash(plan: Summary) -> str:
    """The plan's hash, and what Inductor's code depends on besides the plan.

    It orders and fuses torch's own choice by itself, and may fuse more without a limit (``scheduler_pass``).
    """
    if plan.solver == TORCH:
        return f"{plan.plan_hash}, torch's own"
    return plan.plan_hash if plan.budget_nbytes is not None else f"{plan.plan_hash}, no limit"


def _with_plan(found: Measurement, plans: Sequence[Summary]) -> Measurement:
    """``found`` with the figures of the plans of all graphs; bytes are those of the graph with the most.

    Planned peaks exclude forward's other outputs: the step returns only its loss, so they are freed before backward.
    """
    if not plans:
        return found
    limits = [plan.budget_nbytes for plan in plans if plan.budget_nbytes is not None]
    at_floor = Strategy.parse(found.strategy).fraction == 0  # this plan's peak is the floor according to Inductor
    return replace(
        found,
        budget_nbytes=found.budget_nbytes or max(limits, default=None),
        planned_peak=max(plan.peak_without_outputs for plan in plans),
        floor=max(max(plan.floor, plan.planned_peak if at_floor else 0) for plan in plans),
        ceiling=max(plan.ceiling for plan in plans),
        drops_outputs=any(not plan.holds_outputs for plan in plans),
        plan_hash="+".join(_emitted_hash(plan) for plan in plans),
        planning_seconds=sum(plan.planning_seconds for plan in plans),
        fallback="; ".join(plan.fallback for plan in plans if plan.fallback),
    )


def _with_figures(found: Measurement, memory: StepMemory, subject: Subject) -> Measurement:
    """``found`` with the step's bytes and the eager step's FLOPs."""
    return replace(
        found,
        peak=memory.peak,
        peak_other=memory.peak_other,
        gradients=memory.gradients,
        saved=memory.saved,
        reserved=memory.reserved,
        eager_flops=subject.flops.step if subject.flops else None,
        forward_flops=subject.flops.forward if subject.flops else None,
    )


def _failed(found: Measurement, error: Exception) -> Measurement:
    cause = cause_of(error)
    if isinstance(cause, BudgetInfeasible):
        text = f"the floor is {format_bytes(least_budget(cause.floor, found.device), round_up=True)}"
        return replace(found, status=INFEASIBLE, error=text, floor=cause.floor)
    inner = cause or error
    while (wrapped := getattr(inner, "inner_exception", None)) is not None:
        inner = wrapped
    line = first_line(inner)
    text = line if isinstance(cause, MeasureError) else f"{type(inner).__name__}: {line}"
    return replace(found, status=FAILED, error=text)


def _compare_gradients(job: Job, subject: Subject) -> tuple[float | None, str]:
    """The error of one more step's gradients, and the name of the reference ("eager" or "Inductor").

    Plain Inductor on a model that draws random numbers is the reference itself: it writes its gradients.
    """
    model = subject.model
    if job.strategy.runner == "eager" or not subject.draws_random:
        return _error_against(subject.gradients, model, "eager")
    if job.strategy != Strategy("inductor"):
        if not Path(job.inductor_gradients).is_file():
            return None, ""
        return _error_against(torch.load(job.inductor_gradients), model, "Inductor")
    if job.inductor_gradients:
        torch.manual_seed(SEED)
        run_step(model.step, model.parameters)
        torch.save(on_cpu(gradients_of(model)), job.inductor_gradients)
    return None, "Inductor"


def _error_against(expected: Gradients, model: Model, reference: str) -> tuple[float | None, str]:
    if not expected:
        return None, ""
    torch.manual_seed(SEED)
    run_step(model.step, model.parameters)
    return gradient_error(gradients_of(model), expected), reference


def warm_seconds(step: Callable[[], None], device: str) -> float:
    """Seconds of one step, taken after an untimed step that refills the caches."""
    step()
    taken = seconds_of(step, device)
    release(device)
    return taken


def release(device: str) -> None:
    """Return free memory to the system and the device, for the workers of the other strategies."""
    devices.of(device).empty_cache(torch.device(device))
    malloc.give_back()
