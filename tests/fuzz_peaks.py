"""Plan random models under many budgets, by dry run alone, and check the promises about peaks.

    python tests/fuzz_peaks.py --programs 3000 --seed 0 --jobs 2

For each program (``support/fuzz_models.py``) five fractions and three byte budgets are tried, with no code generated
(``support/peaks.py``). Peaks are those of Inductor's dry run of the modules that would be compiled. What is checked:

    held        a byte budget is not exceeded, nor the bytes that a fraction stands for
    refused     a byte budget is refused only if no other budget of the program reached a peak that fits it, and the
                refusal names no peak above the lowest that was reached
    monotone    of two budgets the lower one never takes more bytes
    inductor    without a budget, and with one of at least torch.compile's own peak, no more than that peak is taken
    beaten      no budget takes a plan of more estimated seconds, by a hundredth, than that of a lower budget (without a
                budget, what torch.compile does is taken, whatever the estimate)
    planned     the promised peak is exact, and that of the modules
    error       nothing fails

A program that breaks a promise is printed with its budgets, after leaving out the layers that do not matter. The exit
code is 1 if there is one. ``--out`` writes one JSON object per broken promise.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import gc
import itertools
import json
import logging
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from support.fuzz_models import Program, write
from support.peaks import Choice, Looker, look

from rematpass.core.frontier import least_budget, peak_allowed

FRACTIONS = (1, 0.7, 0.5, 0.2, 0)
BYTE_BUDGETS = 3
LINE_EVERY = 50  # programs, where there is no terminal to show a bar
HARDLY_FASTER = 0.99  # of estimated seconds: a plan between this part and all of them need not be asked for


@dataclass(frozen=True)
class Broken:
    """A broken promise: its kind, the budgets involved, and how many bytes (or seconds) were taken and allowed."""

    kind: str
    budgets: tuple[float, ...]
    taken: float = 0
    allowed: float = 0
    why: str = ""

    def __str__(self) -> str:
        budgets = ", ".join(f"{b:g}" if b <= 1 else f"{b:,.0f} bytes" for b in self.budgets)
        if self.why:
            return f"{self.kind} at {budgets}: {self.why}"
        share = f" ({self.taken / self.allowed:.3f} times)" if self.allowed else ""
        return f"{self.kind} at {budgets}: {self.taken:,.8g} instead of {self.allowed:,.8g}{share}"


@dataclass(frozen=True)
class Outcome:
    """All budgets of one program. ``own``: the peak of torch.compile in bytes; ``invalid``: why there is none."""

    program: Program
    own: int = 0
    choices: tuple[Choice, ...] = ()
    broken: tuple[Broken, ...] = ()
    invalid: str = ""

    @property
    def kinds(self) -> set[str]:
        return {b.kind for b in self.broken}

    def text(self) -> str:
        lines = [f"torch.compile's own peak: {self.own:,}"]
        for c in self.choices:
            budget = f"{c.budget:g}" if c.is_fraction else f"{c.budget:,} bytes"
            taken = c.error or (f"refused, lowest peak {c.floor:,}" if c.peak < 0 else f"peak {c.peak:,}")
            limit = "" if c.limit is None else f", limit {c.limit:,}"
            lines.append(f"  {budget}: {taken}{limit}, {c.seconds * 1e6:.6g} us, plan {c.plan}")
        return "\n".join([self.program.text(), *lines, *(f"  {b}" for b in self.broken)])


def judge(program: Program) -> Outcome:
    """Plan ``program`` under all budgets and check every promise."""
    try:
        module, arguments = program.build()
    except Exception as error:
        return Outcome(program, invalid=f"{type(error).__name__}: {error}")

    def try_budgets(looker: Looker) -> tuple[int, tuple[Choice, ...]]:
        choices = [looker.choose(fraction) for fraction in FRACTIONS]
        reached = [c.peak for c in choices if c.peak >= 0] or [looker.own]
        for budget in byte_budgets(program.seed, min(reached), looker.own):
            choices.append(looker.choose(budget))
        return looker.own, tuple(choices)

    gc.collect()
    gc.disable()  # a collection walks all of a dry run's graphs
    try:
        own, choices = look(module, arguments, program.hold_outputs, try_budgets)
    finally:
        gc.enable()
    return Outcome(program, own, choices, tuple(broken_promises(own, choices)))


def byte_budgets(seed: int, floor: int, own: int) -> list[int]:
    """Budgets between the floor and 1.2 times torch.compile's own peak; now and then exactly one of these peaks."""
    choose = random.Random(f"byte budgets {seed}")
    drawn = [choose.randint(floor, max(floor, int(1.2 * own))) for _ in range(BYTE_BUDGETS)]
    drawn[0] = choose.choice([drawn[0], least_budget(floor, "cpu"), least_budget(own, "cpu")])
    return sorted(set(drawn), reverse=True)


