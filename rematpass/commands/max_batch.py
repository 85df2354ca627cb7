"""``rematpass max-batch``: the largest batch, or length, whose training step fits a byte budget.

The model is traced once, with symbolic sizes. The joint graph is then planned at one size after another, which needs no
model, to find the largest size whose floor is under the budget. Unless ``--no-measure`` is given, one step of that size
is measured to confirm the plan.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rematpass.budget import BudgetKind
from rematpass.commands.arguments import Commands, add_command
from rematpass.config import Config
from rematpass.core import frontier, hardware
from rematpass.core.cost import estimate
from rematpass.core.graph import JointGraph
from rematpass.core.sizes import resized
from rematpass.core.solve.problem import Problem
from rematpass.core.verify import verify
from rematpass.errors import BudgetInfeasible, ConfigError, MeasureError
from rematpass.units import format_bytes

if TYPE_CHECKING:
    from rich.console import Console

_PROBES = (7, 11, 13, 17, 19)  # sizes to trace at: primes, which other sizes of the model rarely equal
_MOST = 2**24
_TRIES = 8  # the most sizes that are measured for one budget
_EXAMPLES = """examples:
  rematpass max-batch tiny-gpt --budget 256MiB               the largest batch in 256 MiB of peak
  rematpass max-batch llama --budget 256MiB --budget 512MiB  a table of several budgets
  rematpass max-batch llama --size length --budget 512MiB    the longest sequence
  rematpass max-batch train:make --budget 8GiB --device cuda
                                                             make(batch=...) in your train.py
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "max-batch",
        help="the largest batch or length that fits a byte budget",
        description="Find the largest batch (or length) whose training step fits a byte budget, and measure one step.",
        examples=_EXAMPLES,
    )
    parser.add_argument("target", metavar="MODEL", help="a model's name, or package.module:function")
    parser.add_argument("--budget", action="append", required=True, metavar="BYTES",
                        help="bytes of peak, such as 8GiB; repeat it for a table")  # fmt: skip
    parser.add_argument(
        "--size", choices=("batch", "length"), default="batch", help="the size that grows (default: batch)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--no-measure", action="store_true", help="do not measure a step; trust the plan")
    parser.set_defaults(run=run)
    return parser


@dataclass(frozen=True)
class Found:
    """The result for one budget: the largest size, and the largest without recompute. 0 and None: none fits.

    Budget and peaks are in bytes.
    """

    budget: int
    size: int
    size_without_recompute: int
    planned_peak: int | None = None
    measured_peak: int | None = None


def run(arguments: argparse.Namespace) -> int:
    budgets = sorted(map(_bytes, arguments.budget))
    _refuse_unknown_names(arguments)

    from rich.console import Console

    console, aside = Console(highlight=False), Console(stderr=True, highlight=False)
    with aside.status(f"tracing {arguments.target}") as status:
        graph, symbol = _traced(arguments)
        peaks = Peaks(graph, symbol)
        found = []
        for budget in budgets:
            status.update(f"planning for {format_bytes(budget)}")
            result = largest(peaks, budget)
            if result.size and not arguments.no_measure:
                status.update(f"measuring a step at {arguments.size} {result.size}")
                result = _confirmed(arguments, peaks, result)
            found.append(result)
    _show(console, arguments, found)
    return int(not all(result.size for result in found))


def _refuse_unknown_names(arguments: argparse.Namespace) -> None:
    from rematpass.lab.models.names import check_device, check_model, check_sizes

    check_device(arguments.device)
    check_model(arguments.target)
    if ":" not in arguments.target:
        check_sizes(arguments.target, [arguments.size])


def _bytes(text: str) -> int:
    budget = Config.read({"memory_budget": text}, {}).memory_budget
    if budget.kind is not BudgetKind.BYTES:
        raise ConfigError(f"--budget {text}: max-batch needs a budget in bytes, such as 8GiB")
    return budget.nbytes


def _traced(arguments: argparse.Namespace) -> tuple[JointGraph, str]:
    """The joint graph with symbolic sizes, and the symbol of the size that grows."""
    from rematpass.compiler.plan_only import plan_only

    for probe in _PROBES:
        model = _model(arguments, probe)
        records = plan_only(model.module, model.step, Config(), dynamic=True)
        if len(records) != 1:
            raise MeasureError(f"{arguments.target} has {len(records)} graphs to train; max-batch needs one")
        symbols = [name for name, size in records[0].graph.hints if size == probe]
        if len(symbols) == 1:
            return records[0].graph, symbols[0]
    raise MeasureError(
        f"no symbol of {arguments.target}'s graph stands for its {arguments.size}: torch made a constant of it, or "
        "several sizes are equal"
    )


