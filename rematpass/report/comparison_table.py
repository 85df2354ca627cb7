"""Measurements in tables for a terminal. Numbers are never cut: columns that do not fit go to a further table.

All bytes have one unit, which the column's title names. Columns in which no row has a figure are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from rematpass.report.comparison import budget_text, gradients_text, notes, ratio_text, recomputed, title
from rematpass.report.measurement import INFEASIBLE, MEASURED, Measurement, Strategy
from rematpass.units import BYTE_UNITS, format_bytes

NO_FIGURE = "-"
WIDEST_NAME = 22


@dataclass(frozen=True)
class _Column:
    """A title, which may have several lines, and the cell of each row."""

    title: str
    cells: list[str]

    @property
    def width(self) -> int:
        return max(len(line) for text in (self.title, *self.cells) for line in text.splitlines() or [""])


def tables(
    strategies: Sequence[Strategy], rows: Mapping[str, Measurement], width: int
) -> tuple[list[Table], list[str]]:
    """Tables of at most ``width`` columns of text, and notes to print below them. ``rows``: by the strategy's name."""
    names = _Column("", [_short_title(strategy) for strategy in strategies])
    name_width = min(names.width, WIDEST_NAME, max(8, width // 3))
    made = []
    for columns in _pieces(_columns(strategies, rows), width - name_width):
        table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
        table.add_column("", width=name_width, overflow="fold")
        for column in columns:
            table.add_column(column.title, justify="right", no_wrap=True, min_width=column.width)
        for line in zip(names.cells, *(column.cells for column in columns), strict=True):
            table.add_row(*line)
        made.append(table)
    below = [
        f"{_short_title(s).removeprefix('└ ')} {budget_text(s)}: no plan: {row.error}"
        for s in strategies
        if (row := rows.get(s.name)) is not None and row.status == INFEASIBLE and not s.like
    ]
    return made, [*below, *notes(strategies, rows)]


def gradients_note(rows: Mapping[str, Measurement]) -> str:
    """One line on the gradients' share of the peaks; empty if nothing was measured."""
    found = {row.gradients for row in rows.values() if row.gradients is not None}
    return f"Each peak includes {format_bytes(max(found))} of parameter gradients." if found else ""


def _columns(strategies: Sequence[Strategy], rows: Mapping[str, Measurement]) -> list[_Column]:
    unit = _common_unit(rows)

    def column(title: str, cell: Callable[[Strategy, Measurement], str]) -> _Column:
        measured = {s: rows[s.name] for s in strategies if s.name in rows and rows[s.name].status == MEASURED}
        return _Column(title, [cell(s, measured[s]) if s in measured else NO_FIGURE for s in strategies])

    found = [
        _Column("budget", [budget_text(strategy) for strategy in strategies]),
        column(f"planned\n{unit}", lambda s, row: "" if s.is_peer else _in_unit(row.planned_peak, unit)),
        _Column(f"measured\n{unit}", [_measured(rows.get(s.name), unit) for s in strategies]),
        column("step /\nInductor", lambda _, row: ratio_text(row, NO_FIGURE)),
        column("recom-\nputed", lambda _, row: NO_FIGURE if row.recomputed_share is None else recomputed(_, row)),
        column("gradients\noff by", lambda _, row: gradients_text(row, NO_FIGURE, "ref.")),
        column("compile", _compile),
        column("plan-\nning", lambda s, row: "" if s.is_peer else _seconds(row.planning_seconds)),
    ]
    return [column for column in found if set(column.cells) - {NO_FIGURE, ""}]


def _pieces(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in groups, each as wide as fits; a column that is wider than ``width`` has a group of its own."""
    groups: list[list[_Column]] = []
    left = 0
    for column in columns:
        if not groups or column.width + 1 > left:
            groups.append([])
            left = width
        groups[-1].append(column)
        left -= column.width + 1
    return groups


def _short_title(strategy: Strategy) -> str:
    return "└ remat, same bytes" if strategy.like else title(strategy)


def _common_unit(rows: Mapping[str, Measurement]) -> str:
    """The unit of the largest peak."""
    largest = max((max(row.peak or 0, row.planned_peak or 0) for row in rows.values()), default=0)
    return format_bytes(largest).rpartition(" ")[2]


def _in_unit(nbytes: int | None, unit: str) -> str:
    if nbytes is None:
        return NO_FIGURE
    return str(nbytes) if unit == "B" else f"{nbytes / BYTE_UNITS[unit]:.2f}"


def _measured(row: Measurement | None, unit: str) -> str:
    if row is None:
        return NO_FIGURE
    if row.status != MEASURED:
        return "no plan" if row.status == INFEASIBLE else "failed"
    return _in_unit(row.peak, unit)


def _compile(strategy: Strategy, row: Measurement) -> str:
    if strategy.runner == "eager":
        return ""
    return "as above" if row.same_plan_as else _seconds(row.compile_seconds)


def _seconds(seconds: float | None) -> str:
    return NO_FIGURE if seconds is None else f"{seconds:.1f} s"
