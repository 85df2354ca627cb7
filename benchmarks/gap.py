"""The planner's gap to what is possible: ``python benchmarks/gap.py --help``.

The first table compares the plans of five models with the proven bound, the second one plans of random graphs with the
exact optimum. Seconds are the cost model's and bytes the simulator's, so they are the same on every machine.
"""

from __future__ import annotations

import argparse
import datetime
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rematpass.config import Config, default_environment
from rematpass.core import frontier
from rematpass.core.cost import Costs
from rematpass.core.frontier import Ladder
from rematpass.core.graph import JointGraph
from rematpass.core.op import Kind, Op, Origin, Value
from rematpass.core.solve.bound import ASSUMES, lower_bound
from rematpass.core.solve.exact import exact
from rematpass.core.solve.problem import Problem
from rematpass.report.atomic import write_text
from rematpass.units import format_bytes

MODELS = "llama,gpt2,vit,resnet50,mlp"
FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.0)
PROMISED = 0.25  # the page summarizes the gaps at this budget and above
SIZES = "4,8,12,16"


def main(argv: list[str] | None = None) -> int:
    default_environment(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", default=MODELS, metavar="LIST", help=f"models of the catalog, or none (default: {MODELS})"
    )
    parser.add_argument(
        "--sizes", default=SIZES, metavar="LIST", help=f"layers of the random graphs (default: {SIZES})"
    )
    parser.add_argument("--graphs", type=int, default=10, metavar="N", help="random graphs of each size (default: 10)")
    parser.add_argument("--effort", type=float, default=5, metavar="E", help="effort for each optimum (default: 5)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR",
                        help="directory of the page")  # fmt: skip
    arguments = parser.parse_args(argv)
    names = [] if arguments.models == "none" else arguments.models.split(",")
    rows = [_ModelGaps.measure(name, *_planned(name)) for name in names]
    sizes = [int(size) for size in arguments.sizes.split(",")]
    groups = [list(_cases(size, arguments.graphs, arguments.effort)) for size in sizes]
    path = arguments.results / f"gap_{datetime.date.today()}.md"
    lines = [*_heading(), *_models(rows), *_random(sizes, groups, arguments.graphs)]
    write_text(path, "\n".join(lines) + "\n")
    print(path.read_text("utf-8"))
    return 0


# The models, against the bound.


def _planned(name: str) -> tuple[Problem, Ladder]:
    """A model's joint graph as AOTAutograd hands it over, and its ladder."""
    from rematpass.compiler.plan_only import plan_only
    from rematpass.lab.models.build import build

    model = build(name)
    [record] = plan_only(model.module, model.step, Config.read({"memory_budget": 1}))
    return Problem(record.graph, record.problem.costs), record.ladder


@dataclass(frozen=True)
class _ModelGaps:
    """The gaps of one model's plans to the bound, as shares of a step's seconds.

    ``floors``: the proven one and the ladder's, in bytes. ``by_budget``: at each of ``FRACTIONS``. ``by_rung``: of each
    rung at its own peak. ``proving_seconds``: of the bound at one budget, and at all budgets and peaks.
    """

    name: str
    ops: int
    floors: tuple[int, int]
    by_budget: tuple[float, ...]
    by_rung: tuple[float, ...]
    proving_seconds: tuple[float, float]

    @classmethod
    def measure(cls, name: str, problem: Problem, ladder: Ladder) -> _ModelGaps:
        limits = [ladder.limit(fraction) for fraction in FRACTIONS]
        start = time.process_time()
        lower_bound(problem, limits[2:3])
        one = time.process_time()
        bound = lower_bound(problem, sorted({*limits, *(rung.peak for rung in ladder.rungs)}))
        end = time.process_time()
        chosen = [ladder.fastest_under(limit) or ladder.rungs[-1] for limit in limits]
        return cls(
            name,
            len(problem.graph.ops),
            (bound.floor, ladder.floor),
            tuple(bound.gap(rung.seconds, limit) for rung, limit in zip(chosen, limits, strict=True)),
            tuple(bound.gap(rung.seconds, rung.peak) for rung in ladder.rungs),
            (one - start, end - one),
        )


# Random graphs, against the optimum.


