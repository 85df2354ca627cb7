"""From a rung of the ladder to the two modules and their peak, by Inductor's own word.

The simulator's peak chooses a rung; what Inductor then really allocates is asked of it before any code is generated
(``dry_run``). Where that is more than allowed, the next lower rung is tried that would fit if it were wrong by as much;
where one fits that leaves room, the fastest that would fit if it were wrong by no more than that one. One to three
questions settle it as a rule, six at most; each rung is asked about once.

Without Inductor (``fuse`` is off), or where the dry run fails, the simulator's word stands.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from torch import fx

from rematpass.compiler.capture.joint_graph import Captured
from rematpass.compiler.emit import emit
from rematpass.compiler.inductor.dry_run import StepDryRun, dry_run_step
from rematpass.compiler.inductor.scheduler_pass import keep_apart
from rematpass.core.frontier import Ladder
from rematpass.core.solve.ladder import Rung
from rematpass.core.verify import verify

log = logging.getLogger("rematpass")

_MOST_PROBES = 4  # on the way down, before the floor is taken
_WORTH_A_PROBE = 0.99  # of the seconds of the plan at hand


@dataclass(frozen=True)
class Probe:
    """One rung, carried out. ``exact``: whether the bytes are Inductor's word or the simulator's.

    ``peak_without_outputs``: the peak if the caller lets go of forward's outputs before backward starts; where the
    graph says so, the two are one.
    """

    rung: Rung
    modules: tuple[fx.GraphModule, fx.GraphModule]
    peak: int
    peak_without_outputs: int
    exact: bool


class Probes:
    """The rungs of one ladder that have been carried out. ``seconds``: what asking Inductor took."""

    def __init__(self, captured: Captured, ladder: Ladder, *, fuse: bool) -> None:
        self.captured, self.ladder, self.fuse = captured, ladder, fuse
        self.seconds = 0.0
        self._made: dict[int, Probe] = {}

    def of(self, rung: Rung) -> Probe:
        """The modules of ``rung`` and their peak.

        Raises:
            PlanError: the judge rejects its plan.
        """
        key = id(rung)
        if key not in self._made:
            self._made[key] = self._carry_out(rung)
        return self._made[key]

    @property
    def floor(self) -> Probe:
        """The rung with the lowest simulated peak. (To ask about two more was tried: on the Llama, 0.3% lower.)"""
        return self.of(self.ladder.rungs[-1])

    def under(self, nbytes: int, accepted: int | None = None) -> Probe | None:
        """The fastest rung whose peak is at most ``nbytes``; None when not even the floor's is.

        ``accepted``: bytes a little above, up to which Inductor's word does not send us further down.
        """
        accepted = accepted or nbytes
        target, too_high = nbytes, nbytes
        for asked in range(_MOST_PROBES):
            rung = self.ladder.fastest_under(target)
            if rung is None:
                break
            probe = self.of(rung)
            if probe.peak <= accepted:
                return self._between(probe, too_high, accepted) if asked else probe
            too_high = rung.peak
            target = min(target * nbytes // probe.peak, rung.peak - 1)
        return self.floor if self.floor.peak <= accepted else None

    def _between(self, fits: Probe, too_high: int, nbytes: int) -> Probe:
        """A faster rung above one that fits, if there is one that should fit as well, and does."""
        rung = self.ladder.fastest_under(min(nbytes * fits.rung.peak // fits.peak, too_high - 1))
        if rung is None or rung.seconds > _WORTH_A_PROBE * fits.rung.seconds:
            return fits
        probe = self.of(rung)
        return probe if probe.peak <= nbytes else fits

    def _carry_out(self, rung: Rung) -> Probe:
        verify(self.captured.graph, rung.plan)
        modules = emit(self.captured, rung.plan, fuse=self.fuse)
        found = self._ask(modules) if self.fuse else None
        if found is None:
            return Probe(rung, modules, rung.peak, rung.timeline.peak_without_outputs, exact=False)
        of_others = rung.timeline.of_others
        without = found.peak_nbytes_without_outputs + of_others
        peak = found.peak_nbytes + of_others if self.captured.graph.holds_outputs else without
        log.debug("simulated %d bytes at the peak, Inductor says %d", rung.peak, peak)
        return Probe(rung, modules, peak, without, exact=True)

    def _ask(self, modules: tuple[fx.GraphModule, fx.GraphModule]) -> StepDryRun | None:
        start = time.perf_counter()
        for module in modules:
            keep_apart(module)
        try:
            found = dry_run_step(*modules, num_fwd_outputs=len(self.captured.fwd_outputs))
        except Exception as error:  # whatever Inductor raises: the real compile will raise it again, or not
            log.info("the dry run failed (%s: %s); the simulator's peak stands", type(error).__name__, error)
            return None
        finally:
            self.seconds += time.perf_counter() - start
        if unknown := found.fwd.unknown + found.bwd.unknown:
            log.info("the dry run met lines of unknown bytes (%s); the simulator's peak stands", ", ".join(unknown))
            return None
        return found
