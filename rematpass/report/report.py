"""The report on one planned graph: the data behind the text, the JSON document, the page and the trace.

``explain`` collects it from the planner's results; no decision is made here.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rematpass import __version__
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.op import Origin
from rematpass.core.schedule import Plan
from rematpass.core.simulate import Timeline
from rematpass.core.solve.baselines import chen_sqrt, recompute_all, save_all
from rematpass.core.solve.bound import ASSUMES, Bound, lower_bound
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.schedule_late import schedule_late
from rematpass.errors import RematError
from rematpass.report.layers import Totals, clean, totals
from rematpass.report.occupancy import ROLES, Occupancy, occupancy
from rematpass.report.reasons import Account, accounts
from rematpass.report.summary import Summary
from rematpass.units import BYTE_UNITS, format_bytes, format_percent, format_seconds

FORMAT = 1
TORCH = "torch's default, in our order"
BASELINES = (("save all", save_all), ("square root (Chen 2016)", chen_sqrt), ("recompute all", recompute_all))
_MOST_BOUNDS = 32  # peaks at which the bound is computed exactly
_STEPS = tuple(n * BYTE_UNITS[unit] for unit in ("GiB", "MiB", "KiB") for n in (1, 0.25, 1 / 16))


@dataclass(frozen=True)
class Provenance:
    """Where a report comes from. Empty fields are unknown.

    ``model``: the model's name; ``date``: when the report was made, in UTC; ``versions``: of packages, by name.
    """

    model: str = ""
    date: str = ""
    versions: tuple[tuple[str, str], ...] = ()

    @classmethod
    def now(cls, model: str = "", torch: str = "") -> Provenance:
        """Of a report that is made now; ``torch``: its version, if torch captured the graph in this process."""
        date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        versions = {"rematpass": __version__, "torch": torch}
        return cls(model, date, tuple((name, version) for name, version in versions.items() if version))

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {version}" for name, version in self.versions)
        return " · ".join(filter(None, (self.model, self.date, versions)))


@dataclass(frozen=True)
class Point:
    """A plan in the plane of peak (bytes) and seconds of a step; ``name`` identifies it."""

    name: str
    peak: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """One planned graph. ``seconds[i]``: the cost of run ``i`` of the timeline, by the cost model for ``hardware``.

    ``frontier``: the ladder's rungs, fastest first; ``others``: plans to compare with; ``bound``: the proven lower
    bound on seconds, under the assumptions of its proof.
    """

    summary: Summary
    hardware: str
    graph: JointGraph
    timeline: Timeline
    occupancy: Occupancy
    seconds: tuple[float, ...]
    frontier: tuple[Point, ...]
    others: tuple[Point, ...]
    accounts: tuple[Account, ...]
    modules: tuple[Totals, ...]
    bound: Bound
    provenance: Provenance = Provenance()

    @property
    def chosen(self) -> Point:
        """The plan, at its simulated peak; the peaks of all other points are simulated as well."""
        return Point("this plan", self.timeline.peak, self.summary.step_seconds)

    @cached_property
    def bound_curve(self) -> tuple[tuple[int, float], ...]:
        """The corners of the piecewise linear bound, as peak (bytes) and seconds, by rising peak.

        The first corner is the proven floor.
        """
        return self.bound.curve(self.bound.floor, max(p.peak for p in (*self.frontier, *self.others)))

    def above_bound(self, point: Point) -> float | None:
        """The point's distance to the bound at its peak, as a share of the bound; None if nothing is proven there."""
        least = self.bound.seconds(point.peak)
        return self.bound.gap(point.seconds, point.peak) if 0 < least < math.inf else None

    @cached_property
    def peak_at(self) -> int:
        """The position of the first run at which memory reaches its peak."""
        return self.timeline.live.index(self.timeline.peak) if self.timeline.live else 0

    @cached_property
    def held_nbytes(self) -> int:
        """Bytes of parameters and buffers, which exist before the step and are not counted."""
        return sum(v.nbytes for v in self.graph.values if v.origin is Origin.STATIC)

    def fastest_under(self, nbytes: int) -> Point:
        """The fastest rung with a peak of at most ``nbytes``; if there is none, the lowest rung."""
        return next((p for p in self.frontier if p.peak <= nbytes), self.frontier[-1])

    def what_more_buys(self) -> str:
        """One sentence: the seconds that one more GiB would save, or a smaller amount if that is enough."""
        room = self.frontier[0].peak - self.chosen.peak
        if room <= 0:
            return "More memory would save no time: this is the fastest plan."
        step = next((int(n) for n in _STEPS if n <= room), room)
        faster = self.fastest_under(self.chosen.peak + step)
        gain = self.chosen.seconds - faster.seconds
        text = f"{format_bytes(step)} more would save {format_seconds(gain)} of a step ({self._share(gain)})"
        if faster != self.frontier[0]:
            most = self.chosen.seconds - self.frontier[0].seconds
            text += f"; {format_bytes(room)} more, {format_seconds(most)} ({self._share(most)})"
        return text + "."

    def what_less_costs(self) -> str:
        """One sentence: the bytes that the next lower rung saves and the seconds that it costs."""
        lower = next((p for p in self.frontier if p.peak < self.chosen.peak), None)
        if lower is None:
            return "No plan with a lower peak was found."
        bytes_, seconds = self.chosen.peak - lower.peak, lower.seconds - self.chosen.seconds
        return f"The next lower plan saves {format_bytes(bytes_)} and costs {format_seconds(seconds)} more."

    def _share(self, seconds: float) -> str:
        return format_percent(seconds / (self.chosen.seconds or 1.0))

    def to_json(self) -> str:
        """The whole report as one JSON document: bytes as integers, seconds as estimated by the cost model."""
        return json.dumps(self._document(), separators=(",", ":"))

    def _document(self) -> dict[str, Any]:
        live, graph = self.timeline, self.graph
        return {
            "format": FORMAT,
            "model": self.provenance.model,
            "date": self.provenance.date,
            "versions": dict(self.provenance.versions),
            "summary": dataclasses.asdict(self.summary),
            "hardware": self.hardware,
            "device": graph.device,
            "more_memory": self.what_more_buys(),
            "less_memory": self.what_less_costs(),
            "frontier": [self.point(p) for p in self.frontier],
            "others": [self.point(p) for p in self.others],
            "chosen": self.point(self.chosen),
            "bound": self.bound_curve,
            "bound_assumes": ASSUMES,
            "values": [self._value(a) for a in self.accounts],
            "modules": [dataclasses.asdict(m) for m in self.modules],
            "timeline": {
                "first_backward": live.first_backward,
                "peak_at": self.peak_at,
                "runs": [
                    {"op": graph.ops[run.op].name, "copy": run.copy, "seconds": s, "live": n}
                    for run, s, n in zip(live.runs, self.seconds, live.live, strict=True)
                ],
                "roles": dict(zip([r.value for r in ROLES], self.occupancy.by_role, strict=True)),
                "intervals": [
                    {**dataclasses.asdict(o), "value": graph.values[o.value].name, "id": o.value}
                    for o in self.occupancy.occupants
                ],
            },
        }

    def point(self, point: Point) -> dict[str, Any]:
        """A point as JSON fields."""
        return {**dataclasses.asdict(point), "above_bound": self.above_bound(point)}

    def _value(self, account: Account) -> dict[str, Any]:
        value, producer = self.graph.values[account.value], self.graph.producer[account.value]
        op = None if producer is None else self.graph.ops[producer]
        return {
            **dataclasses.asdict(account),
            "value": value.name,
            "id": value.id,
            "nbytes": value.nbytes,
            "dtype": value.dtype,
            "shape": value.shape,
            "op": op.name if op else "",
            "source": op.source if op else "",
            "module": clean(op.module) if op else "",
        }