def random_graph(layers: int, seed: int) -> tuple[JointGraph, Costs]:
    """``layers`` ops with one or two arguments, mostly recent values, and a backward as autograd would build it.

    The backward op of a forward op reads the gradient of its result, and its arguments or its result. Sizes are 1 to 9
    bytes and costs 1 to 9 seconds, whole numbers.
    """
    draw = random.Random(seed)
    values, ops = [Value(0, 3, Origin.INPUT)], list[Op]()

    def value(nbytes: int, origin: Origin = Origin.OP) -> int:
        values.append(Value(len(values), nbytes, origin))
        return len(values) - 1

    def op(reads: Sequence[int], nbytes: int) -> int:
        ops.append(Op(len(ops), Kind.MATMUL, tuple(dict.fromkeys(reads)), (value(nbytes),)))
        return ops[-1].writes[0]

    made = [0]
    arguments: dict[int, list[int]] = {}
    for _ in range(layers):
        reads = [made[-1], *(draw.choices(made[-4:], k=1) if draw.random() < 0.4 else [])]
        made.append(op(reads, draw.randint(1, 9)))
        arguments[made[-1]] = reads
    gradient = {made[-1]: value(values[made[-1]].nbytes, Origin.TANGENT)}
    for result in reversed(made[1:]):
        for argument in dict.fromkeys(arguments[result]):
            of = draw.choice([[argument], [result], arguments[result]])
            terms = [gradient[argument]] if argument in gradient else []
            gradient[argument] = op([gradient[result], *of, *terms], values[argument].nbytes)
    graph = JointGraph(tuple(ops), tuple(values), (made[-1],), (gradient[0],), f"random {layers}/{seed}")
    run = tuple(float(draw.randint(1, 9)) for _ in ops)
    return graph, Costs(run, tuple(float(draw.randint(0, 1)) for _ in values))


@dataclass(frozen=True)
class _Case:
    """One graph under one limit, in seconds: the planner's plan, the exact solver's plan and proof, and our bound."""

    planner: float
    optimum: float
    least: float
    bound: float
    optimal: bool


def _cases(layers: int, graphs: int, effort: float) -> Iterator[_Case]:
    for seed in range(graphs):
        graph, costs = random_graph(layers, seed)
        problem = Problem(graph, costs, fuse=False)
        ladder = frontier.build(problem)
        limits = sorted({ladder.limit(fraction) for fraction in FRACTIONS[1:]})
        bound = lower_bound(problem, limits)
        for limit in limits:
            rung = ladder.fastest_under(limit)
            assert rung is not None
            found = exact(problem, limit, max_recompute=problem.max_recompute, deterministic_time=effort)
            yield _Case(rung.seconds, found.seconds, found.least, bound.seconds(limit), found.optimal)


# The page.


def _heading() -> list[str]:
    return [
        "# The planner's gap to what is possible",
        "",
        f"Made by `benchmarks/gap.py` on {datetime.date.today()}. Seconds are the cost model's and bytes the "
        "simulator's: nothing is measured, and all figures but the seconds of proving are the same on every machine.",
        "",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _models(rows: Sequence[_ModelGaps]) -> list[str]:
    if not rows:
        return []
    promised = [gap for row in rows for gap, f in zip(row.by_budget, FRACTIONS, strict=True) if f >= PROMISED]
    lines = [
        "## Five models, against the proven bound",
        "",
        "How much longer a step takes than the bound for the budget, at fractions of the way from floor to ceiling. "
        f"No plan under the budget is faster than the bound; it is proven {ASSUMES}. The gap contains the planner's "
        "loss, the weakness of the bound, and memory that is unused because the next rung does not fit.",
        "",
        "| model | ops | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " | a rung at its own peak: mean | worst |"
        " floor | proven floor | proving one budget | all |",
        "|---|" + "---:|" * (len(FRACTIONS) + 7),
    ]
    for row in rows:
        cells = [row.name, str(row.ops), *map(_percent, row.by_budget), _percent(statistics.mean(row.by_rung))]
        cells += [_percent(max(row.by_rung)), format_bytes(row.floors[1]), format_bytes(row.floors[0])]
        lines.append("| " + " | ".join([*cells, *(f"{s:.2f} s" for s in row.proving_seconds)]) + " |")
    mean, worst = statistics.mean(promised), max(promised)
    lines += ["", f"From {PROMISED:g} on: {_percent(mean)} on average, {_percent(worst)} at worst.", ""]
    return lines


def _random(sizes: Sequence[int], groups: Sequence[Sequence[_Case]], graphs: int) -> list[str]:
    lines = [
        "## Random graphs, against the optimum",
        "",
        f"{graphs} graphs of each size, at {', '.join(f'{f:g}' for f in FRACTIONS[1:])} of the way from the ladder's "
        "floor to its ceiling. The optimum is that of `core/solve/exact.py`: any op may run again before any backward "
        "op, as often as it helps, with at most one forward of recompute in total, as for the planner.",
        "",
        "| forward ops | limits | optimum proven | planner finds it | planner above it: mean | worst "
        "| bound below it: mean | worst |",
        "|---:|" + "---:|" * 7,
    ]
    for size, cases in zip(sizes, groups, strict=True):
        known = [c for c in cases if c.optimal and math.isfinite(c.optimum)]
        above = [c.planner / c.optimum - 1 for c in known]
        below = [1 - c.bound / c.optimum for c in known]
        found = sum(a < 1e-9 for a in above)
        cells = [size, len(cases), len(known), f"{found} of {len(known)}"]
        shares = [statistics.mean(above), max(above), statistics.mean(below), max(below)] if known else []
        lines.append("| " + " | ".join([*map(str, cells), *map(_percent, shares)]) + " |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
