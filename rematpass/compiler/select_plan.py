"""A rung of the ladder, emitted and rewritten, with its peak: exact if Inductor compiles it, else simulated.

``frontier.select`` asks for few rungs, and each is emitted and dry-run once. Without Inductor (``fuse`` is off), or if
the dry run fails, the simulated peak stands.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass

from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.default_partition import DefaultPartition, Modules
from rematpass.compiler.emit import emit, step_facts
from rematpass.compiler.graph_passes.pipeline import rewrite_step
from rematpass.compiler.inductor.dry_run import StepDryRun, dry_run_step
from rematpass.core.frontier import FITS_NO_BUDGET, Default
from rematpass.core.solve.ladder import Rung
from rematpass.core.verify import verify

log = logging.getLogger("rematpass")


@dataclass(frozen=True)
class Candidate:
    """One rung with its final modules. Peaks are in bytes, of all calls of the graph in a step together.

    ``exact``: the peaks are those of Inductor's dry run, not the simulator's. ``peak_without_outputs``: the peak if the
    caller drops forward's outputs before backward starts; equal to ``peak`` if the graph is planned for that.
    """

    rung: Rung
    modules: Modules
    peak: int
    peak_without_outputs: int
    exact: bool


class Candidates:
    """The candidates of one graph, made when they are asked for. ``dry_run_seconds``: the time of all dry runs.

    ``default``: the rung of torch's own choice, with its modules, which no pass changes.
    """

    def __init__(
        self, captured: Captured, *, fuse: bool, default: tuple[Default, DefaultPartition] | None = None
    ) -> None:
        self.captured, self.fuse, self.default = captured, fuse, default
        self.dry_run_seconds = 0.0
        self._made: dict[int, Candidate] = {}

    def of(self, rung: Rung) -> Candidate:
        """The candidate of ``rung``.

        Raises:
            PlanError: the judge rejects its plan.
        """
        key = id(rung)
        if key not in self._made:
            self._made[key] = self._make(rung)
        return self._made[key]

    def fitting(self, rung: Rung) -> Candidate:
        """The candidate of ``rung``; if it is torch's own choice and has no exact peak, with one that fits no budget.

        The simulator does not know Inductor's own order, and where the dry run fails, its compilation may fail too.

        Raises:
            PlanError: the judge rejects its plan.
        """
        found = self.of(rung)
        if self.default is not None and rung is self.default[0].rung and not found.exact:
            return dataclasses.replace(found, peak=FITS_NO_BUDGET)
        return found

    def _modules(self, rung: Rung) -> Modules:
        if self.default is not None and rung is self.default[0].rung:
            return self.default[1].modules
        verify(self.captured.graph, rung.plan)
        modules = emit(self.captured, rung.plan)
        rewrite_step(*modules, step_facts(self.captured), fuse=self.fuse)
        return modules

    def _make(self, rung: Rung) -> Candidate:
        modules = self._modules(rung)
        found = self._dry_run(modules) if self.fuse else None
        if found is None:
            return Candidate(rung, modules, rung.peak, rung.timeline.peak_without_outputs, exact=False)
        of_others = rung.timeline.nbytes_of_others
        without = found.peak_nbytes_without_outputs + of_others
        peak = found.peak_nbytes + of_others if self.captured.graph.holds_outputs else without
        log.debug("the simulated peak is %d bytes, Inductor's is %d bytes", rung.peak, peak)
        return Candidate(rung, modules, peak, without, exact=True)

    def _dry_run(self, modules: Modules) -> StepDryRun | None:
        """Inductor's peaks; None, with a log line, if they cannot be determined."""
        start = time.perf_counter()
        try:
            found = dry_run_step(*modules, num_fwd_outputs=len(self.captured.fwd_outputs))
        except Exception as error:  # any exception of Inductor; a real error is raised again by its compilation
            log.info("the dry run failed (%s: %s); the simulated peak stands", type(error).__name__, error)
            return None
        finally:
            self.dry_run_seconds += time.perf_counter() - start
        if unknown := found.fwd.unknown + found.bwd.unknown:
            log.info("the dry run met lines of unknown bytes (%s); the simulated peak stands", ", ".join(unknown))
            return None
        return found
