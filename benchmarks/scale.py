"""How planning scales with the ops of a joint graph, beside torch's own partitioner: ``python benchmarks/scale.py``.

The first table shows the ladders of synthetic Llama graphs of any size (``support/synthetic_llama.py``). The second one
compares our ladder with torch's partitioner at activation budgets 1.0 and 0.5, on the joint graph of a real Llama as
AOTAutograd hands it over. Each row is measured in a separate process, for its memory. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rematpass.report.atomic import write_text

HERE = Path(__file__).parent


def main(argv: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--ops", default="2000,20000,100000", metavar="LIST", help="ops of the synthetic graphs")
    made.add_argument("--layers", default="16,160", metavar="LIST", help="layers of the real Llama")
    made.add_argument("--results", type=Path, default=HERE / "results", metavar="DIR", help="directory of the page")
    made.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    arguments = made.parse_args(argv)
    if arguments.row:
        what, size = arguments.row
        print(json.dumps({"shaped": shaped, "real": real}[what](int(size))))
        return 0
    shaped_rows = [row("shaped", size) for size in arguments.ops.split(",") if size]
    real_rows = [row("real", size) for size in arguments.layers.split(",") if size]
    page = arguments.results / f"scale_cpu_{datetime.date.today().isoformat()}.md"
    write_text(page, text(shaped_rows, real_rows))
    print(f"wrote {page}")
    return 0


def row(what: str, size: str) -> dict[str, Any]:
    """One row, measured in a separate process."""
    print(f"measuring {what} {size}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, __file__, "--row", what, size], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shaped(ops: int) -> dict[str, Any]:
    """The ladder of a synthetic Llama graph of about ``ops`` ops."""
    from support.synthetic_llama import OPS_PER_LAYER, llama

    graph = llama(max(1, round(ops / OPS_PER_LAYER)))
    return ladder_of(graph)


def ladder_of(graph: Any) -> dict[str, Any]:
    from rematpass.core import frontier, hardware
    from rematpass.core.cost import estimate
    from rematpass.core.solve.problem import Problem
    from rematpass.core.verify import verify

    problem = Problem(graph, estimate(graph, hardware.preset("cpu")))
    cut = seconds(lambda: problem.network.solve(problem.costs.run, problem.costs.keep))[0]
    taken, ladder = seconds(lambda: frontier.build(problem))
    taken += seconds(lambda: verify(graph, ladder.rungs[-1].plan))[0]  # as for each rung that is emitted
    return {
        "ops": len(graph.ops),
        "one cut": cut,
        "ladder": taken,
        "rungs": len(ladder.rungs),
        "ceiling": ladder.ceiling,
        "floor": ladder.floor,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def real(layers: int) -> dict[str, Any]:
    """Torch's partitioner and our ladder on the joint graph of a Llama, which is narrow so that it runs fast."""
    import torch
    from support.joint_graph import captured, copied, inspect_joint
    from torch._functorch import config as functorch_config

    from rematpass.compiler import _torch
    from rematpass.lab.models import transformers_zoo

    torch.set_num_threads(1)
    found: dict[str, Any] = {"layers": layers}

    def inspect(joint: Any, inputs: Any, kwargs: Any) -> None:
        for budget in (1.0, 0.5):
            again = copied(joint)
            with functorch_config.patch(activation_memory_budget=budget):
                found[f"torch at {budget}"], _ = seconds(lambda: _torch.default_partition(again, inputs, **kwargs))  # noqa: B023
        found["capture"], ours = seconds(lambda: captured(joint, kwargs))
        found.update(ladder_of(ours.graph))

    module, inputs = transformers_zoo.llama(
        width=16, layers=layers, heads=2, kv_heads=1, mlp=32, vocabulary=64, batch=1, length=16
    )
    inspect_joint(module, lambda: module(**inputs), inspect)
    return found


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and its result."""
    begun = time.process_time()
    found = call()
    return time.process_time() - begun, found


def text(shaped_rows: list[dict[str, Any]], real_rows: list[dict[str, Any]]) -> str:
    today = datetime.date.today().isoformat()
    lines = [
        f"# How planning scales ({today}, one CPU core)",
        "",
        "Made by `python benchmarks/scale.py`. Seconds are processor time; memory is the peak of the process.",
        "",
        "## Synthetic Llama graphs",
        "",
        "| ops | one cut, s | whole ladder, s | rungs | floor / ceiling | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['ops']:,} | {r['one cut']:.2f} | {r['ladder']:.1f} | {r['rungs']} | {r['floor'] / r['ceiling']:.3f} "
        f"| {r['MiB']:.0f} |"
        for r in shaped_rows
    ]
    lines += [
        "",
        "## The joint graph of a real Llama, beside torch's partitioner",
        "",
        "| layers | ops | torch at 1.0, s | torch at 0.5, s | capture, s | whole ladder, s | rungs |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['layers']} | {r['ops']:,} | {r['torch at 1.0']:.1f} | {r['torch at 0.5']:.1f} | {r['capture']:.1f} "
        f"| {r['ladder']:.1f} | {r['rungs']} |"
        for r in real_rows
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    raise SystemExit(main())
