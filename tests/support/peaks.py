"""What the backend would compile for a model under many budgets, and the exact peak of each, by dry runs alone.

``look`` traces a model once, up to AOTAutograd's joint graph. There it runs the real ``RematPartitioner`` under each
budget, and torch's own partitioner; Inductor's dry run gives the exact peak of the modules that each returns. No kernel
is generated and nothing runs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.budget import Budget, BudgetKind
from rematpass.compiler import _torch, backend
from rematpass.compiler.inductor.dry_run import StepDryRun, dry_run_step
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.config import Config
from rematpass.errors import BudgetInfeasible

OWN = {"_pre_fusion_custom_pass": None, "reorder_for_peak_memory": True, "allow_buffer_reuse": True}


@dataclass(frozen=True)
class Choice:
    """What one budget leads to; bytes.

    ``budget``: a fraction, or bytes. ``limit``: the bytes that it stands for, None for no limit. ``peak``: of the
    modules that would be compiled, by a dry run; -1 if the budget is refused, and then ``floor`` is the lowest peak by
    the message. ``planned``: the peak that the summary promises, and whether it is ``exact``. ``seconds``: estimated.
    ``plan``: the digest of the plan. ``error``: an exception other than the refusal.
    """

    budget: float | int
    limit: int | None = None
    peak: int = -1
    planned: int = -1
    exact: bool = False
    seconds: float = 0.0
    plan: str = ""
    floor: int = -1
    error: str = ""

    @property
    def is_fraction(self) -> bool:
        return self.budget <= 1


class Looker:
    """At one joint graph: tries budgets. ``own``: the exact peak of what torch.compile would compile, in bytes."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[object], settings: dict[str, Any], hold: bool) -> None:
        self.gm, self.inputs, self.settings, self.hold = gm, inputs, settings, hold
        with _torch.inductor_config.patch(OWN):
            modules = _torch.default_partition(copy_module(gm), inputs, **settings)
            self.own = self._peak(modules)

    def _peak(self, modules: tuple[fx.GraphModule, fx.GraphModule]) -> int:
        found: StepDryRun = dry_run_step(*modules, num_fwd_outputs=self.settings["num_fwd_outputs"])
        if unknown := found.fwd.unknown + found.bwd.unknown:
            raise ValueError(f"the dry run meets lines of unknown bytes: {unknown}")
        return found.peak_nbytes if self.hold else found.peak_nbytes_without_outputs

    def choose(self, budget: float | int) -> Choice:
        """What the backend would compile under ``budget``."""
        asked = Budget(fraction=budget) if budget <= 1 else Budget(BudgetKind.BYTES, nbytes=int(budget))
        # Torch's own choice is not taken where it repeats decisions, unless that is allowed.
        options = {
            "memory_budget": asked,
            "strict": True,
            "hold_outputs": self.hold,
            "calls": 1,
            "save_decisions": False,
        }
        config = Config.read(options, environ={})
        partitioner = RematPartitioner(config, device=torch.device("cpu"))
        try:
            with _torch.inductor_config.patch(backend.inductor_patches(config)):
                modules = partitioner(copy_module(self.gm), self.inputs, **self.settings)
                peak = self._peak(modules)
                if partitioner.planned is None:
                    return Choice(budget, error="nothing was planned")
                summary = partitioner.planned.summary
        except Exception as error:
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, BudgetInfeasible):
                return Choice(budget, limit=int(budget), floor=cause.floor)
            return Choice(budget, error=f"{type(cause).__name__}: {cause}"[:300])
        return Choice(
            budget,
            limit=summary.budget_nbytes,
            peak=peak,
            planned=summary.planned_peak,
            exact=summary.exact,
            seconds=summary.step_seconds,
            plan=f"{summary.plan_hash} by {summary.solver}",
        )


class _Done(Exception):
    """Ends the compilation."""


def look(module: Callable[..., Any], arguments: Sequence[Any], hold: bool, try_budgets: Callable[[Looker], Any]) -> Any:
    """What ``try_budgets`` returns for the joint graph of ``module(*arguments)``."""
    found: list[Any] = []

    class AtJoint(_torch.CustomPartitionerFn):  # type: ignore[misc]
        def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **settings: Any) -> Any:
            found.append(try_budgets(Looker(gm, joint_inputs, settings, hold)))
            raise _Done

        def uuid(self) -> None:
            return None

    def plan(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        with _torch.functorch_config.patch(enable_autograd_cache=False):
            return _torch.compile_fx(gm, list(example_inputs), config_patches={"custom_partitioner_fn": AtJoint()})

    torch._dynamo.reset()
    with _remembered_dry_runs():
        try:
            torch.compile(module, backend=plan, fullgraph=True)(*arguments)
        except _torch.BackendCompilerFailed as error:
            if not isinstance(error.inner_exception, _Done):
                raise
    torch._dynamo.reset()
    return found[0]


@contextlib.contextmanager
def _remembered_dry_runs() -> Iterator[None]:
    """Inside the ``with``, the same modules under the same settings are dry-run once."""
    known: dict[object, StepDryRun] = {}

    def remembered(fwd: fx.GraphModule, bwd: fx.GraphModule, **more: Any) -> StepDryRun:
        config = _torch.inductor_config
        settings = tuple(repr(getattr(config, name)) for name in OWN if name[0] != "_")
        own_pass = config._pre_fusion_custom_pass
        order = own_pass.uuid() if own_pass is not None else None
        marks = [sorted((str(k), repr(v)[:200]) for k, v in meta.items()) for m in (fwd, bwd) for meta in _metas(m)]
        texts = [f"{m.graph.python_code('self').src}" for m in (fwd, bwd)]
        key = repr((settings, order, marks, texts, sorted(more.items())))
        if key not in known:
            known[key] = _REAL(fwd, bwd, **more)
        return known[key]

    homes = [m for n, m in sys.modules.items() if n.startswith("rematpass.") and hasattr(m, "dry_run_step")]
    homes += [sys.modules[__name__]]
    for home in homes:
        home.dry_run_step = remembered  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for home in homes:
            home.dry_run_step = _REAL  # type: ignore[attr-defined]


def _metas(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where passes leave marks."""
    return module.meta, module.graph.find_nodes(op="output")[0].meta


_REAL = dry_run_step
