"""All GPU measurements, run from a checkout in slices of less than 9 minutes: see README.md."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SITE, WHEELS = HERE / "site", HERE / "wheels"
MINUTES = 9.0
CORES = len(os.sched_getaffinity(0))
JOBS = max(1, min(8, CORES // 2))  # one core traces and plans a model while another one compiles its kernels
TESTERS = max(1, min(4, CORES // 4))
NEEDED = {  # module -> the wheels that provide it, with their dependencies
    "ortools": "ortools protobuf immutabledict absl-py typing-extensions",  # in the versions that OR-tools requires
    "numpy": "numpy",
    "pandas": "pandas python-dateutil pytz six tzdata",  # for OR-tools
    "psutil": "psutil",
    "rich": "rich markdown-it-py mdurl pygments",
    "pytest": "pytest iniconfig pluggy packaging pygments",
    "xdist": "pytest-xdist execnet",
    "hypothesis": "hypothesis attrs sortedcontainers",
    "matplotlib": "matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing",
}
BACKENDS = "torch_dynamo_backends"
TAKEN_AS_GIVEN = ("torch", "transformers")


@dataclass(frozen=True)
class Slice:
    """A command, run from the checkout. ``{device}`` in it is the device, ``{minutes}`` the time after which it starts
    nothing new, and ``{jobs}`` the number of processes that fit.

    ``jobs``: the most processes that compile at the same time. ``gib``: GiB of the GPU that one of them takes while it
    measures, including the eager step.
    """

    what: str
    command: tuple[str, ...]
    jobs: int = JOBS
    gib: float = 0.0

    def jobs_on(self, gib: float) -> int:
        """The processes that fit on a GPU with ``gib`` GiB, beside finished ones that keep their models."""
        return max(1, int(min(self.jobs, 0.75 * gib / self.gib))) if self.gib else self.jobs


def store(models: str, *options: str, gib: float = 0.0) -> Slice:
    command = ("benchmarks/run.py", "--device", "{device}", "--minutes", "{minutes}", "--models", models, *options)
    return Slice(f"the store: {models}{', per block' * ('--per-block' in options)}", command, gib=gib)


# A row of the 1B Llama takes at least a minute on 16 cores, mostly compiling; an interrupted slice continues next time.
FEW = (
    "--jobs {jobs} --alive 16 --timeout 240 --rounds 7 --torch-budgets 1.0,0.5,0.2 --budgets 1,0.5,0 --like-peers"
).split()
BLOCKS = "--per-block --jobs {jobs} --rounds 7 --torch-budgets 1.0,0.5,0.2,0.0 --budgets 1,0.5,0.25,0".split()
SLICES = {
    "tests": Slice(
        "the tests that need a GPU",
        ("-m", "pytest", "-v", "-n", str(TESTERS), "-m", "gpu", "tests"),
        jobs=TESTERS,
    ),
    "promise": Slice(
        "planned against measured bytes",
        ("benchmarks/promise.py", "--device", "{device}", "--results", "{results}", "--minutes", "{minutes}"),
    ),
    "compare": Slice(
        "rematpass compare",
        ("-m", "rematpass", "compare", "--device", "{device}", "--picture", "{results}/compare_{slug}_{date}.svg",
         "--json", "{results}/compare_{slug}_{date}.json"),
    ),
    "quick": store("llama-small", "--quick"),
    "blocks": store("llama-1b-4k", "--name", "blocks-1b", *BLOCKS, gib=20),
    "llama-2k": store("llama-1b-2k", "--name", "llama-1b-2k", *FEW, gib=12),
    "llama-4k": store("llama-1b-4k", "--name", "llama-1b-4k", *FEW, gib=18),
    "llama-8k": store("llama-1b-8k", "--name", "llama-1b-8k", *FEW, gib=32),
    "llama-16k": store("llama-1b-16k", "--name", "llama-1b-16k", *FEW, gib=60),
    "gpt2": store("gpt2-medium", "--name", "gpt2-medium", *FEW, gib=20),
    "vit": store("vit-l", "--name", "vit-l", *FEW, gib=13),
    "resnet": store("resnet50-224", "--name", "resnet50-224", *FEW, gib=14),
    "unet": store("unet-512", "--name", "unet-512", *FEW, gib=22),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slices", nargs="*", metavar="SLICE", help=f"one of {', '.join(SLICES)} (default: all)")
    parser.add_argument("--list", action="store_true", help="list the slices and exit")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the commands (default: cuda)")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"time limit of each slice (default: {MINUTES:g})"
    )
    arguments = parser.parse_args()
    unknown = [name for name in arguments.slices if name not in SLICES]
    if unknown:
        print(f"error: no slice {unknown[0]!r}; there are {', '.join(SLICES)}", file=sys.stderr)
        return 2
    names = arguments.slices or list(SLICES)
    if arguments.list:
        for name in names:
            print(f"{name:10} {SLICES[name].what}")
        return 0
    sys.path.insert(0, str(SITE))
    if problem := provide():
        print(f"error: {problem}", file=sys.stderr)
        return 2
    register()
    places = where(arguments.device)
    codes = {name: run(name, arguments, places) for name in names}
    for name, code in codes.items():
        print(f"{name:10} {'done' if code == 0 else f'exit code {code}'}")
    return int(any(codes.values()))


def provide() -> str:
    """Install modules that cannot be imported from the wheels beside this file; returns the problem, or ""."""
    for module in TAKEN_AS_GIVEN:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed, and it is too large for the wheels directory"
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if not missing:
        return ""
    if not WHEELS.is_dir():
        return f"missing: {', '.join(missing)}, and there is no {WHEELS.relative_to(ROOT)}; see README.md"
    # --no-deps: the machine has most dependencies, and installing them here would hide those.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--find-links", str(WHEELS)]
    wheels = dict.fromkeys(wheel for module in missing for wheel in NEEDED[module].split())
    done = subprocess.run([*pip, "--upgrade", "--target", str(SITE), *wheels], check=False)
    importlib.invalidate_caches()
    return "" if done.returncode == 0 else f"pip could not install {', '.join(missing)} from {WHEELS.relative_to(ROOT)}"


def register() -> None:
    """Let torch find the backends by name: these are entry points, which a checkout that is not installed lacks."""
    import tomllib

    if importlib.metadata.entry_points(group=BACKENDS, name="remat"):
        return
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][BACKENDS]
    place = SITE / "rematpass-0.dist-info"
    place.mkdir(parents=True, exist_ok=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: rematpass\nVersion: 0\n")
    lines = [f"[{BACKENDS}]", *(f"{name} = {target}" for name, target in entries.items())]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n")


def where(device: str) -> dict[str, str]:
    """The values of the placeholders in commands, and the GPU's GiB."""
    import re

    import torch

    on_gpu = device.startswith("cuda") and torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_gpu else device
    gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if on_gpu else 0.0
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    results = (ROOT / "benchmarks" / "results").relative_to(ROOT).as_posix()
    return {"device": device, "slug": slug, "date": time.strftime("%Y-%m-%d"), "results": results, "gib": f"{gib:g}"}


