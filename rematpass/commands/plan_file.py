"""Plan a joint graph from a file, on any machine: without torch, without a GPU, for any hardware preset."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

from rematpass.budget import BudgetKind
from rematpass.config import Config
from rematpass.core import frontier, hardware
from rematpass.core.cost import estimate
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.hardware import Hardware
from rematpass.core.solve.bound import least_seconds
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import BudgetInfeasible, ConfigError, GraphError
from rematpass.report.report import Provenance, Report, explain
from rematpass.report.summary import Summary, infeasible, summarize


@dataclass(frozen=True)
class Planned:
    """The result of planning: everything that a report needs."""

    problem: Problem
    ladder: Ladder
    rung: Rung
    summary: Summary
    hardware: Hardware

    def report(self, model: str = "") -> Report:
        """The full report; ``model``: the name to show for the model."""
        return explain(
            self.problem,
            self.ladder,
            self.rung,
            self.summary,
            hardware=self.hardware.name,
            provenance=Provenance.now(model),
        )


def read_graph(path: Path) -> JointGraph:
    """Read a joint graph from a file.

    Raises:
        GraphError: the file cannot be read, or it does not contain a joint graph.
    """
    try:
        return JointGraph.from_json(path.read_text("utf-8"))
    except OSError as error:
        raise GraphError(f"cannot read {path}: {error.strerror or error}") from error
    except (GraphError, UnicodeDecodeError) as error:
        reason = error if isinstance(error, GraphError) else "not a joint graph: not text"
        raise GraphError(
            f"{path}: {reason}. A joint graph is a file *.graph.json that REMAT_REPORT_DIR or rematpass explain wrote"
        ) from error


def plan_graph(graph: JointGraph, config: Config, device: str = "") -> Planned:
    """Plan ``graph`` as the backend would, for the preset ``device``; empty: ``config.hardware``, or the graph's own.

    Forward's outputs count in backward if both the graph and ``config`` say so.

    Raises:
        ConfigError: the preset is unknown, or the budget is "auto", which needs a device.
        BudgetInfeasible: no plan stays under a byte budget.
    """
    name = device or config.hardware
    preset = hardware.preset(name) if name else hardware.for_device(graph.device)
    start = time.perf_counter()
    holds = graph.holds_outputs and config.hold_outputs
    graph = dataclasses.replace(graph, holds_outputs=holds, calls=config.calls or graph.calls)
    problem = Problem(graph, estimate(graph, preset), graph.fuse, config.max_recompute)
    ladder = frontier.build(problem, config.solver)
    rung, limit = choose(problem, ladder, config, preset.name if name else graph.device)
    verify(graph, rung.plan)
    summary = summarize(
        graph,
        ladder,
        rung,
        budget=config.memory_budget,
        limit=limit,
        peaks=(rung.peak, rung.timeline.peak_without_outputs),
        exact=False,
        dry_run_seconds=0.0,
        planning_seconds=time.perf_counter() - start,
        bound_seconds=least_seconds(problem, limit and max(limit, rung.peak)),
        plan_hash=rung.plan.digest,
    )
    return Planned(problem, ladder, rung, summary, preset)


def choose(problem: Problem, ladder: Ladder, config: Config, device: str) -> tuple[Rung, int | None]:
    """The fastest rung within the budget, and the budget in bytes (None: no limit), both for ``device``."""
    budget = config.memory_budget
    if budget.kind is BudgetKind.AUTO:
        raise ConfigError(
            "the budget auto needs a device, which a graph from a file does not have; give bytes, such as 8GiB"
        )
    selection = frontier.select(ladder, budget, device, ask=lambda rung: rung)
    if not selection.fits:
        message = infeasible(problem, ladder.rungs[-1], ladder.floor, budget.nbytes, device)
        raise BudgetInfeasible(message, budget=budget.nbytes, floor=ladder.floor)
    return selection.candidate, selection.limit
