"""Processor seconds of the first step, which compiles, beside plain Inductor: ``python benchmarks/compile_time.py``.

Each row is measured in a process of its own, which compiles something small first (``lab/measure/warm_up.py``). Seconds
are user and system time of the process and of the compilers that it starts: other work on the machine hardly changes
them, as it does time on the clock. Caches are off, and Inductor compiles in the process itself, one kernel at a time.

The store beside the page has one JSON line per row. After an interruption, run the script again: it measures nothing
again that is in the store for this device, this torch and, for remat, the same planner.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rematpass.config import child_environment
from rematpass.report.atomic import write_text
from rematpass.report.comparison import markdown_table

HERE = Path(__file__).parent
STORE = HERE / "results" / "compile_times.jsonl"
BASE = "inductor"
STRATEGIES = f"{BASE},remat,remat@1,remat@0.25,remat@0"  # "remat" has no budget
ENVIRONMENT = {
    "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",  # threads that wait for work take no processor time
}


@dataclass(frozen=True)
class Row:
    """One first step. ``python``: processor seconds of the process; ``compilers``: of its children, gcc for example.

    ``planning`` and ``dry_runs``: seconds on the clock, within ``python``. ``kernels``: what Inductor has generated, of
    which ``compiled`` were compiled. ``error``: why there are no figures.
    """

    model: str
    strategy: str
    device: str
    torch: str
    source: str
    date: str
    python: float = math.nan
    compilers: float = math.nan
    planning: float = 0.0
    dry_runs: float = 0.0
    kernels: int = 0
    compiled: int = 0
    error: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        return self.model, self.strategy, self.device, self.torch, self.source

    @property
    def seconds(self) -> float:
        return self.python + self.compilers


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", default="", metavar="LIST", help="models (default: the catalog's for this device)")
    made.add_argument("--strategies", default=STRATEGIES, metavar="LIST", help=f"(default: {STRATEGIES})")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="start nothing after M minutes")
    made.add_argument(
        "--store", type=Path, default=STORE, metavar="FILE", help="(default: results/compile_times.jsonl)"
    )
    made.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR", help="directory of the page")
    made.add_argument("--show", action="store_true", help="measure nothing; only make the page")
    made.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = made.parse_args(argv)
    if arguments.row:
        model, strategy = arguments.row
        print(json.dumps(asdict(measured(model, strategy, arguments.device))))
        return 0
    models, strategies = names(arguments.models, arguments.device), arguments.strategies.split(",")
    until = -math.inf if arguments.show else time.monotonic() + 60 * arguments.minutes
    rows, pending = fill(arguments.store, models, strategies, arguments.device, until)
    if not rows:
        print("nothing has been measured: give --minutes more, or leave --show out")
        return 1
    page = arguments.results / f"compile_{slug_of(rows[0].device)}_{datetime.date.today().isoformat()}.md"
    write_text(page, text(rows, models, strategies))
    print(f"wrote {page}" + (f"; {pending} rows are still to be measured" if pending else ""))
    return 0


def names(given: str, device: str) -> list[str]:
    """The models to measure. The catalog has models for a GPU and smaller ones, which are for any device."""
    from rematpass.lab.models.catalog import MODELS

    if given:
        return given.split(",")
    return [name for name, spec in MODELS.items() if spec.for_gpu == device.startswith("cuda")]


def slug_of(device: str) -> str:
    from rematpass.lab.benchmark.results import slug

    return slug(device)


def fill(
    store: Path, models: Sequence[str], strategies: Sequence[str], device: str, until: float
) -> tuple[list[Row], int]:
    """Measure what the store lacks until the clock says ``until``; the wanted rows, and how many are missing."""
    lines = store.read_text().splitlines() if store.exists() else []
    known = {row.key: row for row in (Row(**json.loads(line)) for line in lines)}
    found, missing = [], 0
    for model in models:
        for strategy in strategies:
            key = blank(model, strategy, device).key
            if key not in known and time.monotonic() < until:
                known[key] = row = in_a_process(model, strategy, device)
                with store.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
            missing += key not in known
            found += [known[key]] if key in known else []
    return found, missing


def blank(model: str, strategy: str, device: str, **figures: Any) -> Row:
    """A row with its key. For remat the key has a hash of all that influences a plan."""
    import torch

    from rematpass.compiler import devices
    from rematpass.lab.benchmark.job import source_hash

    place = devices.usable(device)
    source = "" if strategy.startswith(BASE) else source_hash(place)
    label, today = devices.of(place).label(place), datetime.date.today().isoformat()
    return Row(model, strategy, label, str(torch.__version__), source, today, **figures)


def in_a_process(model: str, strategy: str, device: str) -> Row:
    """One row, measured in a process with empty caches; with the last line of its output if it fails."""
    print(f"measuring {model} {strategy}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--row", model, strategy, "--device", device]
        environment = child_environment(**ENVIRONMENT, TORCHINDUCTOR_CACHE_DIR=cache)
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with exit code {done.returncode}"]
        return blank(model, strategy, device, error=lines[-1][:200])
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def measured(model: str, strategy: str, device: str) -> Row:
    """Measure the first step in this process."""
    from rematpass.compiler import planned
    from rematpass.compiler._torch import inductor_metrics
    from rematpass.lab.measure.memory_and_time import run_step
    from rematpass.lab.measure.warm_up import warm_up
    from rematpass.lab.models.build import build, load

    subject = load(model) if ":" in model else build(model, device=device)
    warm_up(device)
    planned.plans(clear=True)
    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    kernels, compiled = inductor_metrics.generated_kernel_count, compiled_files(cache)
    budget = strategy.partition("@")[2]
    how: dict[str, Any] = {"backend": "remat", "options": {"memory_budget": budget} if budget else {}}
    subject.module.compile(**({} if strategy == BASE else how))
    before = processor_seconds()
    run_step(subject.step, subject.parameters)
    python, compilers = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    told = [record.summary for record in planned.records() if record.is_decided]  # the others cost nothing yet
    return blank(
        model,
        strategy,
        device,
        python=python,
        compilers=compilers,
        planning=sum(summary.planning_seconds for summary in told),
        dry_runs=sum(summary.dry_run_seconds for summary in told),
        kernels=inductor_metrics.generated_kernel_count - kernels,
        compiled=compiled_files(cache) - compiled,
    )


def processor_seconds() -> tuple[float, float]:
    """User and system time of this process and of its children that have ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, children = (usage.ru_utime + usage.ru_stime for usage in used)
    return own, children


