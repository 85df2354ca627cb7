"""A captured graph and a budget -> forward and backward modules, with the record of the decision.

Without a limit, torch's own choice is handed out (``default_partition.py``), and neither the ladder nor a dry run is
needed for it: a compilation then costs what it costs without this backend. Both are made when somebody asks for the
record's summary, which may be during the compilation (a log line, a report) or long after it (``plans()``).
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from rematpass.budget import Budget, BudgetKind
from rematpass.compiler import _torch, planned
from rematpass.compiler.auto_budget import auto_budget, free_bytes
from rematpass.compiler.capture import compile_context
from rematpass.compiler.capture.annotations import region_budget, within_region
from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.capture.measured_cost import measured
from rematpass.compiler.default_partition import DefaultPartition, Modules
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.planned import Decision, Record
from rematpass.compiler.select_plan import Candidate, Candidates
from rematpass.config import Config
from rematpass.core import frontier, hardware
from rematpass.core.cost import estimate
from rematpass.core.frontier import Ladder, Selection
from rematpass.core.graph import JointGraph
from rematpass.core.op import Origin
from rematpass.core.schedule import Plan
from rematpass.core.solve.bound import least_seconds
from rematpass.core.solve.problem import Problem
from rematpass.errors import BudgetInfeasible, PlanError
from rematpass.report.summary import infeasible, summarize
from rematpass.units import format_bytes

log = logging.getLogger("rematpass")


@dataclass(frozen=True)
class Planner:
    """Plans captured graphs. ``free``: the free bytes of the device, for the budget "auto"; None: not asked yet.

    ``preset``: the hardware that the seconds are for; None for the device's own. ``fuse``: whether a fusing compiler
    compiles the modules.
    """

    config: Config
    fuse: bool
    preset: hardware.Hardware | None
    device: torch.device
    free: int | None = None

    def plan(
        self, captured: Captured, solver: str, defaults: Iterable[DefaultPartition] = (), *, fallback: str = ""
    ) -> tuple[Modules, Record]:
        """The modules to compile, and the record.

        ``defaults``: what torch's own partitioner does; the first is for comparisons, and the first that the judge
        accepts is a rung, if a ladder is solved for. ``fallback``: why the first attempt failed, if this is the second.

        Raises:
            BudgetInfeasible: no plan stays under a byte budget (on a first compilation, or in strict mode).
            ContradictoryMarks: the user's marks leave no plan.
        """
        start = time.perf_counter()
        graph = captured.graph
        budget, of_region = self.budget(graph), region_budget(captured)
        defaults = iter(defaults)
        first = next(defaults, None)
        by_torch = first.saved if first else None
        accepted = None
        if first is not None and self.fuse and solver == "ladder":
            accepted = _accepted(itertools.chain([first], defaults), graph)
        if accepted is not None and budget.is_unlimited and of_region in (None, 1):
            default, plan = accepted
            later, problem = _Later(self, captured, default, plan), self.problem(graph)
            rung = default.rung(problem, plan).rung
            return default.modules, Record(problem, rung, self._hardware(graph).name, later.decide, by_torch)
        problem = self.problem(graph, captured=None if fallback else captured, has_deadline=not fallback)
        candidates, ladder = self.ladder(problem, captured, solver, accepted)
        budget = within_region(budget, of_region, ladder, graph.device)
        selection = self._select(problem, ladder, candidates, budget)
        decision = self.decision(problem, selection, ladder, candidates, budget, start, fallback)
        chosen = selection.candidate
        return chosen.modules, Record(problem, chosen.rung, self._hardware(graph).name, lambda: decision, by_torch)

    def ladder(
        self, problem: Problem, captured: Captured, solver: str, accepted: tuple[DefaultPartition, Plan] | None
    ) -> tuple[Candidates, Ladder]:
        """The ladder, with torch's own choice if it is ``accepted``, and the candidates of its rungs."""
        default = None
        if accepted is not None:
            partition, plan = accepted
            default = partition.rung(problem, plan), partition
        candidates = Candidates(captured, fuse=self.fuse, default=default)
        return candidates, frontier.build(problem, solver, default[0] if default else None)

    def budget(self, graph: JointGraph) -> Budget:
        """The budget, with "auto" resolved to bytes."""
        budget = self.config.memory_budget
        if budget.kind is not BudgetKind.AUTO:
            return budget
        each = sum(v.nbytes for v in graph.values if v.origin is Origin.STATIC and "float" in v.dtype)
        gradients_of_others = (graph.calls - 1) * each  # a plan counts the gradients of one call only
        free = free_bytes(self.device) if self.free is None else self.free
        nbytes = auto_budget(free - gradients_of_others, graph.calls * each, self.config.auto_reserve)
        return dataclasses.replace(budget, kind=BudgetKind.BYTES, nbytes=nbytes)

    def problem(self, graph: JointGraph, captured: Captured | None = None, *, has_deadline: bool = False) -> Problem:
        """What the solvers get. ``captured``: measure its ops if the configuration asks for measured seconds."""
        limit = self.config.planning_seconds if has_deadline else None
        deadline = math.inf if limit is None else time.monotonic() + limit
        costs = estimate(graph, self._hardware(graph))
        if captured is not None and self.config.cost == "measure":
            costs = measured(captured, costs, self.device)
        return Problem(graph, costs, self.fuse, self.config.max_recompute, deadline)

    def _hardware(self, graph: JointGraph) -> hardware.Hardware:
        return self.preset or hardware.for_device(graph.device)

    def _select(self, problem: Problem, ladder: Ladder, candidates: Candidates, budget: Budget) -> Selection[Candidate]:
        """The fastest candidate within the budget.

        Raises:
            BudgetInfeasible: there is none, and this is the first compilation of the code, or strict mode.
        """
        if budget.kind is BudgetKind.BYTES and not budget.is_unlimited:
            planned.shared_budget_warning.check(budget)
        device = problem.graph.device
        selection = frontier.select(ladder, budget, device, candidates.fitting)
        if selection.fits:
            return selection
        lowest = selection.candidate
        message = infeasible(problem, lowest.rung, lowest.peak, budget.nbytes)
        if self.config.strict or not compile_context.is_recompile():
            raise BudgetInfeasible(message, budget=budget.nbytes, floor=lowest.peak)
        excess = format_bytes(frontier.least_budget(lowest.peak, device) - budget.nbytes)
        log.warning(
            "over budget by %s after a recompile for other shapes; training continues at the floor. %s", excess, message
        )
        return selection

    def decision(
        self,
        problem: Problem,
        selection: Selection[Candidate],
        ladder: Ladder,
        candidates: Candidates,
        budget: Budget,
        start: float,
        fallback: str = "",
    ) -> Decision:
        """All that is told of a selection; planning began at ``start``."""
        chosen, limit = selection.candidate, selection.limit
        # The simulated peak may be above the limit, which is about exact peaks; the bound has to allow the higher one.
        bound = 0.0 if fallback else least_seconds(problem, limit and max(limit, chosen.rung.peak))
        summary = summarize(
            problem.graph,
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
            ends=(selection.floor, selection.ceiling),
        )
        return Decision(ladder, summary)


