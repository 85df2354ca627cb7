"""Train random programs under random budgets and compare all results with eager mode.

    python tests/fuzz.py --programs 2000 --seed 0

Seeds are those of ``fuzz_grammar.write``: ``--programs 1 --seed 17`` runs the program of seed 17 again. A program whose
results differ is shrunk to the statements it needs and printed in the form of ``tests/support/programs.py``. The exit
code is 1 if there is one.

A program is right if all that ``programs.run`` returns equals eager mode: bit for bit under ``remat_aot_eager``, within
a tolerance under ``remat``. The tolerance follows the lowest precision of the program, since Inductor keeps values in
float32 that eager mode rounds. If torch's own backend differs from eager mode too, its results count as right as well;
such programs are counted separately.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import sys
import traceback
import warnings
from dataclasses import dataclass

import torch
import torch._inductor.config
from rich.console import Console
from rich.progress import track
from support.fuzz_grammar import write
from support.fuzz_writer import Source
from support.programs import Seen, differences, run

from rematpass.compiler.planned import records
from rematpass.config import SOLVERS
from rematpass.core.verify import verify

SAME = "same as eager mode"
NEAR = "close to eager mode, and torch's own no closer"
TORCHS = "wrong in torch's own too, with the same results"
REFUSED = "refused by torch's own too"
INVALID = "not valid in eager mode"
WRONG = "WRONG"
TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3, "half()": 4e-3}  # a few roundings of the largest element
TORCHS_OWN = {"remat_aot_eager": "aot_eager", "remat": "inductor"}


@dataclass(frozen=True)
class Verdict:
    kind: str
    why: str = ""


def settings(seed: int) -> dict[str, object]:
    """A random budget and solver; strict, so that no fallback hides a failure of the planner."""
    choose = random.Random(f"settings {seed}")
    budget = choose.choice([1, 0.5, 0.2, 0, 0, round(choose.random(), 3)])
    solver = choose.choice([*SOLVERS, "ladder", "recompute_all"])
    return {"memory_budget": budget, "solver": solver, "max_recompute": choose.choice([1, 2]), "strict": 1}


def judge(source: Source, backend: str, options: dict[str, object]) -> Verdict:
    """Train the program under ``options`` and in eager mode."""
    program = source.program()
    try:
        expected = run(program)
    except Exception:
        return Verdict(INVALID)
    if any(name.startswith("output") and not t.isfinite().all() for name, t in expected.items()):
        return Verdict(INVALID)
    more = {"fallback_random": True} if backend == "remat" else {}
    try:
        seen = run(program, backend, options | more)
        for record in records():
            for rung in record.ladder.rungs:
                verify(record.graph, rung.plan)
    except Exception as error:
        why = "".join(traceback.format_exception_only(error)) + _frames(error)
        return Verdict(REFUSED, why) if _torchs_own(source, backend) is None else Verdict(WRONG, why)
    tolerance = 0.0 if backend == "remat_aot_eager" else tolerance_of(source)
    if seen.keys() == expected.keys() and not differences(seen, expected, tolerance):
        return Verdict(SAME)
    theirs = _torchs_own(source, backend)
    why = f"differs: {[name for name in expected if name not in seen or _differs(name, seen, expected)]}"
    if theirs is None:
        return Verdict(WRONG, why)
    if not differences(theirs, expected, tolerance):
        return Verdict(WRONG, why)
    if not differences(seen, expected, 1e-4):
        return Verdict(NEAR, why)
    return Verdict(WRONG if differences(seen, theirs, tolerance) else TORCHS, why)


def tolerance_of(source: Source) -> float:
    """The accepted difference of a fusing compiler from eager mode, relative to the largest element."""
    return max([1e-4, *(t for dtype, t in TOLERANCE.items() if dtype in source.text())])


def _differs(name: str, one: Seen, other: Seen) -> bool:
    return bool(differences({name: one[name]}, {name: other[name]}))


def _torchs_own(source: Source, backend: str) -> Seen | None:
    """The results of torch's own backend; None if it raises."""
    more = {"fallback_random": True} if backend == "remat" else None
    try:
        return run(source.program(), TORCHS_OWN[backend], more)
    except Exception:
        return None


def _frames(error: BaseException) -> str:
    inner = getattr(error, "inner_exception", None) or error
    return "".join(traceback.format_tb(inner.__traceback__)[-3:])


def shrink(source: Source, backend: str, options: dict[str, object]) -> Source:
    """The program without the statements that its wrong result does not need."""
    line = len(source.lines) - 1
    while line >= 0:
        smaller = source.without(line)
        if judge(smaller, backend, options).kind == WRONG:
            source = smaller
        line -= 1
    return source


def fuzz(seeds: range, backend: str = "remat_aot_eager", console: Console | None = None) -> collections.Counter[str]:
    """The number of programs by verdict, until interrupted; wrong programs are printed to ``console``."""
    found: collections.Counter[str] = collections.Counter()
    try:
        for seed in track(seeds, "programs", console=console, disable=console is None):
            verdict = _try(seed, backend, console)
            found[verdict.kind] += 1
    except KeyboardInterrupt:
        pass
    return found


def _try(seed: int, backend: str, console: Console | None) -> Verdict:
    options, source = settings(seed), write(seed)
    verdict = judge(source, backend, options)
    if verdict.kind == TORCHS and console:
        console.print(f"seed {seed}: {TORCHS}", highlight=False)
    if verdict.kind == WRONG and console:
        small = shrink(source, backend, options)
        text = f"seed {seed}, {options}, compile {dict(small.compile)}: {verdict.why}\n{small.text()}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return verdict


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="number of programs (default: 200)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first program; each next one adds 1 (default: 0)"
    )
    parser.add_argument("--backend", choices=TORCHS_OWN, default="remat_aot_eager")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # one line for each plan
    torch.set_num_threads(1)
    console = Console()
    with torch._inductor.config.patch(force_disable_caches=True):
        found = fuzz(range(given.seed, given.seed + given.programs), given.backend, console)
    console.print(", ".join(f"{kind}: {count}" for kind, count in found.most_common()))
    return 1 if found[WRONG] else 0


if __name__ == "__main__":
    sys.exit(main())