def broken_promises(own: int, choices: Sequence[Choice]) -> Iterator[Broken]:
    """The promises that ``choices`` break; ``own``: the peak of torch.compile, in bytes."""
    reached = [c for c in choices if c.peak >= 0]
    lowest = min((c.peak for c in reached), default=0)
    for c in choices:
        if c.error:
            yield Broken("error", (c.budget,), why=c.error)
        elif c.peak < 0:
            if lowest and lowest <= peak_allowed(int(c.budget), "cpu"):
                yield Broken("refused", (c.budget,), c.budget, lowest)
            elif reached and c.floor > lowest:
                yield Broken("refused", (c.budget,), c.floor, lowest)
    for c in reached:
        accepted = None if c.limit is None else least_budget(c.limit, "cpu") if c.is_fraction else c.limit
        if accepted is not None and c.peak > accepted:
            yield Broken("held", (c.budget,), c.peak, accepted)
        if c.peak > own and (c.limit is None or c.limit >= own):
            yield Broken("inductor", (c.budget,), c.peak, own)
        if not c.exact or c.planned != c.peak:
            yield Broken("planned", (c.budget,), c.peak, c.planned)
    unlimited = [c for c in reached if c.limit is None]
    for family in ([c for c in reached if c.is_fraction], unlimited + [c for c in reached if not c.is_fraction]):
        yield from _pairs([*unlimited, *sorted((c for c in family if c.limit is not None), key=_budget, reverse=True)])


def _budget(choice: Choice) -> float:
    return choice.budget


def _pairs(falling: Sequence[Choice]) -> Iterator[Broken]:
    """The broken promises about neighbours among budgets of one form, highest first."""
    for higher, lower in itertools.pairwise(falling):
        if lower.peak > higher.peak:
            yield Broken("monotone", (higher.budget, lower.budget), lower.peak, higher.peak)
        if higher.limit is not None and higher.seconds * HARDLY_FASTER > lower.seconds:
            yield Broken("beaten", (higher.budget, lower.budget), higher.seconds, lower.seconds)


def shrink(outcome: Outcome, judge_it: Callable[[Program], Outcome] = judge) -> Outcome:
    """The same program without the layers that its broken promises do not need: one of the same kinds stays broken."""
    place = len(outcome.program.layers) - 1
    while place >= 0:
        smaller = judge_it(outcome.program.without(place))
        if smaller.kinds & outcome.kinds:
            outcome = smaller
        place -= 1
    return outcome


def quiet() -> None:
    """Prepare a process: one thread, no warnings, no line for each plan."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def judge_seed(seed: int) -> Outcome:
    quiet()
    return judge(write(seed))


def fuzz(seeds: range, jobs: int, tell: Callable[[Outcome], None], console: Console) -> collections.Counter[str]:
    """The number of programs by what they break, until interrupted; ``tell`` is called with each that breaks any."""
    found: collections.Counter[str] = collections.Counter()
    outcomes = track(_outcomes(seeds, jobs), "programs", total=len(seeds), console=console)
    try:
        for count, outcome in enumerate(outcomes, 1):
            found.update(outcome.kinds or {"not valid" if outcome.invalid else "kept"})
            if outcome.broken:
                tell(outcome)
            if not console.is_terminal and count % LINE_EVERY == 0:
                console.print(f"{count} of {len(seeds)} programs: {counts(found)}", highlight=False)
    except KeyboardInterrupt:
        pass
    return found


def counts(found: collections.Counter[str]) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in found.most_common())


def _outcomes(seeds: range, jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(judge_seed, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context, max_tasks_per_child=100) as pool:
        for future in concurrent.futures.as_completed([pool.submit(judge_seed, seed) for seed in seeds]):
            yield future.result()


def _rows(outcome: Outcome) -> Iterator[str]:
    program = outcome.program
    layers = [layer.kind for layer in program.layers]
    for broken in outcome.broken:
        row = dataclasses.asdict(broken) | {"ratio": broken.taken / broken.allowed if broken.allowed else None}
        row |= {"seed": program.seed, "own": outcome.own, "layers": layers, "head": program.head.settings}
        yield json.dumps(row | {"choices": [dataclasses.asdict(c) for c in outcome.choices]})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="number of programs (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first program (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--out", type=Path, help="a file for one JSON object per broken promise")
    parser.add_argument("--no-shrink", action="store_true", help="print programs as they are")
    given = parser.parse_args()
    quiet()
    console = Console()

    def tell(outcome: Outcome) -> None:
        if given.out:
            with given.out.open("a") as file:
                file.writelines(f"{row}\n" for row in _rows(outcome))
        smallest = outcome if given.no_shrink else shrink(outcome)
        console.print(smallest.text(), markup=False, highlight=False, soft_wrap=True)

    found = fuzz(range(given.seed, given.seed + given.programs), given.jobs, tell, console)
    console.print(counts(found), highlight=False)
    return 0 if set(found) <= {"kept", "not valid"} else 1


if __name__ == "__main__":
    sys.exit(main())
