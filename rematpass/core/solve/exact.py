"""The oracle: the fastest plan under a peak, proven optimal, for graphs of some tens of ops.

A constraint solver (OR-tools' CP-SAT) decides everything at once. Backward's own ops keep their order, mutations last,
as for the planner. Before each of them, and once more at the end, lies a *stage*: a pass over the ops that backward may
recompute, in their order, in which each runs or does not::

        forward │ stage 0  own op 0 │ stage 1  own op 1 │ ... │ last stage │

The variables, each 0 or 1 (``cp_sat_variables.Variables``):

- ``save[v]``: forward hands value v over. An input that backward reads is saved too, but takes no bytes.
- ``early[o]``: an op of neither side runs in forward. Forward's own ops always do.
- ``again[s, o]``: op o runs in stage s.
- ``carried[s, v]``: v is in memory when stage s begins; ``carried[0, v] = save[v]``.

The constraints, each with the method of ``cp_sat_model.ScheduleModel`` that adds it:

- What is saved is computed in forward, from what is computed there (``_compute_what_is_saved``).
- ``carried[s + 1, v] <= carried[s, v] + again[s, producer of v] <= 1``: a value is carried on from where it is, and
  what a stage recomputes was dropped before (``_carry``).
- ``again[s, o] <= carried[s, v] + again[s, producer of v]`` for each v that o reads: a run has its arguments. The same
  holds for own ops and for the gradients (``_provide_arguments``).
- What must run once does, and what backward has overwritten is not read (``_run_once``).
- At each run, the bytes alive are at most the limit (``_limit_peaks``). A value is alive at position k of a stage if it
  was carried there, or made at or before k, and is read at k or later, or carried on::

        alive[s, k, v] >= again[s, o]  for every o >= k that reads v,     alive[s, k, v] >= carried[s + 1, v]

The objective is the sum of ``run`` seconds of all runs and ``keep[v] save[v]`` (``_minimize_seconds``). Bytes are those
of ``simulate`` with ``fuse=False``, each op by itself. With ``passes=2``, each stage has two passes, so that a value
can be computed twice for the same own op.

Source: the stages are Checkmate's (Jain et al., MLSys 2020, arXiv 1910.02653), one per own op of backward instead of
one per op, since forward runs once; ops of a stage keep their order there too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from rematpass.core.op import Origin
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.core.simulate import simulate
from rematpass.core.solve.cp_sat_model import ScheduleModel
from rematpass.core.solve.cp_sat_variables import Literal
from rematpass.core.solve.effort import DEFAULT_EFFORT
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import PlanError

Copy = tuple[int, int]  # (value, number of the copy)


@dataclass(frozen=True)
class Exact:
    """What the oracle found.

    ``plan``: the best plan; None if there is none, or none was found in the time allowed. ``seconds``: of a step with
    ``plan``, infinite without one. ``least``: no plan takes fewer seconds; infinite if there is no plan. ``optimal``:
    whether ``seconds`` and ``least`` are proven to be equal.
    """

    plan: Plan | None
    seconds: float
    least: float
    optimal: bool


def exact(
    problem: Problem,
    peak: int,
    *,
    max_recompute: float = math.inf,
    passes: int = 1,
    deterministic_time: float = DEFAULT_EFFORT.exact_deterministic_time,
) -> Exact:
    """The fastest plan with a peak of at most ``peak`` bytes, by ``simulate`` with ``fuse=False``.

    ``max_recompute``: the most that backward may recompute, in forwards. ``passes``: how often an op may run between
    two own ops of backward. ``deterministic_time``: when to stop with the best plan so far, in CP-SAT's deterministic
    time, which passes at about one unit per second and is the same on every machine.

    Raises:
        PlanError: the plan does not have the peak and the seconds that the solver claims, which is a bug here.
    """
    model = ScheduleModel(problem, peak, passes)
    if max_recompute < math.inf:
        model.limit_recompute(max_recompute * problem.forward_seconds * (1 + 1e-9))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = deterministic_time
    status = solver.solve(model.sat)
    if status == cp_model.INFEASIBLE:
        return Exact(None, math.inf, math.inf, optimal=True)
    least = model.seconds(solver.best_objective_bound)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Exact(None, math.inf, least, optimal=False)
    plan = _plan(model, solver)
    verify(problem.graph, plan)
    timeline = simulate(problem.graph, plan, problem.costs, fuse=False)
    claimed = model.seconds(solver.objective_value)
    if timeline.peak > peak or not math.isclose(timeline.step_seconds, claimed, rel_tol=1e-6, abs_tol=1e-12):
        raise PlanError(
            f"the exact solver claims {claimed} seconds under {peak} bytes for {problem.graph.name or 'a graph'}, "
            f"the simulator finds {timeline.step_seconds} seconds and {timeline.peak} bytes"
        )
    if status == cp_model.OPTIMAL:
        return Exact(plan, timeline.step_seconds, timeline.step_seconds, optimal=True)  # free of scaling errors
    return Exact(plan, timeline.step_seconds, min(least, timeline.step_seconds), optimal=False)


def _plan(model: ScheduleModel, solver: cp_model.CpSolver) -> Plan:
    """The plan that the solver has chosen."""

    def holds(literal: Literal) -> bool:
        return bool(literal) if isinstance(literal, int) else bool(solver.boolean_value(literal))

    graph = model.graph
    forward = [Run(op) for op, early in model.early.items() if holds(early)]
    times = dict.fromkeys((run.op for run in forward), 1)
    backward: list[Run] = []
    for stage, own in enumerate(model.stages):
        chosen = [op for op in model.early if holds(model.again[stage, op])]
        for op in [*chosen, own.id] if own else chosen:
            backward.append(Run(op, times.get(op, 0)))
            times[op] = times.get(op, 0) + 1
    saved = _read(model, backward, {v for v, literal in model.save.items() if holds(literal)})
    returned = saved & model.outputs
    kept = {(v, 0) for v in saved if v in returned or graph.values[v].origin is Origin.STATIC}
    for v in set(graph.bwd_outputs) - returned:
        producer = graph.producer[v]
        kept.add((v, 0 if producer is None else times[producer] - 1))
    handed_over = {(v, 0) for v in saved.union(graph.fwd_outputs)}
    return Plan(
        "exact",
        tuple(sorted(saved)),
        _with_drops(forward, _last_uses(model, forward, (), frozenset()), handed_over),
        _with_drops(backward, _last_uses(model, backward, [*saved, *graph.tangents], frozenset(returned)), kept),
    )


def _read(model: ScheduleModel, backward: Sequence[Run], saved: set[int]) -> set[int]:
    """The values of ``saved`` that backward reads or returns; saving more may cost no seconds, but it takes bytes."""
    made: set[int] = set()
    read = saved & model.outputs
    for run in backward:
        read.update(v for v in model.graph.touched[run.op] if v not in made)
        made.update(model.graph.ops[run.op].writes)
    return saved & (read | (set(model.graph.bwd_outputs) - made))


def _last_uses(
    model: ScheduleModel, runs: Sequence[Run], available: Sequence[int], returned: frozenset[int]
) -> dict[Copy, int]:
    """For each copy that is ``available`` at the start or made by ``runs``, the last position that uses it.

    Readers of a value in ``returned`` read its first copy, which the caller holds.
    """
    ends = {(v, 0): 0 for v in available}
    newest = dict.fromkeys(available, 0)
    for position, run in enumerate(runs):
        for v in model.graph.touched[run.op]:
            if v in newest:
                ends[v, newest[v]] = position
        for v in model.graph.ops[run.op].writes:
            ends[v, run.copy] = position
            if v not in returned:
                newest[v] = run.copy
    return ends


def _with_drops(runs: Sequence[Run], ends: dict[Copy, int], kept: set[Copy]) -> tuple[Step, ...]:
    """``runs``, each followed by the drops of the copies that end with it, except ``kept``."""
    drops: list[list[Step]] = [[] for _ in runs]
    for (value, copy), end in ends.items():
        if (value, copy) not in kept and runs:
            drops[end].append(Drop(value, copy))
    return tuple(step for run, gone in zip(runs, drops, strict=True) for step in (run, *gone))
