"""One strategy on one model, in the process that calls: everything that is measured of it but its seconds.

The model is built and trained one step in eager mode first, which gives the gradients and FLOPs that the strategy is
compared with. A model that draws random numbers (dropout) draws others when it is compiled, on the CPU even with
``fallback_random``; there a compiled strategy is compared with plain Inductor under the same seed, whose numbers all
of them draw. Compile seconds are cold if the process was given a cache in which nothing but ``warm_up`` was compiled:
that finds out what the machine's compiler can do, once for all.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rematpass.compiler import partitioner
from rematpass.compiler._torch import functorch_config
from rematpass.compiler.backend import remat
from rematpass.compiler.ops.device import device_name, how_cudnn_chooses
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.source_hash import behavior_hash
from rematpass.config import Config
from rematpass.core.frontier import least_budget
from rematpass.errors import BudgetInfeasible, MeasureError, RematError, cause_of
from rematpass.lab.benchmark import malloc
from rematpass.lab.measure.flops import Flops, compiled_flops, eager_flops
from rematpass.lab.measure.memory_and_time import compile_seconds, gradient_error, measure_memory, run_step, seconds_of
from rematpass.lab.models import build
from rematpass.lab.models.build import Model
from rematpass.lab.models.catalog import MODELS
from rematpass.report.measurement import FAILED, INFEASIBLE, PER_BLOCK, Measurement, Strategy
from rematpass.report.summary import Summary
from rematpass.units import format_bytes

Gradients = dict[str, torch.Tensor]
SEED = 0
_ONLY_CHOOSE = ("core/solve/", "core/frontier.py", "core/hardware.py")  # sources without a say in what a plan becomes


@dataclass(frozen=True)
class Job:
    """What to measure. ``target``: a model of the catalog or package.module:function; ``sizes``: of the former;
    ``per_block``: whether each of its blocks is compiled by itself, and nothing else of it.

    ``eager_step``: a file for what ``keep`` writes of a model of the catalog, which every process builds alike;
    ``inductor_gradients``: one for plain Inductor's gradients, written by it and read by the other compiled ones.
    """

    target: str
    strategy: Strategy
    device: str = "cpu"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    per_block: bool = False
    eager_step: str = ""
    inductor_gradients: str = ""


@dataclass(frozen=True)
class Subject:
    """The model of a job and what its eager step is like. ``gradients``: empty if that ran out of memory."""

    model: Model
    gradients: Gradients
    flops: Flops | None
    draws_random: bool


class PlanKnown(BaseException):
    """Ends a compilation whose plan another measures; not an Exception, which the partitioner would fall back on."""


def look(job: Job) -> Subject:
    """Build the model and train it one eager step, unless another process has done that and kept what it is like.

    Raises:
        MeasureError: it cannot be built, or its step does not train it; the message says which.
    """
    if job.target in MODELS or ":" not in job.target:
        model = build.build(job.target, device=job.device, seed=SEED, **job.sizes)
        if Path(job.eager_step).is_file():
            return Subject(model, **torch.load(job.eager_step, weights_only=False))
    else:
        torch.manual_seed(SEED)  # so that all processes have the same weights
        model = build.load(job.target)
    torch.manual_seed(SEED)
    seeded = _random_state()
    try:
        flops = eager_flops(model.step, model.parameters)
    except torch.OutOfMemoryError:
        _clear(model)
        return Subject(model, {}, None, draws_random=False)
    except RematError:
        raise
    except Exception as error:
        raise MeasureError(f"the step of {job.target} raised {type(error).__name__}: {_line(error)}") from error
    draws = any(not torch.equal(a, b) for a, b in zip(seeded, _random_state(), strict=True))
    gradients = _moved_away(_gradients(model))
    _clear(model)
    return Subject(model, gradients, flops, draws)


def keep(job: Job, subject: Subject) -> None:
    """Write what is known of a catalog model's eager step, all at once: another process may look meanwhile."""
    if job.target not in MODELS:
        return  # nobody would read it
    file = Path(job.eager_step)
    unfinished = file.with_suffix(".unfinished")
    torch.save({name: known for name, known in vars(subject).items() if name != "model"}, unfinished)
    unfinished.replace(file)


