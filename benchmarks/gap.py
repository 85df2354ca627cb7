"""How near the planner is to what can be had: ``python benchmarks/gap.py --help``.

Two tables: the five models' plans against the proven bound, and plans of random graphs against the exact optimum. Both
are in the seconds of the cost model and the bytes of the simulator: they are the same on every machine.
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
from rematpass.units import format_bytes

MODELS = "llama,gpt2,vit,resnet50,mlp"
FRACTIONS = (1.0, 0.75, 0.5, 0.25, 0.0)
PROMISED = 0.25  # the gap is held to a figure from this fraction on
SIZES = "4,8,12,16"


def main(argv: list[str] | None = None) -> int:
    default_environment(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=MODELS, metavar="LIST", help=f"of the catalog, or none (default: {MODELS})")
    parser.add_argument("--sizes", default=SIZES, metavar="LIST", help=f"layers of random graphs (default: {SIZES})")
    parser.add_argument("--graphs", type=int, default=10, metavar="N", help="random graphs of each size (default: 10)")
    parser.add_argument("--effort", type=float, default=5, metavar="E", help="for each optimum (default: 5)")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    arguments = parser.parse_args(argv)
    names = [] if arguments.models == "none" else arguments.models.split(",")
    rows = [_Against.bound(name, *_planned(name)) for name in names]
    sizes = [int(size) for size in arguments.sizes.split(",")]
    groups = [list(_cases(size, arguments.graphs, arguments.effort)) for size in sizes]
    path = arguments.results / f"gap_{datetime.date.today()}.md"
    path.write_text("\n".join([*_heading(), *_models(rows), *_random(sizes, groups, arguments.graphs)]) + "\n", "utf-8")
    print(path.read_text("utf-8"))
    return 0


# The five models, against the bound.


def _planned(name: str) -> tuple[Problem, Ladder]:
    """A model's graph as Inductor hands it over, and its plans."""
    from rematpass.compiler.plan_only import plan_only
    from rematpass.lab.models import build

    model = build.build(name)
    [record] = plan_only(model.module, model.step, Config.read({"memory_budget": 1}))
    return Problem(record.graph, record.problem.costs), record.ladder


@dataclass(frozen=True)
class _Against:
    """One model's plans: ``gaps`` by budget; ``own``: of each rung at its own peak; ``seconds``: what proving took."""

    name: str
    ops: int
    floors: tuple[int, int]  # proven, the ladder's
    gaps: tuple[float, ...]
    own: tuple[float, ...]
    seconds: tuple[float, float]

    @classmethod
    def bound(cls, name: str, problem: Problem, ladder: Ladder) -> _Against:
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
    """``layers`` ops of one or two arguments, mostly recent ones, and backward as autograd would write it.

    Backward's op for each of them reads the gradient of its result and its arguments or its result. Sizes are 1 to 9
    bytes, seconds 1 to 9, whole numbers.
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
    """One graph under one limit: seconds of the planner's plan, of the oracle's, its own proof, and the bound."""

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
        "# How near the planner is to what can be had",
        "",
        f"Made by `benchmarks/gap.py` on {datetime.date.today()}. Seconds are the cost model's, bytes the simulator's: "
        "nothing here is measured, and every machine gets the same figures (but for what proving took).",
        "",
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _models(rows: Sequence[_Against]) -> list[str]:
    if not rows:
        return []
    promised = [gap for row in rows for gap, f in zip(row.gaps, FRACTIONS, strict=True) if f >= PROMISED]
    lines = [
        "## Five models, against the proven bound",
        "",
        "How much longer a step takes than the bound for the budget, at fractions of the way from floor to ceiling. "
        f"No plan under the budget is below the bound; it is proven {ASSUMES}. What is left is the planner's loss, the "
        "bound's weakness, and the memory that the next rung would not have fitted.",
        "",
        "| model | ops | " + " | ".join(f"{f:g}" for f in FRACTIONS) + " | a rung at its own peak: mean | worst |"
        " floor | proven floor | proving one budget | all |",
        "|---|" + "---:|" * (len(FRACTIONS) + 7),
    ]
    for row in rows:
        cells = [row.name, str(row.ops), *map(_percent, row.gaps), _percent(statistics.mean(row.own))]
        cells += [_percent(max(row.own)), format_bytes(row.floors[1]), format_bytes(row.floors[0])]
        lines.append("| " + " | ".join([*cells, *(f"{s:.2f} s" for s in row.seconds)]) + " |")
    mean, worst = statistics.mean(promised), max(promised)
    lines += ["", f"From {PROMISED:g} on: {_percent(mean)} on average, {_percent(worst)} at worst.", ""]
    return lines


def _random(sizes: Sequence[int], groups: Sequence[Sequence[_Case]], graphs: int) -> list[str]:
    lines = [
        "## Random graphs, against the optimum",
        "",
        f"{graphs} graphs of each size, at {', '.join(f'{f:g}' for f in FRACTIONS[1:])} of the way from the ladder's "
        "floor to its ceiling. The optimum is the oracle's (`core/solve/exact.py`): any op may run again before any of "
        "backward's own, as often as it helps, with at most one forward of recompute, as for the planner.",
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
