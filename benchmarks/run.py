"""Fill the store of measurements, and make its tables and pictures: ``python benchmarks/run.py --help``.

After an interruption, run it again: it continues, and measures nothing again that is in the store.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rematpass.cli import exit_on_sigterm
from rematpass.config import default_environment
from rematpass.errors import MeasureError, RematError

if TYPE_CHECKING:
    from rematpass.lab.benchmark.spec import Settings, Wanted
    from rematpass.report.measurement import Strategy

HERE = Path(__file__).parent
STORE = HERE / "results" / "measurements.jsonl"
MODELS = "llama,gpt2,vit,resnet50,mlp,chain"
CHECKPOINTS = "eager,eager+checkpoint,inductor+checkpoint"
TORCH_BUDGETS = "1.0,0.8,0.6,0.4,0.2,0.1,0.0"
BUDGETS = "1,0.75,0.5,0.25,0"
QUICK = {"models": "llama-small", "torch_budgets": "1.0,0.2", "budgets": "1,0.5,0", "rounds": 3}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", default=MODELS, metavar="LIST", help=f"models of the catalog (default: {MODELS})")
    made.add_argument("--only", choices=("peers", "remat"), help="measure only peers, or only remat")
    made.add_argument("--checkpoints", default=CHECKPOINTS, metavar="LIST", help=f"peers (default: {CHECKPOINTS})")
    made.add_argument(
        "--torch-budgets",
        default=TORCH_BUDGETS,
        metavar="LIST",
        help=f"activation_memory_budget (default: {TORCH_BUDGETS})",
    )
    made.add_argument("--budgets", default=BUDGETS, metavar="LIST", help=f"budgets of remat (default: {BUDGETS})")
    made.add_argument("--between", type=int, default=0, metavar="N", help="remat at N byte budgets, floor to ceiling")
    made.add_argument("--like-peers", action="store_true", help="remat at the measured peak of each peer")
    made.add_argument(
        "--size", action="append", default=[], metavar="NAME=N", help="a size of the models, as in batch=16"
    )
    made.add_argument("--per-block", action="store_true", help="compile each block by itself and nothing else")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="strategies compiled at a time (default: 1)")
    made.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of step times; 0: none (default: 5)")
    made.add_argument(
        "--alive", type=int, default=16, metavar="N", help="the most models in memory at once (default: 16)"
    )
    made.add_argument(
        "--timeout", type=float, default=1800, metavar="S", help="seconds for each strategy (default: 1800)"
    )
    made.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="start nothing after M minutes")
    made.add_argument("--retry", action="store_true", help="measure failed strategies again")
    made.add_argument("--retime", action="store_true", help="take all step times again")
    made.add_argument("--quick", action="store_true", help="one small model, few budgets: less than 5 minutes")
    made.add_argument("--show", action="store_true", help="measure nothing, only make tables and pictures")
    made.add_argument("--name", default="", help="name of the results (default: five-models, or quick)")
    made.add_argument("--store", type=Path, default=STORE, metavar="FILE", help="(default: results/measurements.jsonl)")
    made.add_argument(
        "--results", type=Path, default=HERE / "results", metavar="DIR", help="directory of tables and pictures"
    )
    return made


def main(argv: list[str] | None = None) -> int:
    default_environment(TORCH_CPP_LOG_LEVEL="ERROR", KINETO_LOG_LEVEL="99")
    arguments = parser().parse_args(argv)
    if arguments.quick:
        vars(arguments).update(QUICK)
    try:
        with exit_on_sigterm():  # so that workers end and temporary files are removed
            return run(arguments, Console())
    except KeyboardInterrupt:
        print("interrupted; run it again to continue", file=sys.stderr)
        return 130
    except RematError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Measure what is pending, and write tables and pictures.

    Raises:
        MeasureError: an argument is invalid, or a model cannot be built.
        ReportError: a file cannot be written.
    """
    from rematpass.lab.benchmark.results import write_results
    from rematpass.lab.benchmark.session import Session
    from rematpass.lab.benchmark.store import Store
    from rematpass.lab.compare import most_strategies
    from rematpass.lab.progress import Watcher, progress_bar

    names = checked_models(arguments)
    wanted, settings = wanted_of(arguments), settings_of(arguments)
    store = Store(arguments.store)
    begun = time.perf_counter()
    strategies: dict[str, list[Strategy]] = {}
    pending = 0
    with progress_bar(console) as bar:
        for name in names:
            watcher = Watcher(console, bar, name, most_strategies(wanted))
            with Session(name, store, settings, watcher.on_stage, watcher.on_row) as session:
                found = session.listed(wanted) if arguments.show else session.run(wanted)
                strategies[session.model] = found
                pending += sum(session.is_pending(s) for s in found)
            watcher.end()
    what = arguments.name or ("quick" if arguments.quick else "five-models")
    for path in write_results(store, strategies, settings.device, what, arguments.results):
        console.print(f"wrote {path}", soft_wrap=True)
    left = f"; {pending} strategies are still to be measured" if pending else ""
    console.print(f"{store.added} measurements added in {time.perf_counter() - begun:.0f} s{left}", soft_wrap=True)
    return 0


def checked_models(arguments: argparse.Namespace) -> list[str]:
    """The models by name, after all checks that need no measurement."""
    from rematpass.compiler import devices
    from rematpass.lab.models.names import check_model

    devices.usable(arguments.device)
    try:
        arguments.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MeasureError(f"cannot make the directory {str(arguments.results)!r}: {error.strerror}") from error
    if arguments.per_block and arguments.like_peers:
        raise MeasureError("--per-block and --like-peers exclude each other: a peer's peak covers more than a block")
    names = [name.strip() for name in arguments.models.split(",")]
    for name in names:
        check_model(name)
    return names


def wanted_of(arguments: argparse.Namespace) -> Wanted:
    """What to measure of each model."""
    from rematpass.lab.benchmark.spec import Wanted
    from rematpass.report.measurement import Strategy, parse_list

    peers = parse_list(arguments.checkpoints)
    if arguments.torch_budgets != "none":
        limited = parse_list(arguments.torch_budgets, "inductor")
        # Torch's budget of 1 is plain Inductor: one strategy, not two.
        peers += [Strategy("inductor") if s.fraction == 1 else s for s in limited]
    budgets = parse_list(arguments.budgets, "remat")
    if arguments.like_peers and arguments.only == "remat":
        return Wanted(peers, budgets, like_peers=True, between=arguments.between)  # needs the peers' bytes
    return Wanted(
        peers=[] if arguments.only == "remat" else peers,
        budgets=[] if arguments.only == "peers" else budgets,
        like_peers=arguments.like_peers,
        between=arguments.between,
    )


def settings_of(arguments: argparse.Namespace) -> Settings:
    """How to measure."""
    from rematpass.lab.benchmark.spec import Settings
    from rematpass.lab.models.names import parse_sizes

    return Settings(
        device=arguments.device,
        sizes=parse_sizes(arguments.size),
        per_block=arguments.per_block,
        rounds=arguments.rounds,
        jobs=arguments.jobs,
        alive=arguments.alive,
        timeout=arguments.timeout,
        until=time.monotonic() + 60 * arguments.minutes,
        retry=arguments.retry,
        retime=arguments.retime,
    )


if __name__ == "__main__":
    raise SystemExit(main())
