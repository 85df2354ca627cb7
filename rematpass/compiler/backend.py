"""The backends that ``torch.compile`` finds by name, and ``enable`` for programs that cannot name one.

``remat`` compiles with Inductor. ``remat_aot_eager`` runs forward and backward op by op, without decompositions or code
generation: its results equal eager mode bit for bit, and its memory is exactly that of the schedule.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch, devices
from rematpass.compiler.inductor import scheduler_pass, settings
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.plan_cache import keeping
from rematpass.compiler.runtime.step_warnings import Compiled, watched
from rematpass.compiler.user_errors import short_traceback
from rematpass.config import OPTIONS, Config, nearest, split_options
from rematpass.errors import ConfigError

log = logging.getLogger("rematpass")


@short_traceback("remat")
def remat(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Compiled:
    """The backend "remat": Inductor under a memory budget.

    ``options`` are those of rematpass (``rematpass.Config``) and of Inductor; ``mode`` is Inductor's.

    Raises:
        ConfigError: neither has an option of that name, or a value is not accepted.
        BudgetInfeasible: no plan stays under a budget in bytes.
        BackendCompilerFailed: inside Dynamo, with one of these as ``inner_exception``.
    """
    ours, theirs = split_options(options)
    config = Config.read(ours)
    patches = {**inductor_patches(config), **(_torch.list_mode_options(mode) if mode else {}), **_checked(theirs)}
    _warn_of_torchs_budget()
    partitioner = RematPartitioner(config, device=device_of(example_inputs))
    patches["custom_partitioner_fn"] = partitioner
    with keeping(partitioner, gm, example_inputs, patches):
        compiled = _torch.compile_fx(gm, list(example_inputs), config_patches=patches)
    return _watched(compiled, partitioner, example_inputs)


@short_traceback("remat_aot_eager")
def remat_aot_eager(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Compiled:
    """The backend "remat_aot_eager": the same plans, run op by op in their order.

    Raises:
        ConfigError: rematpass has no option of that name, a value is not accepted, or a ``mode`` is given.
        BudgetInfeasible: no plan stays under a budget in bytes.
        BackendCompilerFailed: inside Dynamo, with one of these as ``inner_exception``.
    """
    if mode is not None:
        raise ConfigError(f"mode={mode!r} is for Inductor, which remat_aot_eager does not use; leave it out")
    partitioner = RematPartitioner(Config.read(options), fuse=False, device=device_of(example_inputs))
    backend = _torch.aot_autograd(
        fw_compiler=_torch.boxed_nop, partition_fn=partitioner, keep_inference_input_mutations=True
    )
    return _watched(backend(gm, list(example_inputs)), partitioner, example_inputs)


class enable:  # noqa: N801  (reads as a verb: rematpass.enable(...))
    """Make every ``torch.compile`` with Inductor in this process plan like the backend "remat".

    A call holds until ``disable()``; as a context manager, until the block ends. The keywords are the options of the
    backend; those not given come from the environment::

        rematpass.enable(memory_budget="8GiB")

        with rematpass.enable(memory_budget=0.3):
            model(batch).backward()     # compiled under the budget

    Raises:
        ConfigError: rematpass has no option of that name, or a value is not accepted.
    """

    def __init__(self, **options: object) -> None:
        config = Config.read(options)
        if config.check:
            log.warning('REMAT_CHECK measures only steps of backend="remat"; it does nothing under enable() and run')
        partitioner = RematPartitioner(config, plan_anew=bool(config.report_dir))
        ours = {"custom_partitioner_fn": partitioner, **inductor_patches(config)}
        self._before = {name: getattr(_torch.inductor_config, name) for name in ours}
        self._set(ours)

    def disable(self) -> None:
        """Restore the partitioner and the settings from before."""
        self._set(self._before)

    def _set(self, settings: Mapping[str, object]) -> None:
        for name, value in settings.items():
            setattr(_torch.inductor_config, name, value)

    def __enter__(self) -> enable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()


def _watched(compiled: Compiled, partitioner: RematPartitioner, example_inputs: Sequence[Any]) -> Compiled:
    calls, device = partitioner.calls, partitioner.device
    return watched(
        compiled, example_inputs, partitioner.config, lambda: partitioner.planned, calls=calls, device=device
    )


def inductor_patches(config: Config) -> dict[str, Any]:
    """Inductor's settings that make it obey a plan. Without a budget, it may still merge many loops into one call."""
    return scheduler_pass.config_patches(split=not config.memory_budget.is_unlimited, strict=config.strict)


def _checked(options: Mapping[str, object]) -> dict[str, object]:
    """Inductor's options, unchanged; raises ConfigError if Inductor has none of that name."""
    known = settings.option_names()
    for name in options:
        if name == "custom_partitioner_fn":
            raise ConfigError("the backend remat sets custom_partitioner_fn itself; leave it out")
        if name.replace("-", "_") not in known:
            meant = nearest(name, [*OPTIONS, *known])
            hint = f"; did you mean {meant}?" if meant else ""
            raise ConfigError(f"neither rematpass nor Inductor has an option {name!r}{hint}")
    return dict(options)


def _warn_of_torchs_budget() -> None:
    budget = _torch.functorch_config.activation_memory_budget
    if budget != 1:
        log.warning(
            "torch's activation_memory_budget=%s has no effect with this backend; set memory_budget or "
            "REMAT_MEMORY_BUDGET (their fractions have another scale: floor + fraction x (ceiling - floor))",
            budget,
        )


def device_of(example_inputs: Sequence[Any]) -> torch.device:
    """The device of the first input that is not on the CPU; without one, the CPU."""
    return devices.accelerator_among(t.device for t in example_inputs if isinstance(t, torch.Tensor))