def measure(
    job: Job,
    subject: Subject,
    stage: Callable[[str], None] = lambda _: None,
    is_known: Callable[[str], bool] = lambda _: False,
) -> tuple[Measurement, Callable[[], None] | None]:
    """Measure the job's strategy on its model, which is changed by it; and a function that runs one more step.

    A strategy that fails gives a Measurement that says so, and None. So does, but for the failure, one with a graph
    whose plan ``is_known`` by its hash: nothing is compiled then, and nothing but the plan is told.
    """
    found = blank(job)
    model, strategy = subject.model, job.strategy
    step = partial(run_step, model.step, model.parameters)
    partitioner.plans(clear=True)
    partitioner.listeners[:] = [_stop_at(is_known)]
    try:
        apply(strategy, model, job.per_block)
        stage("compiling" if strategy.runner != "eager" else "measuring")
        torch.manual_seed(SEED)
        with compiled_flops() as counter:
            taken = compile_seconds(step, device=job.device, warm=1)
        stage("measuring")
        flops = counter.total if counter.graphs and not job.per_block else None  # a graph runs once for each block
        if strategy.runner == "eager" and subject.flops:
            flops = eager_flops(model.step, model.parameters).step
        memory = measure_memory(model.step, model.parameters, device=job.device, warm=0)
        off, reference = _compare(job, subject)
        _clear(model)
    except PlanKnown:
        return _with_plan(found, partitioner.plans()), None
    except Exception as error:
        return _failed(found, error), None
    found = replace(
        _with_plan(found, partitioner.plans()),
        peak=memory.peak,
        peak_other=memory.peak_other,
        gradients=memory.gradients,
        saved=memory.saved,
        reserved=memory.reserved,
        step_flops=flops,
        eager_flops=subject.flops.step if subject.flops else None,
        forward_flops=subject.flops.forward if subject.flops else None,
        gradient_error=off,
        gradient_reference=reference,
        compile_seconds=taken if strategy.runner != "eager" else None,
    )
    return found, step


def apply(strategy: Strategy, model: Model, per_block: bool = False) -> None:
    """Make the model train as the strategy says, from its next step on. Torch's budget is set for the whole process.

    Raises:
        MeasureError: blocks are to be checkpointed or compiled one by one, and there are none, or none that can be.
    """
    if strategy.checkpoint:
        model.checkpoint_blocks()
    how: dict[str, Any] = {}
    if strategy.runner == "inductor":
        functorch_config.activation_memory_budget = float(strategy.budget or 1)
    elif strategy.runner == "remat":
        # Whoever gives bytes knows the step: this one returns its loss and nothing else.
        holds = strategy.nbytes is None
        how = {"backend": remat, "options": {"memory_budget": strategy.budget, "hold_outputs": holds}}
    if strategy.runner != "eager":
        modules = model.some_blocks if per_block else [model.module]
        if per_block and any(isinstance(block, torch.nn.Sequential) for block in modules):
            why = "the blocks are nn.Sequential, which compile() leaves as it is; make them modules of a class"
            raise MeasureError(why)
        for module in modules:
            module.compile(**how)


def blank(job: Job) -> Measurement:
    """The measurement of a job before anything is measured: what its key is made of."""
    device = build.usable(job.device)
    name = job.target + "".join(f",{k}={v}" for k, v in sorted(job.sizes.items())) + PER_BLOCK * job.per_block
    source, carrier = ("", "") if job.strategy.is_peer else (source_hash(device), carrier_hash(device))
    return Measurement(
        model=name,
        strategy=job.strategy.name,
        device=device_label(device),
        torch=str(torch.__version__),
        source=source,
        carrier=carrier,
        budget_nbytes=job.strategy.nbytes,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    )


def source_hash(device: torch.device) -> str:
    """Which planner this is: every source file that has a say in a plan, the settings but the budget, and torch."""
    return RematPartitioner(Config.read({"memory_budget": 1}), device=device).key(behavior_hash()).hex()[:12]


def carrier_hash(device: torch.device) -> str:
    """What carries a plan out: the sources and settings behind ``source_hash``, but for what only chooses a plan."""
    said = [behavior_hash(but=_ONLY_CHOOSE), Config.read({"memory_budget": 1}).key()]
    if device.type == "cuda":
        said += how_cudnn_chooses()
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def device_label(device: torch.device) -> str:
    """The device as results name it: "NVIDIA H200", or "cpu, 2 threads"."""
    name = device_name(device)
    threads = torch.get_num_threads()
    return name if device.type == "cuda" else f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _stop_at(is_known: Callable[[str], bool]) -> Callable[[partitioner.Record], None]:
    def listener(record: partitioner.Record) -> None:
        if is_known(_carried_out(record.summary)):
            raise PlanKnown

    return listener


