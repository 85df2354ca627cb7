"""The partition function that Inductor calls: capture, rewrite, plan, select, emit; and the fallbacks.

A bug in the planner must not abort training, and a budget must not be exceeded silently. If planning fails under a
budget in bytes, everything is recomputed; under a fraction, or if that fails too, torch's own partitioner takes over.
Both are logged once, with the reason. ``REMAT_STRICT=1`` raises instead. User errors never cause a fallback.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from rematpass.budget import BudgetKind
from rematpass.compiler import _torch, devices, planned
from rematpass.compiler.auto_budget import free_bytes
from rematpass.compiler.capture import compile_context
from rematpass.compiler.capture.call_count import calls_in_a_step, inputs_in_all, same_in_all
from rematpass.compiler.capture.discrete_ops import keep_decisions
from rematpass.compiler.capture.functional import check_functional
from rematpass.compiler.capture.joint_graph import Captured, capture
from rematpass.compiler.capture.pure_ops import allow_pure_ops
from rematpass.compiler.default_partition import Joint, Modules, default_partitions
from rematpass.compiler.graph_passes.pipeline import rewrite_joint
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.planned import Record
from rematpass.compiler.planner import Planner
from rematpass.compiler.source_hash import sources_hash
from rematpass.compiler.user_errors import USER_ERRORS, short_traceback
from rematpass.config import Config
from rematpass.core import frontier, hardware
from rematpass.core.op import Side
from rematpass.errors import RematError

log = logging.getLogger("rematpass")


class RematPartitioner(_torch.CustomPartitionerFn):  # type: ignore[misc]
    """The partition function, for Inductor's ``custom_partitioner_fn`` and for AOTAutograd's ``partition_fn``.

    ``fuse``: whether a fusing compiler compiles the modules. ``device``: the device whose free bytes the budget "auto"
    asks for; None for the current one when a graph is compiled (asking earlier would claim a GPU before a rank has
    chosen its own). ``compare``: also find out what torch's partitioner would save. ``plan_anew``: never take a plan of
    another process from a cache. ``planned``: the record of the last planned graph.
    """

    def __init__(
        self,
        config: Config,
        *,
        fuse: bool = True,
        device: torch.device | None = None,
        compare: bool = False,
        plan_anew: bool = False,
    ) -> None:
        self._compares = compare or bool(config.report_dir)
        self.planned: Record | None = None
        self._nonce = os.urandom(16).hex() if plan_anew else ""
        self.config, self.fuse, self._device = config, fuse, device
        # An unknown name raises here, not in the middle of a compilation.
        self._preset = hardware.preset(config.hardware) if config.hardware else None
        self._free: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All that can change a plan: Inductor's cache key contains the pickled partitioner, besides the ``uuid``."""
        budget = dataclasses.replace(self.config.memory_budget, given="")
        config = dataclasses.replace(self.config, memory_budget=budget, report_dir="")
        state = {"fuse": self.fuse, "_device": self._device, "_nonce": self._nonce, "_preset": str(self._preset)}
        return {"config": config, **state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"], fuse=state["fuse"], device=state["_device"])  # type: ignore[misc]

    @property
    def device(self) -> torch.device:
        return self._device or devices.current()

    @property
    def _is_given(self) -> bool:
        """Whether the user has given a budget: then the plan is told whatever the level of the log."""
        return bool(self.config.memory_budget.given)

    @property
    def calls(self) -> int:
        """How often a step calls the code being compiled, as far as that is known."""
        return self.config.calls or calls_in_a_step()

    def uuid(self) -> bytes:
        """A hash of all that can change a plan, for the keys of Inductor's and AOTAutograd's caches."""
        return self.key(sources_hash())

    def key(self, sources: str) -> bytes:
        """A hash of all that can change a plan, with ``sources`` as the hash of the planner's own sources."""
        free = ""
        if self.config.memory_budget.kind is BudgetKind.AUTO:
            self._free = free_bytes(self.device)
            free = str(self._free)
        kind = devices.of(self.device)
        # Without a limit, a plan is stored beside the compiled graph only if it is told (``plan_cache``).
        told = not self.config.memory_budget.is_unlimited or self._compares or planned.is_told(self._is_given)
        settings = [self.config.key(), free, self.fuse, self.calls, told, kind.name(self.device), torch.__version__]
        text = "\n".join(map(str, [sources, *settings]))
        text += f"{self._preset}{self._nonce}" + " ".join(kind.library_settings())
        return hashlib.sha256(text.encode()).digest()

    def __call__(
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Modules:
        """Forward and backward module of the joint module ``gm``.

        Raises:
            BudgetInfeasible: no plan stays under a byte budget (on a first compilation, or in strict mode).
            ContradictoryMarks: the user's marks leave no plan.
            ConfigError: the budgets of annotated regions contradict each other.
            BackendCompilerFailed: inside Dynamo, with one of these as ``inner_exception``.
        """
        kwargs.update(num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=static_lifetime_input_indices)
        joint = Joint(gm, joint_inputs, kwargs)
        try:
            # Python's cycle collector would take a quarter of planning, and a tenth of the dry runs.
            with frontier.without_collection(), short_traceback("remat" if self.fuse else "remat_aot_eager"):
                return self._partition(joint)
        finally:
            workspace.empty_caches()

    def _partition(self, joint: Joint) -> Modules:
        try:
            check_functional(joint.module.graph)
            module = copy_module(joint.module)  # torch's own partitioner gets the original graph
            rewrite_joint(module)
            captured = self._capture(module, joint)
        except Exception as error:
            return self._use_default(joint, error)
        if Side.BACKWARD not in captured.graph.sides:
            return joint.default_partition()
        try:
            return self._plan(captured, joint)
        except Exception as error:
            return self._fall_back(captured, joint, error)

    def _plan(self, captured: Captured, joint: Joint) -> Modules:
        """The modules of the plan that the budget selects; torch's own choice is one to select from."""
        takes_default = self.fuse and self.config.solver == "ladder"
        defaults = default_partitions(captured, joint) if takes_default or self._compares else ()
        modules, record = self._planner.plan(captured, self.config.solver, defaults)
        return self._publish(modules, record)

    def _publish(self, modules: Modules, record: Record) -> Modules:
        self.planned = record
        planned.publish(record, always=self._is_given, report_dir=self.config.report_dir)
        return modules

    @property
    def _planner(self) -> Planner:
        return Planner(self.config, self.fuse, self._preset, self.device, self._free)

    def _capture(self, module: fx.GraphModule, joint: Joint) -> Captured:
        """The graph of ``module``, rewritten from ``joint``, with all that is known of the step around it."""
        of_region = compile_context.region_calls()
        captured = capture(
            module,
            num_fwd_outputs=joint.settings["num_fwd_outputs"],
            # torch does not say which inputs of a region are parameters.
            static_input_indices=joint.settings["static_lifetime_input_indices"] or inputs_in_all(of_region),
            shared_input_indices=same_in_all(of_region) if len(of_region) > 1 else None,
            fuse=self.fuse,
        )
        graph = dataclasses.replace(
            captured.graph,
            name=_graph_name(is_region=not joint.inputs),
            holds_outputs=self.config.hold_outputs,
            calls=max(1, len(of_region)) * self.calls,
        )
        captured = allow_pure_ops(dataclasses.replace(captured, graph=graph), self.config.pure_ops)
        return keep_decisions(captured, fuse=self.fuse) if self.config.save_decisions else captured

    def _fall_back(self, captured: Captured, joint: Joint, error: Exception) -> Modules:
        """``recompute_all`` under a byte budget, else torch's own partitioner; raises what ``_use_default`` raises."""
        if self.config.strict or isinstance(error, USER_ERRORS):
            raise error
        if self.config.memory_budget.kind is not BudgetKind.FRACTION and self.config.solver != "recompute_all":
            reason = f"{type(error).__name__}: {error}"
            try:
                modules, record = self._planner.plan(captured, "recompute_all", fallback=reason)
                self._publish(modules, record)
            except Exception as second:
                log.debug("recompute_all failed as well", exc_info=second)
            else:
                log.warning("planning failed (%s); all that can be recomputed is recomputed instead", reason)
                return modules
        return self._use_default(joint, error)

    def _use_default(self, joint: Joint, error: Exception) -> Modules:
        """The modules of torch's own partitioner; raises user errors, and all errors in strict mode."""
        if self.config.strict or isinstance(error, USER_ERRORS):
            raise error
        not_held = "" if self.config.memory_budget.is_unlimited else " The memory budget is NOT held for this graph."
        log.warning(
            "planning failed (%s: %s); torch's own partitioner takes over.%s REMAT_STRICT=1 raises instead",
            type(error).__name__, error, not_held, exc_info=not isinstance(error, RematError),
        )  # fmt: skip
        return joint.default_partition()


def _graph_name(*, is_region: bool) -> str:
    """``is_region``: a region that is compiled once for all its calls; AOTAutograd passes no inputs for it."""
    return f"graph {compile_context.compile_id()}".strip() + (", a region" if is_region else "")