def compiled_files(cache: Path) -> int:
    """How many kernels have been compiled: Triton's are cubin files, the CPU's shared libraries."""
    return sum(1 for suffix in ("so", "cubin") for _ in cache.rglob(f"*.{suffix}"))


def text(rows: Sequence[Row], models: Sequence[str], strategies: Sequence[str]) -> str:
    """The page: ratios to plain Inductor per model with median and worst, then what the seconds are spent on."""
    first = rows[0]
    by_key = {(row.model, row.strategy): row for row in rows}
    ours = [strategy for strategy in strategies if strategy != BASE]
    ratios = {(m, s): _ratio(by_key.get((m, s)), by_key.get((m, BASE))) for m in models for s in ours}
    body = [[m, _seconds(by_key.get((m, BASE))), *(_number(ratios[m, s]) for s in ours)] for m in models]
    for what, of in (("median", statistics.median), ("worst", max)):
        known = ([r for m in models if not math.isnan(r := ratios[m, s])] for s in ours)
        body.append([f"**{what}**", "", *(_number(of(found)) if found else "" for found in known)])
    lines = [
        f"# Compile time beside Inductor, {first.device}, torch {first.torch}, {max(row.date for row in rows)}",
        "",
        "Made by `python benchmarks/compile_time.py`: processor seconds of the whole first step, of the process and",
        "the compilers that it starts, with empty caches and one compile thread. `remat` is without a budget.",
        "",
        "Times plain Inductor's seconds:",
        "",
        markdown_table(["model", "Inductor, s", *ours], body),
        "What the seconds are spent on. Planning and dry runs are seconds on the clock; the rest of Python is",
        "Inductor, AOTAutograd, Dynamo and the step itself. Of Inductor's kernels, equal ones are compiled once.",
        "",
    ]
    head = ["model", "strategy", "all, s", "planning", "dry runs", "rest of Python", "compilers", "kernels", "compiled"]
    return "\n".join([*lines, markdown_table(head, [_parts(row) for row in rows], left=2)])


def _parts(row: Row) -> list[str]:
    if row.error:
        return [row.model, row.strategy, row.error, *[""] * 6]
    rest = row.python - row.planning - row.dry_runs
    seconds = (row.seconds, row.planning, row.dry_runs, rest, row.compilers)
    return [row.model, row.strategy, *(f"{s:.1f}" for s in seconds), str(row.kernels), str(row.compiled)]


def _ratio(row: Row | None, base: Row | None) -> float:
    """nan where a row is missing or failed."""
    return row.seconds / base.seconds if row and base else math.nan


def _number(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.2f}"


def _seconds(row: Row | None) -> str:
    return "" if row is None or math.isnan(row.seconds) else f"{row.seconds:.1f}"


if __name__ == "__main__":
    raise SystemExit(main())