def explain(
    problem: Problem,
    ladder: Ladder,
    rung: Rung,
    summary: Summary,
    *,
    hardware: str,
    saved_by_torch: Iterable[int] | None = None,
    provenance: Provenance = Provenance(),
) -> Report:
    """Collect the report on ``rung``, chosen from ``ladder`` for ``problem``.

    ``hardware``: the name of the preset behind the seconds; ``saved_by_torch``: the values that torch's own
    partitioner would save, if known. Their point shows this choice in rematpass's order. Torch recomputes in one block
    ahead of backward, which takes more memory than the point shows.
    """
    problem = dataclasses.replace(problem, deadline=math.inf)  # the time limit is for planning only
    graph, plan, timeline = problem.graph, rung.plan, rung.timeline
    occupants = occupancy(graph, plan, timeline)
    fates = accounts(graph, plan, timeline, problem.costs)
    peak_at = timeline.live.index(timeline.peak) if timeline.live else 0
    return Report(
        summary=summary,
        hardware=hardware,
        graph=graph,
        timeline=timeline,
        occupancy=occupants,
        seconds=tuple(problem.costs.run[run.op] for run in timeline.runs),
        frontier=tuple(Point(r.plan.solver, r.peak, r.seconds) for r in ladder.rungs),
        others=tuple(_baselines(problem, saved_by_torch)),
        accounts=tuple(fates),
        modules=tuple(totals(graph, plan, problem.costs, fates, occupants, peak_at)),
        bound=lower_bound(problem, _some(sorted({rung.peak, *(r.peak for r in ladder.rungs)}), _MOST_BOUNDS)),
        provenance=provenance,
    )


def _some(things: Sequence[int], most: int) -> Sequence[int]:
    """About ``most`` of ``things``, evenly spread."""
    return things[:: -(-len(things) // most) or 1]


def _baselines(problem: Problem, saved_by_torch: Iterable[int] | None) -> Iterator[Point]:
    """The plans to compare with, as far as the user's annotations allow them."""

    def torch_default(problem: Problem) -> tuple[Plan, ...]:
        return (schedule_late(problem.graph, saved_by_torch or (), "torch"),)

    for name, solver in [*([(TORCH, torch_default)] if saved_by_torch is not None else []), *BASELINES]:
        try:
            timeline = problem.timeline(solver(problem)[0])
        except RematError:
            continue
        yield Point(name, timeline.peak, timeline.step_seconds)