def run(name: str, arguments: argparse.Namespace, places: dict[str, str]) -> int:
    """Run one slice and end it when its time is over; the store keeps what it has measured."""
    # It starts nothing new after 75% of the time, so that the last strategy can take its step times.
    jobs = SLICES[name].jobs_on(float(places["gib"]) or math.inf)
    values = {**places, "minutes": f"{0.75 * arguments.minutes:g}", "jobs": str(jobs)}
    command = [sys.executable, *(part.format(**values) for part in SLICES[name].command)]
    print(f"=== {name}: {SLICES[name].what}", flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), str(SITE), os.environ.get("PYTHONPATH", "")]))
    # Otherwise each job would start a compiler for every core.
    threads = max(1, CORES // jobs)
    environment = {"TORCHINDUCTOR_COMPILE_THREADS": str(threads), **os.environ}
    environment |= {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    begun = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        code = process.wait(timeout=60 * arguments.minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that pytest still reports failures
        try:
            code = process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.terminate()
            code = process.wait()
        print(f"=== {name}: ended after {arguments.minutes:g} minutes; run it again to continue")
    except BaseException:
        process.terminate()
        raise
    print(f"=== {name}: exit code {code}, {time.monotonic() - begun:.0f} s", flush=True)
    # pytest exits with 5 if it has collected no test that needs a GPU.
    return 0 if (name, code) == ("tests", 5) else code


if __name__ == "__main__":
    raise SystemExit(main())
