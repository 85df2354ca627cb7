"""Totals per module of the model: the bytes of its values and the seconds of its ops, inner modules included."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from rematpass.core.cost import Costs
from rematpass.core.graph import JointGraph
from rematpass.core.op import Side
from rematpass.core.schedule import Plan
from rematpass.report.occupancy import Occupancy
from rematpass.report.reasons import Account, Fate

NO_MODULE = "(outside of modules)"


@dataclass
class Totals:
    """One module and everything inside it; ``path`` is empty for the whole graph. Bytes and seconds of one step.

    ``recomputed_nbytes``: values that are recomputed instead of saved; ``peak_nbytes``: the part of the peak.
    """

    path: str
    ops: int = 0
    forward_seconds: float = 0.0
    saved_nbytes: int = 0
    recomputed_nbytes: int = 0
    recompute_seconds: float = 0.0
    gradient_nbytes: int = 0
    peak_nbytes: int = 0

    def add(self, other: Totals) -> None:
        for f in fields(self):
            if f.name != "path":
                setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass
class _Table:
    rows: dict[str, Totals] = field(default_factory=dict)

    def row(self, path: str) -> Totals:
        return self.rows.setdefault(path, Totals(path))


def clean(module: str) -> str:
    """A module's path without the prefix that Dynamo adds: ``[0].model.norm`` becomes ``model.norm``."""
    return re.sub(r"^(\[\d+\])+\.?|^_orig_mod\.?", "", module)


def ancestors(path: str) -> Iterable[str]:
    """The path and every enclosing module, innermost first: a.b.c, a.b, a, and the empty path for the whole graph."""
    while path:
        yield path
        path = "" if path == NO_MODULE else path.rpartition(".")[0]
    yield ""


def totals(
    graph: JointGraph, plan: Plan, costs: Costs, fates: Sequence[Account], occupancy: Occupancy, peak_at: int
) -> list[Totals]:
    """A row per module: the whole graph, then the modules in the order in which forward enters them."""
    own = _Table()

    def of_op(op: int | None) -> Totals:
        return own.row((clean(graph.ops[op].module) if op is not None else "") or NO_MODULE)

    def of_value(value: int) -> Totals:
        return of_op(graph.producer[value])

    for op in graph.ops:
        row = of_op(op.id)
        row.ops += 1
        if graph.sides[op.id] is Side.FORWARD:
            row.forward_seconds += costs.run[op.id]
    for run in plan.recomputed():
        of_op(run.op).recompute_seconds += costs.run[run.op]
    for account in fates:
        nbytes = graph.values[account.value].nbytes
        row = of_value(account.value)
        if account.fate is Fate.SAVED and graph.producer[account.value] is not None:
            row.saved_nbytes += nbytes
        elif account.fate is Fate.RECOMPUTED and account.value in graph.backward_reads:
            row.recomputed_nbytes += nbytes
        elif account.fate is Fate.GRADIENT:
            row.gradient_nbytes += nbytes
    for occupant in occupancy.at(peak_at):
        of_value(occupant.value).peak_nbytes += occupant.nbytes
    found = _Table()
    for path, row in own.rows.items():
        for ancestor in ancestors(path):
            found.row(ancestor).add(row)
    return [found.row(path) for path in _in_tree_order(own.rows)]


def _in_tree_order(paths: Iterable[str]) -> list[str]:
    """The paths and their ancestors in depth-first order; siblings keep the order of ``paths``."""
    children: dict[str, dict[str, None]] = {"": {}}
    for path in paths:
        inner, *around = ancestors(path)
        for outer in around:
            children.setdefault(outer, {})[inner] = None
            inner = outer
    order, todo = [], [""]
    while todo:
        order.append(path := todo.pop())
        todo += reversed(children.get(path, {}))
    return order
