"""What Inductor calls with the joint graph: capture, plan, verify, emit; and what happens when that fails.

Training never dies from a planner's bug, and never goes on silently over budget. When planning fails, a byte budget
falls back to ``recompute_all``, checked by the simulator; anything else, or a second failure, to torch's own
partitioner. Either says so once, with the reason. ``REMAT_STRICT=1`` raises instead.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler.auto_budget import auto_budget, free_bytes
from rematpass.compiler.capture import compile_context
from rematpass.compiler.capture.annotations import offload, region_budget, within_region
from rematpass.compiler.capture.call_count import calls_in_a_step, same_in_all, stand_before_the_step
from rematpass.compiler.capture.discrete_ops import keep_decisions
from rematpass.compiler.capture.joint_graph import Captured, capture
from rematpass.compiler.capture.measured_cost import measured
from rematpass.compiler.default_partition import saved_by_torch
from rematpass.compiler.ops import device as settings
from rematpass.compiler.ops import workspace
from rematpass.compiler.ops.traits import is_one_of_its_kind
from rematpass.compiler.select_plan import Probe, Probes
from rematpass.compiler.source_hash import sources_hash
from rematpass.config import Budget, BudgetKind, Config
from rematpass.core import frontier, hardware
from rematpass.core.cost import estimate
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.op import Origin, Side
from rematpass.core.schedule import Plan
from rematpass.core.solve.bound import least_seconds
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.errors import BudgetInfeasible, ConfigError, ContradictoryMarks, RematError
from rematpass.report.files import write
from rematpass.report.report import Report, explain
from rematpass.report.summary import Summary, infeasible, summarize
from rematpass.units import format_bytes

log = logging.getLogger("rematpass")

_RAISED = (ConfigError, ContradictoryMarks, BudgetInfeasible)  # the user's to mend, never a reason to fall back


@dataclass(frozen=True)
class Record:
    """A planned graph: what was decided, and everything needed to explain it."""

    summary: Summary
    problem: Problem  # without what it has worked out on the way, which is large
    ladder: Ladder
    rung: Rung
    hardware: str  # the preset behind the seconds
    saved_by_torch: frozenset[int] | None = None  # what its own partitioner would save, where a report was asked for

    @property
    def graph(self) -> JointGraph:
        return self.problem.graph

    @property
    def plan(self) -> Plan:
        return self.rung.plan

    def report(self) -> Report:
        """All that there is to tell about it."""
        return explain(
            dataclasses.replace(self.problem),
            self.ladder,
            self.rung,
            self.summary,
            hardware=self.hardware,
            saved_by_torch=self.saved_by_torch,
        )


_records: list[Record] = []
listeners: list[Callable[[Record], None]] = []  # told of each planned graph before it is compiled; may end that


def records() -> list[Record]:
    """All graphs planned in this process, the oldest first. (Graphs found in a compile cache are not planned.)"""
    return list(_records)


def plans(clear: bool = False) -> list[Summary]:
    """The summaries of all graphs planned in this process, the oldest first; ``clear`` forgets them afterwards."""
    summaries = [record.summary for record in _records]
    if clear:
        _records.clear()
    return summaries


class RematPartitioner(_torch.CustomPartitionerFn):  # type: ignore[misc]
    """The partition function, for Inductor's ``custom_partitioner_fn`` and for AOTAutograd's ``partition_fn``.

    ``fuse``: whether a fusing compiler runs the result; ``device``: whose free bytes ``auto`` asks for. None means the
    one that is current when a graph is compiled: asking earlier would claim a GPU before a rank has chosen its own.
    ``compare``: find out what torch would save, too; ``plan_anew``: no plan of another process is taken from a cache.
    ``planned``: the last graph that was planned.
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
        self._unlike_any_other = os.urandom(16).hex() if plan_anew else ""
        self.config, self.fuse, self._device = config, fuse, device
        # An unknown name is an error now, not in the middle of a compile.
        self._preset = hardware.preset(config.hardware) if config.hardware else None
        self.planned_peak: int | None = None  # of one call of the last graph; None before, and where planning failed
        self._free: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What can change a plan: Inductor's cache key has the pickled partitioner in it, besides the ``uuid``."""
        budget = dataclasses.replace(self.config.memory_budget, given="")
        config = dataclasses.replace(self.config, memory_budget=budget, report_dir="")
        state = {"config": config, "fuse": self.fuse, "_device": self._device, "_unlike": self._unlike_any_other}
        return {**state, "_preset": str(self._preset)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"], fuse=state["fuse"], device=state["_device"])  # type: ignore[misc]

    @property
    def device(self) -> torch.device:
        return self._device or settings.current_device()

    @property
    def calls(self) -> int:
        """How often a step calls what is being compiled now, as far as that can be seen."""
        return self.config.calls or calls_in_a_step()

    def uuid(self) -> bytes:
        """Everything that can change a plan; a part of the keys of Inductor's and AOTAutograd's caches."""
        return self.key(sources_hash())

    def key(self, sources: str) -> bytes:
        """Everything but the sources that can change a plan, together with a hash of the sources."""
        free = ""
        if self.config.memory_budget.kind is BudgetKind.AUTO:
            self._free = free_bytes(self.device)
            free = str(self._free)
        name = settings.device_name(self.device)
        said = [self.config.key(), free, str(self.fuse), str(self.calls), name, torch.__version__]
        text = "\n".join([sources, *said])
        text += f"{self._preset}{self._unlike_any_other}"
        if self.device.type == "cuda":
            text += " ".join(settings.how_cudnn_chooses())
        return hashlib.sha256(text.encode()).digest()

    def __call__(
        self,
        gm: fx.GraphModule,
        joint_inputs: Sequence[object],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Forward and backward module of the joint module ``gm``.

        Raises:
            BudgetInfeasible: no plan stays under a budget in bytes (on a first compile, or in strict mode).
            ContradictoryMarks: the user's marks leave no plan at all.
        """
        kwargs.update(num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=static_lifetime_input_indices)
        try:
            with frontier.without_collection():  # a quarter of planning, and a tenth of dry runs
                return self._partition(gm, joint_inputs, kwargs)
        finally:
            workspace.settle()

    def _partition(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], kwargs: dict[str, Any]
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        try:
            _torch.prepare_joint(gm, is_one_of_its_kind)
            of_region = compile_context.region_calls()
            captured = capture(
                gm,
                num_fwd_outputs=kwargs["num_fwd_outputs"],
                # Of a region torch does not say which of its inputs are parameters.
                static_input_indices=kwargs["static_lifetime_input_indices"] or stand_before_the_step(of_region),
                shared_input_indices=same_in_all(of_region) if len(of_region) > 1 else None,
                fuse=self.fuse,
            )
            graph = dataclasses.replace(
                captured.graph,
                name=_graph_name(of_region=not joint_inputs),
                holds_outputs=self.config.hold_outputs,
                calls=max(1, len(of_region)) * self.calls,
            )
            captured = dataclasses.replace(captured, graph=graph)
            if self.config.save_decisions:
                captured = keep_decisions(captured, fuse=self.fuse)
        except Exception as error:
            return self._give_up(gm, joint_inputs, kwargs, error)
        if Side.BACKWARD not in captured.graph.sides:
            return _torch.default_partition(gm, joint_inputs, **kwargs)  # type: ignore[no-any-return]
        by_torch = saved_by_torch(captured, joint_inputs, kwargs) if self.compare else None
        try:
            return self._plan(captured, self.config.solver, by_torch=by_torch)
        except _RAISED:
            raise
        except Exception as error:
            return self._fall_back(captured, joint_inputs, kwargs, error)

    def _plan(
        self, captured: Captured, solver: str, fallback: str = "", by_torch: frozenset[int] | None = None
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        start = time.perf_counter()
        graph, budget = captured.graph, self._budget(captured.graph)
        preset = self._preset or hardware.for_device(graph.device)
        limit = None if fallback else self.config.planning_seconds
        deadline = math.inf if limit is None else time.monotonic() + limit
        costs = estimate(graph, preset)
        if self.config.cost == "measure" and not fallback:
            costs = measured(captured, costs, self.device)
        problem = Problem(graph, costs, self.fuse, self.config.max_recompute, deadline)
        ladder = frontier.build(problem, solver)
        budget = within_region(budget, region_budget(captured), ladder, graph.device)
        probes = Probes(captured, ladder, fuse=self.fuse)
        probe, limit = self._choose(problem, probes, budget)
        offload(captured, *probe.modules)
        # A plan may take more by the simulator than by the compiler, whose word the limit is about: then the higher.
        bound = 0.0 if fallback else least_seconds(problem, limit and max(limit, probe.rung.peak))
        summary = summarize(
            graph,
            ladder,
            probe.rung,
            budget=budget,
            limit=limit,
            peaks=(probe.peak, probe.peak_without_outputs),
            exact=probe.exact,
            planning_seconds=time.perf_counter() - start - probes.seconds,
            dry_run_seconds=probes.seconds,
            plan_hash=hashlib.sha256(probe.rung.plan.to_json().encode()).hexdigest()[:12],
            fallback=fallback,
            bound_seconds=bound,
        )
        self.planned_peak = summary.planned_peak - summary.nbytes_of_others
        self.planned = Record(summary, dataclasses.replace(problem), ladder, probe.rung, preset.name, by_torch)
        _records.append(self.planned)
        tell(summary, always=bool(self.config.memory_budget.given))
        if self.config.report_dir:
            _leave_report(self.planned, Path(self.config.report_dir))
        for listener in listeners:
            listener(self.planned)
        return probe.modules

    def _budget(self, graph: JointGraph) -> Budget:
        """The budget, with ``auto`` turned into bytes."""
        budget = self.config.memory_budget
        if budget.kind is not BudgetKind.AUTO:
            return budget
        free = free_bytes(self.device) if self._free is None else self._free
        each = sum(v.nbytes for v in graph.values if v.origin is Origin.STATIC and "float" in v.dtype)
        gradients_of_others = (graph.calls - 1) * each  # which a plan leaves out
        nbytes = auto_budget(free - gradients_of_others, graph.calls * each, self.config.auto_reserve)
        return dataclasses.replace(budget, kind=BudgetKind.BYTES, nbytes=nbytes)

    def _choose(self, problem: Problem, probes: Probes, budget: Budget) -> tuple[Probe, int | None]:
        """The fastest rung within the budget, and the budget in bytes (None: no limit).

        Raises:
            BudgetInfeasible: there is none, and this is the first compile of its code, or strict mode.
        """
        ladder, graph = probes.ladder, problem.graph
        if budget.is_unlimited:
            return probes.of(ladder.rungs[0]), None
        if budget.kind is BudgetKind.FRACTION:
            limit = ladder.limit(budget.fraction)
            return probes.under(limit, frontier.least_budget(limit, graph.device)) or probes.floor, limit
        _warn_if_shared(compile_context.frame_id(), budget)
        probe = probes.under(frontier.peak_allowed(budget.nbytes, graph.device))
        if probe is not None:
            return probe, budget.nbytes
        floor = probes.floor
        message = infeasible(problem, floor.rung, floor.peak, budget.nbytes)
        if self.config.strict or not compile_context.is_recompile():
            raise BudgetInfeasible(message, budget=budget.nbytes, floor=floor.peak)
        excess = format_bytes(frontier.least_budget(floor.peak, graph.device) - budget.nbytes)
        log.warning(
            "over budget by %s after a recompile with other shapes; training goes on at the floor. %s", excess, message
        )
        return floor, budget.nbytes

    def _fall_back(
        self, captured: Captured, joint_inputs: Sequence[object], kwargs: dict[str, Any], error: Exception
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """``recompute_all`` under a byte budget, torch's own partitioner otherwise; raises in strict mode."""
        if self.config.strict:
            raise error
        if self.config.memory_budget.kind is not BudgetKind.FRACTION and self.config.solver != "recompute_all":
            reason = f"{type(error).__name__}: {error}"
            try:
                modules = self._plan(captured, "recompute_all", fallback=reason)
            except Exception as second:
                log.debug("recompute_all failed as well", exc_info=second)
            else:
                log.warning("planning failed (%s); everything that can be is recomputed instead", reason)
                return modules
        return self._give_up(captured.module, joint_inputs, kwargs, error)

    def _give_up(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], kwargs: dict[str, Any], error: Exception
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        if self.config.strict or isinstance(error, _RAISED):
            raise error
        held = "" if self.config.memory_budget.is_unlimited else " The memory budget is NOT held for this graph."
        log.warning(
            "planning failed (%s: %s); torch's own partitioner takes over.%s REMAT_STRICT=1 raises instead",
            type(error).__name__, error, held, exc_info=not isinstance(error, RematError),
        )  # fmt: skip
        return _torch.default_partition(gm, joint_inputs, **kwargs)  # type: ignore[no-any-return]


def _graph_name(of_region: bool) -> str:
    """``of_region``: of a region that is compiled once for all its calls; AOTAutograd gives it no inputs."""
    return f"graph {compile_context.compile_id() or len(_records)}" + (", a region" if of_region else "")


def tell(summary: Summary, *, always: bool, cached: bool = False) -> None:
    """One line: where the log is on, or when the user has asked for a budget.

    ``cached``: the plan was made by another process, and the compiled graph comes from the compile cache.
    """
    level = logging.INFO if log.isEnabledFor(logging.INFO) or not always else logging.WARNING
    log.log(level, "%s%s", summary.line(), ", from the compile cache" if cached else "")
    _torch.trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": "rematpass_plan", "encoding": "json"},
        payload_fn=lambda: json.dumps(dataclasses.asdict(summary)),
    )


def _leave_report(record: Record, directory: Path) -> None:
    """Write the report; where that fails, training goes on with a warning."""
    try:
        paths = write(record.report(), directory)
    except Exception as error:
        log.warning("no report of %s: %s: %s", record.summary.graph, type(error).__name__, error)
    else:
        log.info("report of %s: %s", record.summary.graph, paths["html"])


_frames_under_bytes: set[object] = set()


def _warn_if_shared(frame: object, budget: Budget) -> None:
    """A byte budget holds for each graph; say so once when a second graph is planned under one."""
    if _frames_under_bytes and frame not in _frames_under_bytes:
        _warn_shared_once(str(budget))
    _frames_under_bytes.add(frame)


@functools.cache
def _warn_shared_once(budget: str) -> None:
    log.warning(
        "more than one graph is trained under the memory budget of %s: it holds for each of them by itself, "
        "not for their sum. Compile the model as one graph, or lower the budget",
        budget,
    )
