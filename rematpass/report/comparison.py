"""Measurements as a table: the cells of each row, and the table in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rematpass.report.measurement import FAILED, INFEASIBLE, Measurement, Strategy
from rematpass.units import format_bytes, format_percent, format_seconds

NOT_MEASURED = "not measured"
OF_BLOCKS = "Blocks are compiled one by one: planned bytes cover the blocks only, measured bytes the whole step."
TITLES = {
    "eager": "eager",
    "eager+checkpoint": "eager, checkpointed",
    "inductor": "Inductor",
    "inductor+checkpoint": "Inductor, checkpointed",
}


@dataclass(frozen=True)
class Column:
    """``cell(strategy, row)``: the text for a measured row; "" if the strategy has no such figure."""

    title: str
    cell: Callable[[Strategy, Measurement], str]


def _bytes(nbytes: int | None) -> str:
    return NOT_MEASURED if nbytes is None else format_bytes(nbytes)


def seconds_text(seconds: float | None) -> str:
    """Seconds as the text of a cell."""
    return NOT_MEASURED if seconds is None else format_seconds(seconds)


def budget_text(strategy: Strategy) -> str:
    """The budget as the text of a cell."""
    return format_bytes(strategy.nbytes) if strategy.nbytes is not None else strategy.budget


def _planned(strategy: Strategy, row: Measurement) -> str:
    if strategy.is_peer:
        return ""
    return "no plan" if row.planned_peak is None else format_bytes(row.planned_peak)


def ratio_text(row: Measurement, missing: str = NOT_MEASURED) -> str:
    """The step time relative to Inductor's, with its quartiles, as the text of a cell."""
    if row.step_ratio is None:
        return missing
    lower, median, upper = row.step_ratio
    return f"{median:.2f} ({lower:.2f}-{upper:.2f})"


def recomputed(strategy: Strategy, row: Measurement) -> str:
    """The share of forward that ran again, as the text of a cell."""
    return NOT_MEASURED if row.recomputed_share is None else format_percent(row.recomputed_share)


def gradients_text(row: Measurement, missing: str = NOT_MEASURED, reference: str = "reference") -> str:
    """The error of the gradients as the text of a cell; a star if Inductor's are the reference."""
    star = " *" if row.gradient_reference == "Inductor" else ""
    if row.gradient_error is None:
        return f"{reference}{star}" if star else missing
    return f"{row.gradient_error:.0e}{star}"


def _compile(strategy: Strategy, row: Measurement) -> str:
    if strategy.runner == "eager":
        return ""
    return "as above" if row.same_plan_as else seconds_text(row.compile_seconds)


COLUMNS = (
    Column("budget", lambda strategy, _: budget_text(strategy)),
    Column("planned", _planned),
    Column("measured", lambda _, row: _bytes(row.peak)),
    Column("less gradients", lambda _, row: _bytes(row.peak_less_gradients)),
    Column("step / Inductor", lambda _, row: ratio_text(row)),
    Column("saved", lambda _, row: _bytes(row.saved)),
    Column("recomputed", recomputed),
    Column("gradients off", lambda _, row: gradients_text(row)),
    Column("compile", _compile),
    Column("plan", lambda s, row: "" if s.is_peer else seconds_text(row.planning_seconds)),
)
PEAK_OTHER = Column("peak of others", lambda _, row: _bytes(row.peak_other))
WITH_OTHERS = (*COLUMNS[:4], PEAK_OTHER, *COLUMNS[4:])
MEASURED_AT = 2  # the column in which a row without measurements gives the reason


def title(strategy: Strategy) -> str:
    """The strategy in words, without its budget, which has its own column."""
    if not strategy.is_peer:
        return "└ remat in as many bytes" if strategy.like else "remat"
    return TITLES.get(strategy.name.partition("@")[0], strategy.name)


def cells(
    strategies: Sequence[Strategy], rows: Mapping[str, Measurement], columns: Sequence[Column] = COLUMNS
) -> tuple[list[list[str]], list[str]]:
    """The texts of every row, and notes. ``rows``: by the strategy's name; a row may be missing."""
    texts = []
    for strategy in strategies:
        row = rows.get(strategy.name)
        if row is None:
            texts.append([title(strategy), budget_text(strategy), *[NOT_MEASURED] * (len(columns) - 1)])
        elif row.status in (FAILED, INFEASIBLE):
            line = [""] * len(columns)
            line[0] = budget_text(strategy)
            line[MEASURED_AT] = row.error if row.status == INFEASIBLE else "failed"
            texts.append([title(strategy), *line])
        else:
            texts.append([title(strategy), *(column.cell(strategy, row) for column in columns)])
    return texts, notes(strategies, rows)


def notes(strategies: Sequence[Strategy], rows: Mapping[str, Measurement]) -> list[str]:
    """One line for each failure, fallback, and condition of the figures."""
    found = []
    for strategy in strategies:
        if (row := rows.get(strategy.name)) is None:
            continue
        name = f"{title(strategy)} {budget_text(strategy)}".strip()
        if row.status == FAILED:
            found.append(f"{name} failed: {row.error}")
        elif row.fallback:
            found.append(f"{name}: the planner fell back: {row.fallback}")
    return found + _on_outputs(rows.values()) + _on_gradients(list(rows.values()))


def _on_outputs(rows: Iterable[Measurement]) -> list[str]:
    if not any(row.drops_outputs for row in rows):
        return []
    return ["byte budgets are set with REMAT_HOLD_OUTPUTS=0: a step returns its loss and drops forward's other outputs"]


def _on_gradients(rows: Sequence[Measurement]) -> list[str]:
    if all(row.gradient_reference != "Inductor" for row in rows):
        return []
    return ["* compared with plain Inductor and its seed: dropout draws different numbers in a compiled model"]


def markdown(
    strategies: Sequence[Strategy], rows: Mapping[str, Measurement], columns: Sequence[Column] = WITH_OTHERS
) -> str:
    """The rows as a Markdown table, with the notes below it as a list."""
    texts, listed = cells(strategies, rows, columns)
    made = markdown_table(["", *(column.title for column in columns)], texts)
    return made + "".join(f"\n- {note}" for note in listed) + ("\n" if listed else "")


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A Markdown table whose first ``left`` columns are left-aligned."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    rows = ("| " + " | ".join(text.replace("|", "/") for text in line) + " |" for line in (header, rule, *lines))
    return "\n".join(rows) + "\n"


def same_peak(strategies: Sequence[Strategy], rows: Mapping[str, Measurement]) -> list[str]:
    """For each peer whose measured peak was remat's budget: one sentence that compares bytes and seconds."""
    found = []
    for strategy in strategies:
        ours, theirs = rows.get(strategy.name), rows.get(strategy.like)
        if not strategy.like or theirs is None or theirs.peak is None or ours is None:
            continue
        peer = f"{title(Strategy.parse(strategy.like))} {Strategy.parse(strategy.like).budget}".strip()
        given = f"Given the {format_bytes(theirs.peak)} of {peer}, remat"
        if ours.peak is None:
            found.append(f"{given} has no plan: {ours.error or ours.status}.")
            continue
        times = ""
        if ours.step_ratio and theirs.step_ratio:
            times = f" and {ours.step_ratio[1] / theirs.step_ratio[1]:.2f} times its seconds"
        over = "" if ours.peak <= theirs.peak else f" ({format_bytes(ours.peak - theirs.peak)} over the budget)"
        found.append(f"{given} takes {format_bytes(ours.peak)}{over}{times}.")
    return found
