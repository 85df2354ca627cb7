"""The summary of a planned graph, its log line, and the error message for an infeasible budget."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from rematpass.budget import Budget
from rematpass.core.frontier import Ladder, least_budget
from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Origin, Side
from rematpass.core.simulate import LiveInterval, Timeline
from rematpass.core.solve.ladder import Rung
from rematpass.core.solve.problem import Problem
from rematpass.core.solve.unavoidable import UnavoidableBytes
from rematpass.units import format_bytes, format_percent, format_seconds


@dataclass(frozen=True)
class Summary:
    """The decision for one graph. Bytes are integers; seconds are those of the cost model.

    ``budget_nbytes``: the peak that the budget allows; None without a budget. ``planned_peak``: according to Inductor
    if ``exact``, else simulated. ``peak_without_outputs``: the same if the caller drops forward's outputs before
    backward starts (``loss = model(batch).loss`` drops the logits). ``dry_run_seconds``: the time for asking Inductor,
    which ``planning_seconds`` excludes. ``fallback``: why the planner's own plan was not used; empty if it was.
    ``saved_values``, ``saved_nbytes``: what forward computes and saves. Saved inputs and parameters are not counted:
    they exist before the step, so they are not part of the peak either.

    ``sizes``: the sizes assumed for symbols; ``peak_formula``: the simulated peak of one call as a formula of the
    symbols, for the moment that has the peak at these sizes. Both are empty if all sizes are static.

    ``bound_seconds``: a proven lower bound on the seconds of a step under this budget (``core/solve/bound.py`` states
    the assumptions); 0 if nothing is proven. ``holds_outputs``: whether forward's outputs count in backward. ``calls``:
    how often a step calls the graph before its backward. Budget and peaks cover all calls; ``nbytes_of_others`` is the
    part of the planned peak that all calls but one have saved. ``kept``: for each reason why an op runs only once, the
    bytes of its saved results; the reasons name the options that allow more.
    """

    graph: str
    solver: str
    budget: str
    budget_nbytes: int | None
    planned_peak: int
    peak_without_outputs: int
    exact: bool
    floor: int
    ceiling: int
    saved_values: int
    saved_nbytes: int
    recomputed_ops: int
    recompute_seconds: float
    step_seconds: float
    recomputed_flops: int
    forward_flops: int
    planning_seconds: float
    dry_run_seconds: float
    plan_hash: str
    fallback: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    peak_formula: str = ""
    bound_seconds: float = 0.0
    holds_outputs: bool = True
    calls: int = 1
    nbytes_of_others: int = 0
    kept: tuple[tuple[str, int], ...] = ()

    @property
    def gap(self) -> float | None:
        """The distance to the proven bound, as a share of the bound; None if nothing is proven."""
        return max(0.0, self.step_seconds / self.bound_seconds - 1) if self.bound_seconds else None

    def line(self) -> str:
        """The log line."""
        share = self.recompute_seconds / (self.step_seconds - self.recompute_seconds or 1.0)
        return (
            f"{self.graph}: budget {self.budget}, planned peak {format_bytes(self.planned_peak)} "
            f"{self._of_calls()}{self._without_outputs()}"
            f"(floor {format_bytes(self.floor)}, ceiling {format_bytes(self.ceiling)}), "
            f"saves {self.saved_values} values of {format_bytes(self.saved_nbytes)}{self._of_them()}, "
            f"recomputes {self.recomputed_ops} ops (+{format_percent(share)} of step seconds), {self._above_bound()}"
            f"plan {self.plan_hash} by {self.solver} in {format_seconds(self.planning_seconds)}"
            + (f"; fallback: {self.fallback}" if self.fallback else "")
        )

    def _of_them(self) -> str:
        """Of the saved bytes, those that no plan recomputes, if they are more than a hundredth of the peak."""
        if self.budget_nbytes is None:
            return ""
        parts = _much(self.kept, self.planned_peak)
        return f" (forbidden to recompute: {'; '.join(parts)})" if parts else ""

    def _above_bound(self) -> str:
        return "" if self.gap is None else f"at most {format_percent(self.gap)} above the proven bound, "

    def _of_calls(self) -> str:
        if self.calls == 1:
            return ""
        each = format_bytes(self.nbytes_of_others // (self.calls - 1))
        return f"for {self.calls} calls that keep {each} each, "

    def _without_outputs(self) -> str:
        if not self.holds_outputs:
            return "with forward's outputs dropped "
        if self.peak_without_outputs > 0.99 * self.planned_peak:
            return ""
        dropped = format_bytes(self.peak_without_outputs)
        return f"or {dropped} if forward's outputs are dropped (REMAT_HOLD_OUTPUTS=0 plans for that) "


def summarize(
    graph: JointGraph,
    ladder: Ladder,
    rung: Rung,
    *,
    budget: Budget,
    limit: int | None,
    peaks: tuple[int, int],
    exact: bool,
    planning_seconds: float,
    dry_run_seconds: float,
    plan_hash: str,
    fallback: str = "",
    bound_seconds: float = 0.0,
    ends: tuple[int, int] | None = None,
) -> Summary:
    """Summarize ``rung``, chosen from ``ladder`` for ``graph``.

    ``peaks``: with and without forward's outputs. ``ends``: floor and ceiling according to the compiler; if None, the
    simulated ones.
    """
    floor, ceiling = ends or (ladder.floor, ladder.ceiling)
    made = [v for v in rung.plan.saved if graph.values[v].origin is Origin.OP]
    again = list(rung.plan.recomputed())
    return Summary(
        graph=graph.name,
        solver=rung.plan.solver,
        budget=str(budget),
        budget_nbytes=limit,
        planned_peak=peaks[0],
        peak_without_outputs=peaks[1],
        exact=exact,
        floor=floor,
        ceiling=ceiling,
        saved_values=len(made),
        saved_nbytes=sum(graph.values[v].nbytes for v in made),
        recomputed_ops=len(again),
        recompute_seconds=rung.timeline.recompute_seconds,
        step_seconds=rung.seconds,
        recomputed_flops=sum(graph.ops[run.op].flops for run in again),
        forward_flops=sum(op.flops for op in graph.ops if graph.sides[op.id] is Side.FORWARD),
        planning_seconds=planning_seconds,
        dry_run_seconds=dry_run_seconds,
        plan_hash=plan_hash,
        fallback=fallback,
        sizes=graph.hints,
        peak_formula=peak_formula(graph, rung.timeline) if graph.hints else "",
        bound_seconds=bound_seconds,
        holds_outputs=graph.holds_outputs,
        calls=graph.calls,
        nbytes_of_others=rung.timeline.nbytes_of_others,
        kept=_kept(graph, rung),
    )


def _kept(graph: JointGraph, rung: Rung) -> tuple[tuple[str, int], ...]:
    """The saved bytes that are forbidden to recompute, by reason, most bytes first.

    A value is, if its op may run only once, or one of the ops that would have to run again before it.
    """
    found: dict[str, int] = {}
    saved = frozenset(rung.plan.saved)
    for value in saved:
        if why := _why_kept(graph, value, saved):
            found[why] = found.get(why, 0) + graph.values[value].nbytes
    return tuple(sorted(found.items(), key=lambda item: -item[1]))


def _much(kept: Iterable[tuple[str, int]], peak: int) -> list[str]:
    """The bytes and reasons of ``kept`` that take more than a hundredth of ``peak``."""
    return [f"{format_bytes(nbytes)}: {why}" for why, nbytes in kept if nbytes > 0.01 * peak]


def _why_kept(graph: JointGraph, value: int, saved: frozenset[int]) -> str:
    """Why the value cannot be recomputed from the other saved values; "" if it can."""
    seen, todo = {value}, [value]
    while todo:
        producer = graph.producer[todo.pop()]
        if producer is None:
            continue
        if why := graph.ops[producer].never_recompute:
            return why
        todo += [v for v in graph.ops[producer].reads if v not in seen and v not in saved]
        seen.update(graph.ops[producer].reads)
    return ""


def peak_formula(graph: JointGraph, timeline: Timeline) -> str:
    """The bytes at the peak as a formula of the symbolic sizes, such as ``20*s77 + 140``."""
    return total(graph.values[interval.value].nbytes_expr for interval in timeline.at_peak())


def total(terms: Iterable[str]) -> str:
    """The sum of formulas. Terms that differ only by an integer factor are combined: ``20*s0 + 4*s0`` is ``24*s0``.

    Any term but a product of a number and symbols stays as it is, in parentheses: ``2*(4*s0 + 12)``.
    """
    counted: dict[str, int] = {}
    for term in terms:
        factor, _, rest = term.partition("*")
        if factor.isdecimal() and re.fullmatch(r"[\w*]*", rest):
            counted[rest] = counted.get(rest, 0) + int(factor)
        else:
            rest = term if term.isidentifier() else f"({term})"
            counted[rest] = counted.get(rest, 0) + 1
    written = [f"{n}*{rest}" if n > 1 else rest for rest, n in sorted(counted.items()) if rest]
    return " + ".join(written + [str(n) for rest, n in counted.items() if not rest and n]) or "0"


def infeasible(problem: Problem, lowest: Rung, floor: int, limit: int, device: str = "") -> str:
    """The error message if no plan stays under ``limit`` bytes.

    It states the floor, the largest values at its peak, the bytes that no plan avoids, and what to try. ``device``:
    the device that the budget is for; empty: the graph's own.
    """
    graph = problem.graph
    largest = lowest.timeline.at_peak()[:5]
    enough = format_bytes(least_budget(floor, device or graph.device), round_up=True).replace(" ", "")
    return (
        f"{graph.name}: no plan stays under {format_bytes(limit)}; the lowest peak is {format_bytes(floor)} "
        f"with at most {problem.max_recompute:g} extra forwards of recompute. The largest values at that moment:\n"
        + _saved_by_others(graph, lowest.timeline)
        + "".join(f"  {format_bytes(t.nbytes)}  {describe(graph, t)}\n" for t in largest)
        + _forbidden(graph, lowest, floor)
        + _unavoidable(problem, floor)
        + f"Try memory_budget={enough} or more, "
        "a smaller batch, or REMAT_MAX_RECOMPUTE=2." + _if_dropped(lowest.timeline) + _of_regions(graph)
    )


def _saved_by_others(graph: JointGraph, timeline: Timeline) -> str:
    if graph.calls == 1:
        return ""
    return f"  {format_bytes(timeline.nbytes_of_others)}  saved by {graph.calls - 1} other calls of the same step\n"


def _forbidden(graph: JointGraph, lowest: Rung, floor: int) -> str:
    """What is saved because it must not run again, and which option allows it, if that takes much of the peak."""
    return "".join(f"Saved, and forbidden to recompute: {part}.\n" for part in _much(_kept(graph, lowest), floor))


def _if_dropped(timeline: Timeline) -> str:
    """What to try if forward's outputs take much of the peak."""
    if timeline.peak_without_outputs > 0.99 * timeline.peak:
        return ""
    return " Forward's outputs are counted; if the caller drops them before backward, set REMAT_HOLD_OUTPUTS=0."