def _model(arguments: argparse.Namespace, size: int) -> Any:
    from rematpass.lab.models.build import build, load

    sizes = {arguments.size: size}
    try:
        if ":" in arguments.target:
            return load(arguments.target, **sizes)
        return build(arguments.target, device=arguments.device, **sizes)
    except TypeError as error:
        raise MeasureError(f"{arguments.target} does not accept {arguments.size}: {error}") from error


class Peaks:
    """The floor and the ceiling of the graph at any size, planned on demand, in bytes."""

    def __init__(self, graph: JointGraph, symbol: str) -> None:
        self.graph, self.symbol = graph, symbol
        self._known: dict[int, tuple[int, int]] = {}

    def _at(self, size: int) -> tuple[int, int]:
        if size not in self._known:
            graph = resized(self.graph, {self.symbol: size})
            ladder = frontier.build(Problem(graph, estimate(graph, hardware.for_device(graph.device))))
            for end in (ladder.rungs[0], ladder.rungs[-1]):
                verify(graph, end.plan)
            self._known[size] = ladder.floor, ladder.ceiling
        return self._known[size]

    def floor(self, size: int) -> int:
        return self._at(size)[0]

    def ceiling(self, size: int) -> int:
        return self._at(size)[1]


def largest(peaks: Peaks, budget: int) -> Found:
    """Find the largest size whose floor fits the budget, and the largest whose ceiling does."""
    allowed = frontier.peak_allowed(budget, peaks.graph.device)
    size = largest_under(peaks.floor, allowed)
    without_recompute = largest_under(peaks.ceiling, allowed)
    return Found(budget, size, without_recompute, peaks.floor(size) if size else None)


def largest_under(peak: Callable[[int], int], allowed: int) -> int:
    """The largest size with a peak of at most ``allowed`` bytes; 0 if there is none.

    Peaks are nearly linear in a size, so the next guess is interpolated between the ends of the bracket. Every third
    guess bisects it, which bounds the number of guesses if the peak is not linear.
    """
    low, high = 0, 2
    while high <= _MOST and peak(high) <= allowed:
        low, high = high, high * 2
    if low == 0 and peak(1) <= allowed:
        low = 1
    guesses = 0
    while low and high - low > 1:
        span = peak(high) - peak(low)
        guess = (
            low + (allowed - peak(low)) * (high - low) // span if span > 0 and guesses % 3 < 2 else (low + high) // 2
        )
        middle = min(max(guess + (guesses % 3 == 1), low + 1), high - 1)
        low, high = (middle, high) if peak(middle) <= allowed else (low, middle)
        guesses += 1
    return low


def _confirmed(arguments: argparse.Namespace, peaks: Peaks, found: Found) -> Found:
    """Measure a step of the size found; while it exceeds the budget, reduce the size in proportion."""
    size = found.size
    for _ in range(_TRIES):
        peak = _measured(arguments, size, found.budget)
        if peak <= found.budget:
            return Found(found.budget, size, found.size_without_recompute, peaks.floor(size), peak)
        size = min(size - 1, size * found.budget // peak)
        if size < 1:
            break
    return Found(found.budget, 0, found.size_without_recompute)


def _measured(arguments: argparse.Namespace, size: int, budget: int) -> int:
    """The peak of a compiled step, in bytes; if no plan fits after all, the floor."""
    import torch

    from rematpass.compiler.backend import remat
    from rematpass.errors import cause_of
    from rematpass.lab.measure.memory_and_time import measure_memory

    torch.compiler.reset()
    model = _model(arguments, size)
    model.module.compile(backend=remat, options={"memory_budget": budget, "strict": True}, dynamic=False)
    try:
        return measure_memory(model.step, model.parameters, device=arguments.device).peak
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, BudgetInfeasible):
            return max(cause.floor, budget + 1)
        raise


def _show(console: Console, arguments: argparse.Namespace, found: list[Found]) -> None:
    from rich.table import Table

    table = Table(title=f"The largest {arguments.size} of {arguments.target}", title_justify="left")
    for name in ("budget", arguments.size, "without recompute", "planned peak", "measured peak"):
        table.add_column(name, justify="right")
    for result in found:
        bytes_ = [result.planned_peak, result.measured_peak]
        table.add_row(
            format_bytes(result.budget),
            str(result.size or "none fits"),
            str(result.size_without_recompute or "none fits"),
            *("" if n is None else format_bytes(n) for n in bytes_),
        )
    console.print(table)
