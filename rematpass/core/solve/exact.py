"""The oracle: the fastest plan under a peak, proven, for graphs of some tens of ops.

Everything is decided at once, by a constraint solver (OR-tools' CP-SAT). Backward's own ops keep their order, as for
the planner, mutations last. Before each of them, and once more at the end, lies a *stage*: a pass over the ops that may
run in backward, in their order, in which each runs or does not. Unknown, each 0 or 1:

- ``save[v]``: forward hands value v over; an input that backward reads is saved too, but takes no bytes;
- ``early[o]``: an op of neither side runs in forward (forward's own ops always do);
- ``again[s, o]``: op o runs in stage s;
- ``carried[s, v]``: v is in memory when stage s begins: ``carried[0, v] = save[v]``.

Subject to, with the method of ``exact_program.Program`` that adds it:

- what is saved is made in forward, from what is there (``_forward``);
- ``carried[s + 1, v] <= carried[s, v] + again[s, producer of v]``, and not both: what is made again in a stage was let
  go before (``_carry``);
- a run has its arguments: ``again[s, o] <= carried[s, v] + again[s, producer of v]`` for each v that o reads, and so
  for own ops and gradients (``_reads``);
- what must not run twice does not, what backward has overwritten is read no more (``_limits``);
- at the position of each run, the bytes alive are at most the limit (``_peaks``). A value is alive at position k of a
  stage if it was carried there, or made at or before k, and something reads it at k or later, or it is carried on::

        alive[s, k, v] >= again[s, o]  for every o >= k that reads v,     alive[s, k, v] >= carried[s + 1, v]

Least is ``sum of run seconds + sum of keep[v] save[v]``. Bytes are ``simulate``'s with ``fuse=False``, each op for
itself. With ``passes=2`` there are two passes in each stage, so that a value may be made twice for the same own op.

Source: the stages are Checkmate's (Jain et al., MLSys 2020, arXiv 1910.02653), one per own op of backward instead of
one per op, since forward runs once; there every op of a stage keeps its order too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ortools.sat.python import cp_model

from rematpass.core.op import Origin
from rematpass.core.schedule import Drop, Plan, Run, Step
from rematpass.core.simulate import simulate
from rematpass.core.solve.cp_sat_model import Program, Truth
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import PlanError

Life = tuple[int, int]  # (value, copy)


@dataclass(frozen=True)
class Exact:
    """What the oracle found.

    ``plan``: None when there is none, or none was found with the effort allowed; ``seconds``: what its step takes, else
    infinite; ``least``: no plan takes less, infinite when there is none; ``optimal``: these two are proven to be one.
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
    effort: float = 60.0,
) -> Exact:
    """The fastest plan whose peak, by ``simulate`` with ``fuse=False``, is at most ``peak`` bytes.

    ``max_recompute``: how much backward may recompute, in forwards; ``passes``: how often an op may run between two of
    backward's own; ``effort``: work after which the best plan so far has to do, in CP-SAT's deterministic time, which
    passes at about a second a second and is the same on every machine.

    Raises:
        PlanError: the solver's plan is not what it claims: a mistake here.
    """
    model = Program(problem, peak, passes)
    if max_recompute < math.inf:
        model.limit_recompute(max_recompute * problem.forward_seconds * (1 + 1e-9))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model.program)
    if status == cp_model.INFEASIBLE:
        return Exact(None, math.inf, math.inf, optimal=True)
    least = model.seconds(solver.best_objective_bound)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Exact(None, math.inf, least, optimal=False)
    plan = _plan(model, solver)
    verify(problem.graph, plan)
    timeline = simulate(problem.graph, plan, problem.costs, fuse=False)
    said = model.seconds(solver.objective_value)
    if timeline.peak > peak or not math.isclose(timeline.step_seconds, said, rel_tol=1e-6, abs_tol=1e-12):
        raise PlanError(
            f"the exact solver says {said} seconds under {peak} bytes of {problem.graph.name or 'a graph'}, "
            f"the simulator {timeline.step_seconds} and {timeline.peak}"
        )
    if status == cp_model.OPTIMAL:
        return Exact(plan, timeline.step_seconds, timeline.step_seconds, optimal=True)  # not what scaling made of them
    return Exact(plan, timeline.step_seconds, min(least, timeline.step_seconds), optimal=False)


def _plan(model: Program, solver: cp_model.CpSolver) -> Plan:
    """What the solver has chosen."""

    def holds(truth: Truth) -> bool:
        return bool(truth) if isinstance(truth, int) else bool(solver.boolean_value(truth))

    graph = model.graph
    forward = [Run(op) for op, early in model.early.items() if holds(early)]
    times = dict.fromkeys((run.op for run in forward), 1)
    backward: list[Run] = []
    for stage, own in enumerate(model.stages):
        chosen = [op for op in model.early if holds(model.again[stage, op])]
        for op in [*chosen, own.id] if own else chosen:
            backward.append(Run(op, times.get(op, 0)))
            times[op] = times.get(op, 0) + 1
    saved = _read(model, backward, {v for v, truth in model.save.items() if holds(truth)})
    returned = saved & model.outputs
    kept = {(v, 0) for v in saved if v in returned or graph.values[v].origin is Origin.STATIC}
    for v in set(graph.bwd_outputs) - returned:
        producer = graph.producer[v]
        kept.add((v, 0 if producer is None else times[producer] - 1))
    handed_on = {(v, 0) for v in saved.union(graph.fwd_outputs)}
    return Plan(
        "exact",
        tuple(sorted(saved)),
        _let_go(forward, _ends(model, forward, (), frozenset()), handed_on),
        _let_go(backward, _ends(model, backward, [*saved, *graph.tangents], frozenset(returned)), kept),
    )


def _read(model: Program, backward: Sequence[Run], saved: set[int]) -> set[int]:
    """Of what is saved, that which backward reads or returns: to save more may cost nothing, but it takes bytes."""
    made: set[int] = set()
    read = saved & model.outputs
    for run in backward:
        read.update(v for v in model.graph.touched[run.op] if v not in made)
        made.update(model.graph.ops[run.op].writes)
    return saved & (read | (set(model.graph.bwd_outputs) - made))


def _ends(model: Program, runs: Sequence[Run], there: Sequence[int], returned: frozenset[int]) -> dict[Life, int]:
    """For each copy of what is ``there`` or made, the last position that needs it. Of what is returned, and saved,
    the first copy is read to the end."""
    ends = {(v, 0): 0 for v in there}
    newest = dict.fromkeys(there, 0)
    for position, run in enumerate(runs):
        for v in model.graph.touched[run.op]:
            if v in newest:
                ends[v, newest[v]] = position
        for v in model.graph.ops[run.op].writes:
            ends[v, run.copy] = position
            if v not in returned:
                newest[v] = run.copy
    return ends


def _let_go(runs: Sequence[Run], ends: dict[Life, int], kept: set[Life]) -> tuple[Step, ...]:
    drops: list[list[Step]] = [[] for _ in runs]
    for (value, copy), end in ends.items():
        if (value, copy) not in kept and runs:
            drops[end].append(Drop(value, copy))
    return tuple(step for run, gone in zip(runs, drops, strict=True) for step in (run, *gone))
