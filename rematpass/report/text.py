"""The report as text, for a terminal or a file: the plan, memory over time, the largest values, the modules."""

from __future__ import annotations

import io
from collections.abc import Callable

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rematpass.core.solve.bound import ASSUMES
from rematpass.report.layers import Totals, clean
from rematpass.report.occupancy import ROLES, Role
from rematpass.report.reasons import Account, Fate
from rematpass.report.report import Point, Report
from rematpass.units import format_bytes, format_percent, format_seconds

_MOST_RUNGS = 24
_NARROW = 100  # columns
_FILLS = dict(zip(ROLES, "■█▓▒o░", strict=True))
_STYLES = {
    Role.OTHERS: "cyan",
    Role.SAVED: "blue",
    Role.RECOMPUTED: "yellow",
    Role.GRADIENTS: "green",
    Role.OUTPUTS: "magenta",
    Role.TEMPORARIES: "bright_black",
}
_FATE_STYLES = {Fate.SAVED: "blue", Fate.RECOMPUTED: "yellow", Fate.GRADIENT: "green", Fate.OUTPUT: "magenta"}


def to_text(report: Report, width: int = 120) -> str:
    """The report as plain text, without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    show(report, console)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def show(report: Report, console: Console, *, values: int = 20, modules: int = 20) -> None:
    """Print the report; ``values`` and ``modules`` limit the rows of the two tables."""
    console.print(Text(report.summary.graph, style="bold"))
    if origin := str(report.provenance):
        console.print(origin, highlight=False, soft_wrap=True, style="dim")
    for sentence in _headline(report):
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print()
    narrow = console.width < _NARROW
    console.print(frontier_table(report, narrow=narrow))
    console.print()
    for line in _picture(report, min(console.width - 14, 96)):
        console.print(line)
    console.print()
    console.print(_value_table(report, values, wide=console.width >= 110))
    console.print()
    console.print(_module_table(report, modules, narrow=narrow))


def _headline(report: Report) -> list[str]:
    s = report.summary
    share = s.recompute_seconds / (s.step_seconds - s.recompute_seconds or 1.0)
    lines = [
        f"budget          {s.budget}",
        f"planned peak    {format_bytes(s.planned_peak)}  (floor {format_bytes(s.floor)}, "
        f"ceiling {format_bytes(s.ceiling)}){_simulated(report)}",
        *_calls(report),
        f"saved           {s.saved_values} values of {format_bytes(s.saved_nbytes)}",
        f"recomputed      {s.recomputed_ops} ops, {format_seconds(s.recompute_seconds)} a step "
        f"(+{format_percent(share)})",
        f"a step          {format_seconds(s.step_seconds)}, by the cost model for {report.hardware}",
        *_bound(report),
        f"more memory     {report.what_more_buys()}",
        f"less memory     {report.what_less_costs()}",
    ]
    return lines + ([f"fallback        {s.fallback}"] if s.fallback else [])


def _calls(report: Report) -> list[str]:
    s = report.summary
    if s.calls == 1:
        return []
    return [f"calls           {s.calls} per step, all counted; all but one keep {format_bytes(s.nbytes_of_others)}"]


def _bound(report: Report) -> list[str]:
    s = report.summary
    if s.gap is None:
        return []
    return [
        f"proven bound    no plan under this budget takes less than {format_seconds(s.bound_seconds)}; this plan is at "
        f"most {format_percent(s.gap)} above it (proven {ASSUMES})"
    ]


def _simulated(report: Report) -> str:
    """The simulator's peak, if the compiler's exact one differs."""
    simulated, planned = report.timeline.peak, report.summary.planned_peak
    return "" if simulated == planned else f"; simulated, as all figures below: {format_bytes(simulated)}"


def _table(title: str, *columns: str, numbers: int, narrow: bool = False) -> Table:
    """A table whose last ``numbers`` columns hold numbers: right-aligned, and never cut or wrapped.

    In a narrow terminal names are folded, and titles of number columns have a line per word.
    """
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(columns):
        if i < len(columns) - numbers:
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column.replace(" ", "\n") if narrow else column, justify="right", no_wrap=True)
    return table


def frontier_table(report: Report, *, narrow: bool = False) -> Table:
    """The ladder's plans and those to compare with, highest peak first; ``narrow``: for less than 100 columns."""
    titles = ("", "peak", "step time", "to the fastest", "above the bound")
    table = _table("Frontier: peak and step time of each plan", *titles, numbers=4, narrow=narrow)
    fastest = report.frontier[0].seconds or 1.0

    def row(name: str, point: Point, style: str = "") -> None:
        slower = format_percent(point.seconds / fastest - 1)
        above = report.above_bound(point)
        proven = "" if above is None else f"+{format_percent(above)}"
        table.add_row(name, format_bytes(point.peak), format_seconds(point.seconds), f"+{slower}", proven, style=style)

    chosen = report.chosen
    others = [p for p in report.frontier if (p.peak, p.seconds) != (chosen.peak, chosen.seconds)]
    ends = report.frontier[:1] + report.frontier[-1:]
    some = others[:: -(-len(others) // _MOST_RUNGS) or 1]
    rungs = [(p, "  rung", "") for p in dict.fromkeys([*some, *(p for p in ends if p in others)])]
    points = [*rungs, *((p, p.name, "dim") for p in report.others), (chosen, "▶ this plan", "bold")]
    for point, name, style in sorted(points, key=lambda p: (-p[0].peak, p[0].seconds)):
        row(name, point, style)
    return table


def _picture(report: Report, width: int, height: int = 12) -> list[Text]:
    """Memory over time, stacked by role. A column shows the moment with the most bytes of those that it covers."""
    live = report.timeline.live
    if not live or not report.timeline.peak:
        return []
    width = min(width, len(live))
    groups = [range(c * len(live) // width, (c + 1) * len(live) // width) for c in range(width)]
    moments = [max(group, key=lambda p: live[p]) for group in groups]
    used = [k for k, sizes in enumerate(report.occupancy.by_role) if any(sizes)]
    lines = [Text("Memory over time (" + ", ".join(f"{_FILLS[ROLES[k]]} {ROLES[k].value}" for k in used) + ")", "bold")]
    peak = report.timeline.peak
    for row in range(height, 0, -1):
        label = format_bytes(peak * row // height) if row in (height, height // 2) else ""
        line = Text(f"{label:>12} ")
        for moment in moments:
            role = _role_at(report, moment, peak * (2 * row - 1) // (2 * height))
            line.append(_FILLS[role] if role else " ", style=_STYLES[role] if role else "")
        lines.append(line)
    start = next((c for c, group in enumerate(groups) if group[-1] >= report.timeline.first_backward), width)
    lines.append(Text(" " * 13 + f"{'forward':<{start}}│backward"[: max(width, start + 9)], style="dim"))
    return lines


def _role_at(report: Report, moment: int, level: int) -> Role | None:
    """The role at height ``level``, in bytes from the bottom of the stack; None above the stack."""
    for role, sizes in zip(ROLES, report.occupancy.by_role, strict=True):
        level -= sizes[moment]
        if level < 0:
            return role
    return None


def _value_table(report: Report, most: int, *, wide: bool) -> Table:
    in_memory = [a for a in report.accounts if a.in_memory]
    title = f"The largest values ({min(most, len(in_memory))} of {len(in_memory)} in memory; * at the peak)"
    table = _table(title, "value", "bytes", *["type"] * wide, "module", "fate and reason", numbers=0)
    table.columns[1].justify, table.columns[1].no_wrap = "right", True
    for account in in_memory[:most]:
        value, nbytes, type_, module, reason = _cells(report, account)
        cells = (value, nbytes, *[type_] * wide, module, reason)
        table.add_row(*cells, style=_FATE_STYLES.get(account.fate, ""))
    return table


def _cells(report: Report, account: Account) -> tuple[str, ...]:
    value, producer = report.graph.values[account.value], report.graph.producer[account.value]
    op = None if producer is None else report.graph.ops[producer]
    star = "*" if account.at_peak else " "
    return (
        f"{star} {value.name}",
        format_bytes(value.nbytes),
        f"{value.dtype}[{', '.join(value.shape)}]",
        clean(op.module) if op else "",
        account.reason,
    )


def _module_table(report: Report, most: int, *, narrow: bool) -> Table:
    """The outermost modules, in the model's order; a narrow table leaves out gradients and recompute seconds."""
    shown = _outermost(report.modules, most)
    title = f"Totals per module ({len(shown)} of {len(report.modules)})"
    columns: dict[str, Callable[[Totals], str]] = {
        "saved": lambda m: format_bytes(m.saved_nbytes),
        "recomputed": lambda m: format_bytes(m.recomputed_nbytes),
        "gradients": lambda m: format_bytes(m.gradient_nbytes),
        "at the peak": lambda m: format_bytes(m.peak_nbytes),
        "recompute": lambda m: format_seconds(m.recompute_seconds),
    }
    if narrow:
        del columns["gradients"], columns["recompute"]
    table = _table(title, "module", *columns, numbers=len(columns), narrow=narrow)
    for m in shown:
        depth = m.path.count(".") + 1 if m.path else 0
        indent = "  " * min(depth, 1 if narrow else depth)
        table.add_row(indent + (m.path or "the whole graph"), *(cell(m) for cell in columns.values()))
    return table


def _outermost(modules: tuple[Totals, ...], most: int) -> list[Totals]:
    """As many levels of the tree as fit into ``most`` rows, but at least the two outermost levels."""

    def level(m: Totals) -> int:
        return m.path.count(".") + 1 if m.path else 0

    deepest = max((level(m) for m in modules), default=0)
    for depth in range(deepest, 1, -1):
        shown = [m for m in modules if level(m) <= depth]
        if len(shown) <= most:
            return shown
    return [m for m in modules if level(m) <= 1]
