"""The model of a job and its eager step, which gives the gradients and FLOPs that strategies are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rematpass.compiler.devices import random_states
from rematpass.errors import MeasureError, RematError
from rematpass.lab.benchmark.job import Job
from rematpass.lab.measure.flops import Flops, eager_flops
from rematpass.lab.models.build import Model, build, load
from rematpass.lab.models.catalog import MODELS

Gradients = dict[str, torch.Tensor]
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A model and the results of its eager step. ``gradients``: empty if the eager step ran out of memory."""

    model: Model
    gradients: Gradients
    flops: Flops | None
    draws_random: bool


def prepare(job: Job) -> Subject:
    """Build the model and run one eager step, or read the step that another process has saved.

    Raises:
        MeasureError: the model cannot be built, or its step does not train it.
    """
    if job.target in MODELS or ":" not in job.target:
        model = build(job.target, device=job.device, seed=SEED, **job.sizes)
        if Path(job.eager_step).is_file():
            return Subject(model, **torch.load(job.eager_step, weights_only=False))
    else:
        torch.manual_seed(SEED)  # the same weights in all processes
        model = load(job.target)
    torch.manual_seed(SEED)
    seeded = random_states()
    try:
        flops = eager_flops(model.step, model.parameters)
    except torch.OutOfMemoryError:
        clear_gradients(model)
        return Subject(model, {}, None, draws_random=False)
    except RematError:
        raise
    except Exception as error:
        line = first_line(error)
        raise MeasureError(f"the step of {job.target} raised {type(error).__name__}: {line}") from error
    draws = any(not torch.equal(a, b) for a, b in zip(seeded, random_states(), strict=True))
    gradients = on_cpu(gradients_of(model))
    clear_gradients(model)
    return Subject(model, gradients, flops, draws)


def save_eager_step(job: Job, subject: Subject) -> None:
    """Write the eager step of a catalog model to ``job.eager_step``, atomically: other processes may be reading.

    The step of a user's function is not shared: the function may give other weights in each process.
    """
    if job.target not in MODELS:
        return
    file = Path(job.eager_step)
    unfinished = file.with_suffix(".unfinished")
    torch.save({name: known for name, known in vars(subject).items() if name != "model"}, unfinished)
    unfinished.replace(file)


def gradients_of(model: Model) -> Gradients:
    parameters = model.module.named_parameters()
    return {name: p.grad.detach() for name, p in parameters if p.grad is not None}


def on_cpu(gradients: Gradients) -> Gradients:
    """Copies on the CPU, so that they do not count in a measurement of a GPU's memory."""
    return {name: gradient.cpu() for name, gradient in gradients.items()}


def clear_gradients(model: Model) -> None:
    for parameter in model.parameters:
        parameter.grad = None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