def _carried_out(plan: Summary) -> str:
    """The plan's hash, and whether it has a limit: where it has none, more is fused (``order.config_patches``)."""
    return plan.plan_hash if plan.budget_nbytes is not None else f"{plan.plan_hash}, no limit"


def _with_plan(found: Measurement, plans: Sequence[Summary]) -> Measurement:
    """What the plans of all graphs say; of several, the largest peak.

    A step returns its loss and nothing else, so what else forward has handed out is gone when backward starts.
    """
    if not plans:
        return found
    limits = [plan.budget_nbytes for plan in plans if plan.budget_nbytes is not None]
    at_floor = Strategy.parse(found.strategy).fraction == 0  # what was planned there is the floor, by Inductor's word
    return replace(
        found,
        budget_nbytes=found.budget_nbytes or max(limits, default=None),
        planned_peak=max(plan.peak_without_outputs for plan in plans),
        floor=max(max(plan.floor, plan.planned_peak if at_floor else 0) for plan in plans),
        ceiling=max(plan.ceiling for plan in plans),
        drops_outputs=any(not plan.holds_outputs for plan in plans),
        plan_hash="+".join(_carried_out(plan) for plan in plans),
        planning_seconds=sum(plan.planning_seconds for plan in plans),
        fallback="; ".join(plan.fallback for plan in plans if plan.fallback),
    )


def _failed(found: Measurement, error: Exception) -> Measurement:
    cause = cause_of(error)
    if isinstance(cause, BudgetInfeasible):
        text = f"the floor is {format_bytes(least_budget(cause.floor, found.device), round_up=True)}"
        return replace(found, status=INFEASIBLE, error=text, floor=cause.floor)
    inner = cause or error
    while (behind := getattr(inner, "inner_exception", None)) is not None:
        inner = behind
    text = _line(inner) if isinstance(cause, MeasureError) else f"{type(inner).__name__}: {_line(inner)}"
    return replace(found, status=FAILED, error=text)


def _compare(job: Job, subject: Subject) -> tuple[float | None, str]:
    """How far the gradients of one more step are from those they should equal, and whose those are."""
    model = subject.model
    if job.strategy.runner == "eager" or not subject.draws_random:
        return _against(subject.gradients, model, "eager")
    if job.strategy != Strategy("inductor"):
        if not Path(job.inductor_gradients).is_file():
            return None, ""
        return _against(torch.load(job.inductor_gradients), model, "Inductor")
    if job.inductor_gradients:
        torch.manual_seed(SEED)
        run_step(model.step, model.parameters)
        torch.save(_moved_away(_gradients(model)), job.inductor_gradients)
    return None, "Inductor"


def _against(expected: Gradients, model: Model, whose: str) -> tuple[float | None, str]:
    if not expected:
        return None, ""
    torch.manual_seed(SEED)
    run_step(model.step, model.parameters)
    return gradient_error(_gradients(model), expected), whose


def _gradients(model: Model) -> Gradients:
    parameters = model.module.named_parameters()
    return {name: p.grad.detach() for name, p in parameters if p.grad is not None}


def _moved_away(gradients: Gradients) -> Gradients:
    """Copies on the CPU: a GPU's memory is what is measured next."""
    return {name: gradient.cpu() for name, gradient in gradients.items()}


def _clear(model: Model) -> None:
    for parameter in model.parameters:
        parameter.grad = None


def _random_state() -> list[torch.Tensor]:
    """The states of the generators; a step that draws a number changes one of them."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _line(error: BaseException) -> str:
    """An error's message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def warm_up(device: str) -> None:
    """Compile something small, so that Inductor's cache holds what it finds out about the machine."""
    weight = torch.ones(64, 64, device=build.usable(device), requires_grad=True)
    torch.compile(lambda w: (w.sin() @ w).sum())(weight).backward()


def warm_seconds(step: Callable[[], None], device: str) -> float:
    """Seconds of one step, after one that is not timed and brings everything back into caches."""
    step()
    taken = seconds_of(step, device)
    release(device)
    return taken


def release(device: str) -> None:
    """Give memory back while others take their turn: strategies wait in processes of their own."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
    malloc.give_back()