def _accepted(defaults: Iterable[DefaultPartition], graph: JointGraph) -> tuple[DefaultPartition, Plan] | None:
    """The first partition that is a valid plan, with the plan."""
    for default in defaults:
        try:
            return default, default.plan(graph)
        except PlanError as error:
            log.debug("torch's own choice is not taken: %s", error)
    return None


class _Later:
    """The decision on a graph whose modules are handed out before it is made: torch's own choice, without a limit.

    Inductor changes the modules while it compiles them, and its settings hold only during the compilation, so both are
    kept as they are now.
    """

    def __init__(self, planner: Planner, captured: Captured, default: DefaultPartition, plan: Plan) -> None:
        self.planner, self.captured, self.plan = planner, captured, plan
        fwd, bwd = map(copy_module, default.modules)
        self.default = dataclasses.replace(default, modules=(fwd, bwd))
        self._settings = _torch.inductor_config.get_config_copy()

    def decide(self) -> Decision:
        start = time.perf_counter()
        planner = self.planner
        problem = planner.problem(self.captured.graph, self.captured, has_deadline=True)
        solver, budget = planner.config.solver, planner.config.memory_budget
        candidates, ladder = planner.ladder(problem, self.captured, solver, (self.default, self.plan))
        with _torch.inductor_config.patch(self._settings):
            selection = frontier.select(ladder, budget, problem.graph.device, candidates.of)
        return planner.decision(problem, selection, ladder, candidates, budget, start)
