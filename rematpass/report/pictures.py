"""Measurements as pictures: SVG or PNG, by the file's name. Equal measurements give equal files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rematpass.errors import MeasureError
from rematpass.report.atomic import replacing
from rematpass.report.comparison import title
from rematpass.report.measurement import Measurement, Strategy

FORMATS = (".svg", ".png")
MIB = 2**20


def matplotlib() -> Any:
    """matplotlib's ``Figure``, configured for reproducible files with searchable text.

    Raises:
        MeasureError: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MeasureError(
            "pictures need matplotlib, which is not installed: pip install 'rematpass[bench]'"
        ) from error
    matplotlib.rcParams.update(
        {"svg.hashsalt": "rematpass", "svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}
    )
    return Figure


def check(path: Path) -> None:
    """Check before measuring that a picture can be drawn to ``path``.

    Raises:
        MeasureError: the format is not supported, the directory does not exist, or matplotlib is missing.
    """
    if path.suffix.lower() not in FORMATS:
        raise MeasureError(f"{str(path)!r} ends in neither .svg nor .png, the two formats for pictures")
    if not path.parent.is_dir():
        raise MeasureError(f"there is no directory {str(path.parent)!r} to write {path.name!r} to")
    matplotlib()


def seconds_against_peak(rows: Sequence[Measurement], heading: str, path: Path) -> bool:
    """Draw step time against measured peak: peers as points, remat as a line. False, and no file, without times."""
    timed = [(Strategy.parse(row.strategy), row) for row in rows if row.peak is not None and row.step_ratio]
    if not timed:
        return False
    figure = matplotlib()(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    ours = sorted({(row.peak or 0, row.step_ratio or (1.0, 1.0, 1.0)) for s, row in timed if not s.is_peer})
    if ours:
        _line(axes, ours, "remat", "C0", "o-")
    torchs = [(row.peak or 0, row.step_ratio or (1.0, 1.0, 1.0)) for s, row in timed if s.is_peer and not s.checkpoint]
    _line(axes, sorted(torchs), "torch", "C1", "s")
    others = [(row.peak or 0, row.step_ratio or (1.0, 1.0, 1.0)) for s, row in timed if s.is_peer and s.checkpoint]
    if others:
        _line(axes, sorted(others), "torch.utils.checkpoint per block", "C2", "^")
    axes.set_xlabel("measured peak of a training step, MiB")
    axes.set_ylabel("step time / Inductor's")
    axes.set_title(heading, loc="left", fontsize=10)
    axes.set_xlim(left=0)
    axes.set_ylim(*_frame([row.step_ratio for _, row in timed if row.step_ratio]))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    _name(
        axes,
        {
            f"{title(strategy)} {strategy.budget}".strip(): (row.peak / MIB, row.step_ratio[1])
            for strategy, row in timed
            if strategy.is_peer and row.step_ratio and row.peak is not None
        },
    )
    _save(figure, path)
    return True


def _name(axes: Any, points: Mapping[str, tuple[float, float]]) -> None:
    """Write a name beside each point, lowest first; a name that would cover another is moved up."""
    axes.figure.draw_without_rendering()  # text has a size only after drawing
    placed: list[Any] = []
    for name, at in sorted(points.items(), key=lambda point: (point[1][1], point[0])):
        note = axes.annotate(name, at, textcoords="offset points", xytext=(6, 5), fontsize=8)
        while any(note.get_window_extent().overlaps(box) for box in placed):
            note.xyann = (6, note.xyann[1] + 1)
        placed.append(note.get_window_extent())


def _frame(ratios: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The limits of the axis of seconds: all medians, and what is near them; longer bars are cut.

    On a busy machine a quartile can be several times its median, and would flatten all others.
    """
    lower, medians, upper = zip(*ratios, strict=True)
    reach = 0.5 * (max(medians) - min(medians)) + 0.05
    bottom, top = max(min(lower), min(medians) - reach), min(max(upper), max(medians) + reach)
    margin = 0.05 * (top - bottom) or 0.05
    return bottom - margin, top + margin


def _line(
    axes: Any, points: Sequence[tuple[int, tuple[float, float, float]]], label: str, color: str, form: str
) -> None:
    """Draw medians with the quartiles as bars."""
    medians = [ratio[1] for _, ratio in points]
    down = [ratio[1] - ratio[0] for _, ratio in points]
    up = [ratio[2] - ratio[1] for _, ratio in points]
    peaks = [peak / MIB for peak, _ in points]
    axes.errorbar(peaks, medians, yerr=[down, up], fmt=form, color=color, label=label, markersize=5, elinewidth=0.8)


def peak_against_budget(models: Mapping[str, Sequence[Measurement]], heading: str, path: Path) -> bool:
    """Draw each model's measured peak at every budget, torch's and remat's. False, and no file, if there is nothing.

    Both budgets run from 0 to 1 on different scales: torch's is a share of what could be saved, remat's lies between
    floor and ceiling. Byte budgets are placed on the same scale, unless they belong to another ladder than budget 0,
    made by an earlier planner. A thin dashed line shows the planned peaks.
    """
    lines = {name: _budget_lines(rows) for name, rows in models.items()}
    drawn = {name: found for name, found in lines.items() if any(found)}
    if not drawn:
        return False
    columns = min(3, len(drawn))
    down = -(-len(drawn) // columns)
    beside = 3 if columns > 1 else 1  # entries of the legend: three are wider than one axes
    figure = matplotlib()(figsize=(4 * columns, 3.2 * down + 0.2 * (3 - beside)), layout="constrained")
    grid = figure.subplots(down, columns, squeeze=False).flatten()
    for axes, (name, (torchs, ours, planned)) in zip(grid, drawn.items(), strict=False):
        for points, label, color, form in (
            (torchs, "torch's activation_memory_budget", "C1", "s-"),
            (planned, "remat, planned", "C0", "--"),
            (ours, "remat, measured", "C0", "o-"),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), form, color=color, label=label, markersize=4, linewidth=1.2)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_ylim(bottom=0)
    for axes in grid[len(drawn) :]:
        axes.set_axis_off()
    handles = {text: handle for axes in grid for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    position = "outside lower center"
    figure.legend(list(handles.values()), list(handles), loc=position, ncols=beside, frameon=False, fontsize=8)
    for axes in grid:
        axes.set_xlabel("budget, each on its own scale", fontsize=8)  # supxlabel would cover the legend
    figure.supylabel("measured peak of a training step, MiB", fontsize=9)
    figure.suptitle(heading, fontsize=10)
    _save(figure, path)
    return True


Points = list[tuple[float, float]]


def _budget_lines(rows: Sequence[Measurement]) -> tuple[Points, Points, Points]:
    torchs, ours, planned = [], [], []
    ladder = next((_ladder(row) for row in rows if row.strategy == "remat@0"), None)
    for row in rows:
        strategy = Strategy.parse(row.strategy)
        if row.peak is None or strategy.checkpoint or strategy.runner == "eager":
            continue
        fraction = strategy.fraction
        if strategy.runner == "inductor":
            torchs.append((fraction or 0.0, row.peak / MIB))
            continue
        if fraction is None and row.floor is not None and row.ceiling is not None and strategy.nbytes is not None:
            if ladder not in (None, _ladder(row)):
                continue
            fraction = (strategy.nbytes - row.floor) / max(1, row.ceiling - row.floor)
        if fraction is not None and fraction <= 1.0:
            ours.append((fraction, row.peak / MIB))
            if row.planned_peak is not None:
                planned.append((fraction, row.planned_peak / MIB))
    return sorted(torchs), sorted(ours), sorted(planned)


def _ladder(row: Measurement) -> tuple[int | None, int | None, str]:
    """The identity of a ladder: an earlier planner may have had other plans between floor and ceiling."""
    return row.floor, row.ceiling, row.source


def _save(figure: Any, path: Path) -> None:
    form = path.suffix.lower().removeprefix(".")
    with replacing(path) as file:
        figure.savefig(file, format=form, dpi=120, metadata={"Date": None} if form == "svg" else None)
