"""The backends that ``torch.compile`` finds by name, and ``enable`` for programs that cannot name one.

``remat`` compiles with Inductor. ``remat_aot_eager`` runs the same partition as it is, op by op, without
decompositions or code generation: its results equal eager mode's bit for bit, and its memory is the schedule's own.
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
from rematpass.config import OPTIONS, Config, nearest, split_options
from rematpass.errors import ConfigError

log = logging.getLogger("rematpass")


def remat(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Compiled:
    """The backend "remat": Inductor under a memory budget.

    ``options`` are rematpass' own (``rematpass.Config``) and Inductor's; ``mode`` is Inductor's.

    Raises:
        ConfigError: an option that neither knows, or a value that is not accepted.
    """
    ours, theirs = split_options(options)
    config = Config.read(ours)
    patches = {**inductor_patches(config), **(_torch.list_mode_options(mode) if mode else {}), **_checked(theirs)}
    _warn_of_the_other_budget()
    partitioner = RematPartitioner(config, device=device_of(example_inputs))
    patches["custom_partitioner_fn"] = partitioner
    with keeping(partitioner, gm, example_inputs, patches):
        compiled = _torch.compile_fx(gm, list(example_inputs), config_patches=patches)
    return _watched(compiled, partitioner, example_inputs)


def remat_aot_eager(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, object] | None = None,
) -> Compiled:
    """The backend "remat_aot_eager": the same plans, run op by op in their order.

    Raises:
        ConfigError: an option that rematpass does not know, a value that is not accepted, or a ``mode``.
    """
    if mode is not None:
        raise ConfigError(f"mode={mode!r} is for Inductor, which remat_aot_eager does not use; leave it out")
    partitioner = RematPartitioner(Config.read(options), fuse=False, device=device_of(example_inputs))
    backend = _torch.aot_autograd(
        fw_compiler=_torch.boxed_nop, partition_fn=partitioner, keep_inference_input_mutations=True
    )
    return _watched(backend(gm, list(example_inputs)), partitioner, example_inputs)


class enable:  # noqa: N801  (read as a verb: rematpass.enable(...))
    """Make every ``torch.compile`` with Inductor in this process plan like the backend "remat".

    Called, it holds until ``disable()``; as a context manager, until the block ends. The keywords are the options of
    the backend; without any, the environment decides::

        rematpass.enable(memory_budget="8GiB")

        with rematpass.enable(memory_budget=0.3):
            model(batch).backward()     # compiled in here: under the budget

    Raises:
        ConfigError: an option that rematpass does not know, or a value that is not accepted.
    """

    def __init__(self, **options: object) -> None:
        config = Config.read(options)
        if config.check:
            log.warning('REMAT_CHECK measures steps of backend="remat" only; under enable() and run it does nothing')
        partitioner = RematPartitioner(config, plan_anew=bool(config.report_dir))
        ours = {"custom_partitioner_fn": partitioner, **inductor_patches(config)}
        self._before = {name: getattr(_torch.inductor_config, name) for name in ours}
        self._set(ours)

    def disable(self) -> None:
        """Go back to the partitioner that was set before."""
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
    """What makes Inductor keep to a plan. Without a budget it may still write many loops into one call on the CPU."""
    return scheduler_pass.config_patches(split=not config.memory_budget.is_unlimited, strict=config.strict)


def _checked(options: Mapping[str, object]) -> dict[str, object]:
    """Inductor's options as they are, refused where Inductor has none of that name."""
    known = settings.option_names()
    for name in options:
        if name == "custom_partitioner_fn":
            raise ConfigError("custom_partitioner_fn is what the backend remat sets itself; leave it out")
        if name.replace("-", "_") not in known:
            meant = nearest(name, [*OPTIONS, *known])
            hint = f"; did you mean {meant}?" if meant else ""
            raise ConfigError(f"neither rematpass nor Inductor has an option {name!r}{hint}")
    return dict(options)


def _warn_of_the_other_budget() -> None:
    other = _torch.functorch_config.activation_memory_budget
    if other != 1:
        log.warning(
            "torch's activation_memory_budget=%s has no effect with this backend; set memory_budget or "
            "REMAT_MEMORY_BUDGET (whose fractions are of another scale: floor + f x (ceiling - floor))",
            other,
        )


def device_of(example_inputs: Sequence[Any]) -> torch.device:
    """The first device among the inputs that is not the CPU."""
    return devices.accelerator_among(t.device for t in example_inputs if isinstance(t, torch.Tensor))