def _of_regions(graph: JointGraph) -> str:
    """What to try if regions of the graph were planned before it, each without knowledge of the rest."""
    if not any(op.name.startswith("invoke_subgraph") for op in graph.ops):
        return ""
    return (
        " Regions that are compiled once (nested_compile_region) are planned separately, and each may use the whole "
        "byte budget; a fraction, such as memory_budget=0.3, applies to each region and to the rest."
    )


def _unavoidable(problem: Problem, floor: int) -> str:
    """The bytes that every plan holds at one moment, which only a smaller batch or model can reduce."""
    nbytes, op = UnavoidableBytes(problem.graph, problem.fuse).working_set()
    if not 0 < nbytes <= floor:  # Inductor may need less than the simulator knows
        return ""
    return f"Every plan takes {format_bytes(nbytes)}, {f'in {op.name}{_where(op)}' if op else 'after forward'}.\n"


def describe(graph: JointGraph, interval: LiveInterval) -> str:
    """A value in words: its name, type, shape, and the user's code that creates it."""
    value, producer = graph.values[interval.value], graph.producer[interval.value]
    where = "" if producer is None else _where(graph.ops[producer])
    again = f", recomputed copy {interval.copy}" if interval.copy else ""
    return f"{value.name} {value.dtype}[{', '.join(value.shape)}]{again}{where}"


def _where(op: Op) -> str:
    return "".join(f", {what} {text}" for what, text in (("module", op.module), ("at", op.source)) if text)
