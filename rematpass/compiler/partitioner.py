"""The partition function that Inductor calls: capture, rewrite, plan, select, emit; and the fallbacks.

A bug in the planner must not abort training, and a budget must not be exceeded silently. If planning fails under a
budget in bytes, everything is recomputed; under a fraction, or if that fails too, torch's own partitioner takes over.
Both are logged once, with the reason. ``REMAT_STRICT=1`` raises instead. User errors never cause a fallback.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.budget import Budget, BudgetKind
from rematpass.compiler import _torch, devices, planned
from rematpass.compiler.auto_budget import auto_budget, free_bytes
from rematpass.compiler.capture import compile_context
from rematpass.compiler.capture.annotations import region_budget, within_region
from rematpass.compiler.capture.call_count import calls_in_a_step, inputs_in_all, same_in_all
from rematpass.compiler.capture.discrete_ops import keep_decisions
from rematpass.compiler.capture.joint_graph import Captured, capture
from rematpass.compiler.capture.measured_cost import measured
from rematpass.compiler.default_partition import saved_by_torch
from rematpass.compiler.graph_passes.pipeline import rewrite_joint
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.planned import Record
from rematpass.compiler.select_plan import Candidate, Candidates
from rematpass.compiler.source_hash import sources_hash
from rematpass.compiler.user_errors import USER_ERRORS, short_traceback
from rematpass.config import Config
from rematpass.core import frontier, hardware
from rematpass.core.cost import estimate
from rematpass.core.frontier import Ladder, Selection
from rematpass.core.graph import JointGraph
from rematpass.core.op import Origin, Side
from rematpass.core.solve.bound import least_seconds
from rematpass.core.solve.problem import Problem
from rematpass.errors import BudgetInfeasible, RematError
from rematpass.report.summary import infeasible, summarize
from rematpass.units import format_bytes

log = logging.getLogger("rematpass")

Modules = tuple[fx.GraphModule, fx.GraphModule]  # forward and backward


@dataclass(frozen=True)
class Joint:
    """What AOTAutograd passes to a partition function. ``settings``: the keyword arguments."""

    module: fx.GraphModule
    inputs: Sequence[object]
    settings: dict[str, Any]

    def default_partition(self) -> Modules:
        """The modules of torch's own partitioner."""
        return _torch.default_partition(self.module, self.inputs, **self.settings)  # type: ignore[no-any-return]


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
        self.compare = compare or bool(config.report_dir)
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
        settings = [self.config.key(), free, self.fuse, self.calls, kind.name(self.device), torch.__version__]
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
            module = copy_module(joint.module)  # torch's own partitioner gets the original graph
            rewrite_joint(module)
            captured = self._capture(module, joint)
        except Exception as error:
            return self._use_default(joint, error)
        if Side.BACKWARD not in captured.graph.sides:
            return joint.default_partition()
        by_torch = saved_by_torch(captured, joint.inputs, joint.settings) if self.compare else None
        try:
            return self._plan(captured, self.config.solver, by_torch=by_torch)
        except Exception as error:
            return self._fall_back(captured, joint, error)

    def _plan(
        self, captured: Captured, solver: str, *, fallback: str = "", by_torch: frozenset[int] | None = None
    ) -> Modules:
        """Plan, select, emit. ``fallback``: why the first attempt failed, if this is the second."""
        start = time.perf_counter()
        budget = self._budget(captured.graph)
        problem = self._problem(captured, is_fallback=bool(fallback))
        ladder = frontier.build(problem, solver)
        budget = within_region(budget, region_budget(captured), ladder, captured.graph.device)
        candidates = Candidates(captured, fuse=self.fuse)  # emits and rewrites the modules
        selection = self._select(problem, ladder, candidates, budget)
        chosen, limit = selection.candidate, selection.limit
        # The simulated peak may be above the limit, which is about exact peaks; the bound has to allow the higher one.
        bound = 0.0 if fallback else least_seconds(problem, limit and max(limit, chosen.rung.peak))
        summary = summarize(
            captured.graph,
            ladder,
            chosen.rung,
            budget=budget,
            limit=limit,
            peaks=(chosen.peak, chosen.peak_without_outputs),
            exact=chosen.exact,
            planning_seconds=time.perf_counter() - start - candidates.dry_run_seconds,
            dry_run_seconds=candidates.dry_run_seconds,
            plan_hash=chosen.rung.plan.digest,
            fallback=fallback,
            bound_seconds=bound,
        )
        preset = self._hardware(captured.graph).name
        self.planned = Record(summary, dataclasses.replace(problem), ladder, chosen.rung, preset, by_torch)
        planned.publish(self.planned, always=bool(self.config.memory_budget.given), report_dir=self.config.report_dir)
        return chosen.modules

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
        captured = dataclasses.replace(captured, graph=graph)
        return keep_decisions(captured, fuse=self.fuse) if self.config.save_decisions else captured

    def _hardware(self, graph: JointGraph) -> hardware.Hardware:
        return self._preset or hardware.for_device(graph.device)

    def _problem(self, captured: Captured, *, is_fallback: bool) -> Problem:
        """What the solvers get; a fallback has no time limit, and measures nothing."""
        limit = None if is_fallback else self.config.planning_seconds
        deadline = math.inf if limit is None else time.monotonic() + limit
        costs = estimate(captured.graph, self._hardware(captured.graph))
        if self.config.cost == "measure" and not is_fallback:
            costs = measured(captured, costs, self.device)
        return Problem(captured.graph, costs, self.fuse, self.config.max_recompute, deadline)

    def _budget(self, graph: JointGraph) -> Budget:
        """The budget, with "auto" resolved to bytes."""
        budget = self.config.memory_budget
        if budget.kind is not BudgetKind.AUTO:
            return budget
        free = free_bytes(self.device) if self._free is None else self._free
        each = sum(v.nbytes for v in graph.values if v.origin is Origin.STATIC and "float" in v.dtype)
        gradients_of_others = (graph.calls - 1) * each  # a plan counts the gradients of one call only
        nbytes = auto_budget(free - gradients_of_others, graph.calls * each, self.config.auto_reserve)
        return dataclasses.replace(budget, kind=BudgetKind.BYTES, nbytes=nbytes)

    def _select(self, problem: Problem, ladder: Ladder, candidates: Candidates, budget: Budget) -> Selection[Candidate]:
        """The fastest candidate within the budget.

        Raises:
            BudgetInfeasible: there is none, and this is the first compilation of the code, or strict mode.
        """
        if budget.kind is BudgetKind.BYTES and not budget.is_unlimited:
            planned.shared_budget_warning.check(budget)
        device = problem.graph.device
        selection = frontier.select(ladder, budget, device, candidates.of)
        if selection.fits:
            return selection
        floor = selection.candidate
        message = infeasible(problem, floor.rung, floor.peak, budget.nbytes)
        if self.config.strict or not compile_context.is_recompile():
            raise BudgetInfeasible(message, budget=budget.nbytes, floor=floor.peak)
        excess = format_bytes(frontier.least_budget(floor.peak, device) - budget.nbytes)
        log.warning(
            "over budget by %s after a recompile for other shapes; training continues at the floor. %s", excess, message
        )
        return selection

    def _fall_back(self, captured: Captured, joint: Joint, error: Exception) -> Modules:
        """``recompute_all`` under a byte budget, else torch's own partitioner; raises what ``_use_default`` raises."""
        if self.config.strict or isinstance(error, USER_ERRORS):
            raise error
        if self.config.memory_budget.kind is not BudgetKind.FRACTION and self.config.solver != "recompute_all":
            reason = f"{type(error).__name__}: {error}"
            try:
                modules = self._plan(captured, "recompute_all", fallback=reason)
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
