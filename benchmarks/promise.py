"""Planned against measured bytes, for several models and budgets: ``python benchmarks/promise.py --help``.

Nothing is timed, so this is faster than filling the store. The question is whether the allocator's peak equals the
planned one. On a GPU the allocator reports two figures: the bytes requested, and the bytes of the blocks handed out; a
block that is not split is up to 1 MiB larger than its request. The page is made from the JSON file beside it; a second
run on the same day continues that file. A call that several models make is listed only for the first of them.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from rematpass import plans
from rematpass.compiler import devices
from rematpass.compiler.backend import remat
from rematpass.compiler.ops import workspace
from rematpass.errors import cause_of
from rematpass.lab.benchmark.results import slug
from rematpass.lab.measure.memory_and_time import measure_memory, run_step
from rematpass.lab.models.build import build
from rematpass.report.atomic import write_text
from rematpass.report.comparison import markdown_table
from rematpass.units import format_bytes

HERE = Path(__file__).parent
MODELS = "llama-small,gpt2,llama-1b-4k,gpt2-medium,vit-l,resnet50-224,unet-512"


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", default=MODELS, metavar="LIST", help=f"models of the catalog (default: {MODELS})")
    made.add_argument("--budgets", default="1,0.5,0", metavar="LIST", help="fractions or bytes (default: 1,0.5,0)")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument(
        "--results", type=Path, default=HERE / "results", metavar="DIR", help="directory of page and JSON"
    )
    made.add_argument(
        "--show", type=Path, metavar="FILE", help="measure nothing; make the page of this JSON file again"
    )
    made.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="start nothing after M minutes")
    arguments = made.parse_args(argv)
    until = time.monotonic() + 60 * arguments.minutes
    if arguments.show:
        path = arguments.show
    else:
        device = devices.usable(arguments.device)
        stem = f"promise_{slug(devices.of(device).name(device))}_{datetime.date.today().isoformat()}"
        path = arguments.results / f"{stem}.json"
        found = begun(path, device)
        for name in arguments.models.split(","):
            before = set(workspace.known())
            for budget in arguments.budgets.split(","):
                done = any((r["model"], r["budget"]) == (name, budget) for r in found["rows"])
                if done or time.monotonic() > until:
                    continue
                found["rows"].append(row(name, budget, device))
                new = [(call, n) for call, n in workspace.known().items() if n and call not in before]
                if new:
                    found["scratch"][name] = sorted(new, key=lambda pair: -pair[1])[:3]
                write_text(path, json.dumps(found, indent=1) + "\n")
    if not path.exists():
        print("nothing was measured: the time is over, or --models is empty")
        return 1
    page = path.with_suffix(".md")
    write_text(page, text(json.loads(path.read_text()), path.stem.rpartition("_")[2]))
    print(page.read_text())
    return 0


def begun(path: Path, device: torch.device) -> dict[str, Any]:
    """The contents of the file, or an empty document."""
    if path.exists():
        there: dict[str, Any] = json.loads(path.read_text())
        return there
    return {"device": devices.of(device).name(device), "torch": torch.__version__, "rows": [], "scratch": {}}


def row(name: str, budget: str, device: torch.device) -> dict[str, Any]:
    """One model under one budget: the planned peak and the measured one, or the error."""
    torch._dynamo.reset()
    plans(clear=True)
    gc.collect()
    try:
        model = build(name, device=device)
        model.module.compile(backend=remat, options={"memory_budget": budget, "strict": 1})
        for _ in range(2):
            run_step(model.step, model.parameters)
        (plan,) = plans()
        memory = measure_memory(model.step, model.parameters, device=device, warm=0)
    except Exception as error:
        cause = cause_of(error) or error
        logging.getLogger("rematpass").debug("%s at %s", name, budget, exc_info=error)
        return {"model": name, "budget": budget, "error": f"{type(cause).__name__}: {cause}".splitlines()[0][:200]}
    return {
        "model": name,
        "budget": budget,
        "planned": plan.peak_without_outputs,
        "requested": memory.requested,
        "measured": memory.peak,
        "floor": plan.floor,
        "ceiling": plan.ceiling,
        "exact": plan.exact,
    }


def text(found: dict[str, Any], date: str) -> str:
    head = ["model", "budget", "planned", "requested", "off by", "handed out", "above planned"]
    body = []
    for r in found["rows"]:
        if "error" in r:
            body.append([r["model"], r["budget"], r["error"], "", "", "", ""])
            continue
        asked = r["requested"] if r["requested"] is not None else r["measured"]
        body.append(
            [
                r["model"],
                r["budget"],
                format_bytes(r["planned"]),
                format_bytes(asked),
                f"{r['planned'] - asked:+,d} B",
                format_bytes(r["measured"]),
                f"{max(0, r['measured'] - r['planned']) / r['planned']:.2%}",
            ]
        )
    lines = [
        f"# Planned against measured bytes, {found['device']}, torch {found['torch']}, {date}",
        "",
        "Made by `python benchmarks/promise.py`: the peak of one training step beyond the bytes allocated before it.",
        "*Requested* are the bytes that the step requests from the allocator, *handed out* those of its blocks.",
        *([found["note"]] if "note" in found else []),
        "",
        markdown_table(head, body).rstrip(),
    ]
    calls = [(name, call, nbytes) for name, found_ in found["scratch"].items() for call, nbytes in found_]
    if calls:
        rows = [[name, f"`{call[:110]}`", format_bytes(nbytes)] for name, call, nbytes in calls]
        lines += ["", "Calls with the largest workspace, measured during planning:", ""]
        lines.append(markdown_table(["model", "call", "workspace"], rows, left=2))
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
