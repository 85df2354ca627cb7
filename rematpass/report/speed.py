"""Step times at equal peaks, and compile times, as one Markdown page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rematpass.report.comparison import NOT_MEASURED, markdown_table, recomputed, seconds_text, title
from rematpass.report.measurement import Measurement, Strategy
from rematpass.units import format_bytes

EXPLAINED = """remat's budget is the measured peak of a peer. Recomputed: FLOPs beyond those of an eager step, as a
percentage of forward's. Step times are medians of the ratio to plain Inductor in the same round; a peer and the remat
row beside it come from one session if a run measured both. `gap_*.md` shows how near each plan is to a proven bound, by
the cost model.
"""


@dataclass(frozen=True)
class Pair:
    """A peer, and remat with the peer's measured peak as its budget."""

    model: str
    theirs: Measurement
    ours: Measurement

    @property
    def flops_no_higher(self) -> bool | None:
        """Whether remat needs no more FLOPs; None if one of the two was not counted."""
        if self.theirs.step_flops is None or self.ours.step_flops is None:
            return None
        return self.ours.step_flops <= self.theirs.step_flops

    @property
    def step(self) -> float | None:
        """remat's step seconds divided by the peer's; None if one of the two was not timed."""
        if not self.theirs.step_ratio or not self.ours.step_ratio:
            return None
        return self.ours.step_ratio[1] / self.theirs.step_ratio[1]


def pairs(models: Mapping[str, Sequence[Measurement]]) -> list[Pair]:
    """All pairs that were measured, by model, largest peak first."""
    found = []
    for model, rows in models.items():
        given = {s.nbytes: row for row in rows if (s := Strategy.parse(row.strategy)).nbytes and row.peak is not None}
        peers = [row for row in rows if Strategy.parse(row.strategy).is_peer and row.peak is not None]
        for theirs in sorted(peers, key=lambda row: -(row.peak or 0)):
            if theirs.peak in given:
                found.append(Pair(model, theirs, given[theirs.peak]))
    return found


def page(models: Mapping[str, Sequence[Measurement]], heading: str, pictures: Mapping[str, str]) -> str:
    """The page. ``pictures``: the name of the picture's file, by model."""
    found = pairs(models)
    text = [f"# Speed, {heading}\n", EXPLAINED, "## At a peer's own peak\n", _at_the_same_peak(found)]
    counted = [p.flops_no_higher for p in found if p.flops_no_higher is not None]
    timed = [p.step for p in found if p.step is not None]
    text.append(
        f"Of {len(found)} pairs, remat takes no more bytes in {sum(_fits(p) for p in found)}, no more FLOPs in "
        f"{sum(counted)} of {len(counted)}, and at most 1.02 times the seconds in {sum(s <= 1.02 for s in timed)} of "
        f"{len(timed)} (such times scatter by 2%).\n"
    )
    text += ["## Without a budget, and compile times\n", _unlimited(models)]
    text += [f"![{model}: step time against peak]({file})\n" for model, file in pictures.items()]
    return "\n".join(text)


def _fits(pair: Pair) -> bool:
    return (pair.ours.peak or 0) <= (pair.theirs.peak or 0)


def _at_the_same_peak(found: Sequence[Pair]) -> str:
    header = (
        "model", "peer", "its peak", "remat's", "recomputed by it", "by remat", "its step", "remat's", "remat / peer"
    )  # fmt: skip
    lines = []
    for pair in found:
        peer = Strategy.parse(pair.theirs.strategy)
        both = pair.theirs, pair.ours
        lines.append(
            [
                pair.model,
                f"{title(peer)} {peer.budget}".strip(),
                *(format_bytes(row.peak or 0) for row in both),
                *(recomputed(peer, row) for row in both),
                *(_ratio(row) for row in both),
                NOT_MEASURED if pair.step is None else f"{pair.step:.2f}",
            ]
        )
    return markdown_table(header, lines, left=2)


def _unlimited(models: Mapping[str, Sequence[Measurement]]) -> str:
    """Inductor and remat at budgets 1 and 0."""
    header = ("model", "", "peak", "step / Inductor", "compile", "planning share")
    lines = []
    for model, rows in models.items():
        by_name = {row.strategy: row for row in rows}
        for name in ("inductor", "remat@1", "remat@0"):
            row = by_name.get(name)
            if row is not None and row.peak is not None:
                planning = "" if Strategy.parse(name).is_peer else seconds_text(row.planning_seconds)
                compiling = seconds_text(row.compile_seconds)
                lines.append([model, name, format_bytes(row.peak), _ratio(row), compiling, planning])
    return markdown_table(header, lines, left=2)


def _ratio(row: Measurement) -> str:
    return NOT_MEASURED if row.step_ratio is None else f"{row.step_ratio[1]:.2f}"
