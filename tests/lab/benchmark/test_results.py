"""Tables and pictures made from a store, and the benchmark runners."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")

from test_session import Workers

from rematpass.lab.benchmark.job import Job, blank
from rematpass.lab.benchmark.results import write_results
from rematpass.lab.benchmark.store import Store
from rematpass.report.measurement import Strategy, parse_list

ROOT = Path(__file__).parents[3]
MIB = 2**20
PLACES = {"device": "cpu", "slug": "", "date": "", "results": "", "gib": "0"}


def load(path):
    spec = importlib.util.spec_from_file_location("a_benchmark", ROOT / path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def measured(strategy, peak, **fields):
    row = blank(Job("llama", Strategy.parse(strategy)))
    return dataclasses.replace(row, peak=peak * MIB, gradients=MIB, date="2026-11-30", **fields)


def test_tables_and_pictures(tmp_path):
    store = Store()
    store.add(measured("inductor", 11, step_ratio=(1.0, 1.0, 1.0)))
    store.add(measured("inductor@0.2", 13, step_ratio=(1.1, 1.2, 1.3), peak_other=12 * MIB))
    wanted = {"llama": parse_list("eager,inductor,inductor@0.2"), "gpt2": parse_list("eager")}
    document, _, *pictures = write_results(store, wanted, "cpu", "peers", tmp_path)
    device = f"cpu-{torch.get_num_threads()}-thread" + ("s" if torch.get_num_threads() > 1 else "")
    stem = f"peers_{device}_2026-11-30"
    assert [p.name for p in (document, *pictures)] == [f"{stem}.md", f"{stem}.svg", f"{stem}_llama.svg"]
    text = document.read_text()
    assert "## llama\n\nLlama: 8 layers of width 256, 4 x 256 tokens, sdpa.\n" in text
    assert "| Inductor | 0.2 |  | 13.00 MiB | 12.00 MiB | 12.00 MiB | 1.20 (1.10-1.30) |" in text
    assert text.count("| eager |  | not measured |") == 2
    assert f"![Measured peak against budget]({stem}.svg)" in text


def test_speed_at_the_same_peak(tmp_path):
    flops = {"eager_flops": 300, "forward_flops": 100}
    store = Store()
    store.add(measured("inductor", 17, step_ratio=(1.0, 1.0, 1.0), step_flops=300, compile_seconds=11.0, **flops))
    store.add(measured("inductor+checkpoint", 7, step_ratio=(1.1, 1.2, 1.3), step_flops=347, **flops))
    store.add(measured("inductor@0.2", 13, **flops))
    store.add(measured("remat@1", 16, planning_seconds=2.0, compile_seconds=19.0))
    store.add(measured(f"remat@{7 * MIB}B", 6, step_ratio=(0.8, 0.9, 0.9), step_flops=341, **flops))
    store.add(measured(f"remat@{13 * MIB}B", 14))
    store.add(measured(f"remat@{5 * MIB}B", 5))
    _, page, *_ = write_results(store, {"llama": []}, "cpu", "five-models", tmp_path)
    assert page.name.startswith("speed_cpu-")
    text = page.read_text()
    assert (
        "| llama | Inductor 0.2 | 13.00 MiB | 14.00 MiB | not measured | not measured | not measured | not measured "
        "| not measured |\n"
        "| llama | Inductor, checkpointed | 7.00 MiB | 6.00 MiB | 47.0% | 41.0% | 1.20 | 0.90 | 0.75 |\n"
    ) in text
    assert "Of 2 pairs, remat takes no more bytes in 1, no more FLOPs in 1 of 1, and at most 1.02 times " in text
    assert "| llama | inductor | 17.00 MiB | 1.00 | 11.00 s |  |\n" in text
    assert "| llama | remat@1 | 16.00 MiB | not measured | 19.00 s | 2.00 s |\n" in text
    assert text.endswith("_llama.svg)\n")


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """``benchmarks/run.py`` with fake workers; a call returns the exit code and the measured strategies."""
    module = load(Path("benchmarks/run.py"))
    used = Workers()
    monkeypatch.setattr("rematpass.lab.benchmark.workers.Worker", used)
    path = tmp_path / "measurements.jsonl"

    def call(*arguments):
        used.asked.clear()
        code = module.main(["--store", str(path), "--results", str(tmp_path), *arguments])
        return code, used.measured

    call.path = path
    return call


SOME = ("--models", "llama,chain", "--checkpoints", "eager", "--torch-budgets", "1.0,0.2", "--budgets", "1,0")


def test_a_second_run_measures_nothing(runner, capsys):
    code, asked = runner(*SOME)
    assert (code, asked) == (0, ["inductor", "eager", "remat@1", "remat@0", "inductor@0.2"] * 2)
    lines = runner.path.read_text()
    assert runner(*SOME) == (0, [])
    assert runner.path.read_text() == lines
    assert "0 measurements added" in capsys.readouterr().out
    models = {json.loads(line)["model"] for line in lines.splitlines()}
    assert models == {"llama", "chain"}


def test_only_measures_peers_or_remat(runner):
    assert runner(*SOME, "--only", "peers", "--models", "mlp")[1] == ["inductor", "eager", "inductor@0.2"]
    assert runner(*SOME, "--only", "remat", "--models", "mlp")[1] == ["inductor", "remat@1", "remat@0"]


def test_torchs_budget_of_one_is_plain_inductor(runner):
    code, asked = runner("--models", "mlp", "--only", "peers", "--checkpoints", "none", "--torch-budgets", "1.0")
    assert (code, asked) == (0, ["inductor"])


def test_quick_is_one_model_and_few_strategies(runner):
    code, asked = runner("--quick", "--rounds", "0")
    assert (code, len(asked)) == (0, 8)


def test_show_measures_nothing(runner, capsys):
    assert runner(*SOME, "--show") == (0, [])
    assert "strategies are still to be measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "lama"], "error: unknown model 'lama'; did you mean llama? Valid names are llama,"),
        (["--device", "gpu"], "error: 'gpu' is not a device; try cpu or cuda"),
        (["--budgets", "16"], "error: 'remat@16': memory_budget='16'"),
        (["--size", "batch"], "error: 'batch' is not a size"),
    ],
)
def test_invalid_arguments_are_refused(runner, capsys, arguments, message):
    assert runner(*arguments) == (2, [])
    assert message in capsys.readouterr().err


class TestGpuSlices:
    @pytest.fixture
    def gpu(self):
        return load(Path("benchmarks/gpu/run.py"))

    def test_the_commands_of_all_slices_parse(self, gpu, monkeypatch):
        from rematpass.cli import _parser as commands
        from rematpass.lab.models.catalog import MODELS

        understood = load(Path("benchmarks/run.py")).parser()
        values = {
            "device": "cuda",
            "minutes": "6",
            "results": "benchmarks/results",
            "slug": "h100",
            "date": "2026-11-30",
            "jobs": "4",
        }
        for name, piece in gpu.SLICES.items():
            command = [part.format(**values) for part in piece.command]
            if command[0] == "benchmarks/run.py":
                found = understood.parse_args(command[1:])
                assert found.models in MODELS
                assert found.device == "cuda"
            elif name == "compare":
                assert commands().parse_args(command[2:]).json.name == "compare_h100_2026-11-30.json"
        sizes = [name for name, spec in MODELS.items() if spec.for_gpu]
        assert sizes == [p.command[6] for p in gpu.SLICES.values() if "--alive" in p.command]

    def test_jobs_are_limited_by_the_gpus_memory(self, gpu):
        """Eight U-Nets at once run out of memory on a GPU with 140 GiB."""
        unet = dataclasses.replace(gpu.SLICES["unet"], jobs=8)
        assert [unet.jobs_on(gib) for gib in (16, 80, 140, 1000, math.inf)] == [1, 2, 4, 8, 8]
        assert dataclasses.replace(gpu.SLICES["tests"], jobs=4).jobs_on(16) == 4

    def test_missing_modules_without_wheels_are_named(self, gpu, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name == "ortools" else name)
        monkeypatch.setattr(gpu, "WHEELS", gpu.ROOT / "benchmarks" / "gpu" / "none")
        assert gpu.provide() == "missing: ortools, and there is no benchmarks/gpu/none; see README.md"
        monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
        assert gpu.provide() == "torch is not installed, and it is too large for the wheels directory"

    def test_wheels_txt_lists_every_installed_wheel(self, gpu):
        lines = (ROOT / "benchmarks/gpu/wheels.txt").read_text().splitlines()
        listed = {line.partition(">")[0].partition("<")[0] for line in lines}
        assert set(" ".join(gpu.NEEDED.values()).split()) <= listed

    def test_torch_finds_the_backends_of_a_checkout_by_name(self, gpu, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu, "SITE", tmp_path)
        found = importlib.metadata.entry_points(group=gpu.BACKENDS)
        monkeypatch.setattr(gpu.importlib.metadata, "entry_points", lambda **_: ())
        gpu.register()
        monkeypatch.undo()
        (there,) = importlib.metadata.distributions(path=[str(tmp_path)])
        ours = {entry.name: entry.value for entry in there.entry_points.select(group=gpu.BACKENDS)}
        assert ours == {e.name: e.value for e in found if e.value.startswith("rematpass")} != {}

    def test_a_slice_inherits_the_environment_and_limits_compilers(self, gpu, monkeypatch):
        names = ("FROM_OUTSIDE", "TORCHINDUCTOR_COMPILE_THREADS", "PYTHONPATH")
        look = f"import os; raise SystemExit(not all(name in os.environ for name in {names}))"
        monkeypatch.setenv("FROM_OUTSIDE", "1")
        monkeypatch.setitem(gpu.SLICES, "compare", gpu.Slice("look", ("-c", look)))
        arguments = type("Arguments", (), {"minutes": 1})
        assert gpu.run("compare", arguments, PLACES) == 0

    def test_a_slice_that_takes_too_long_is_ended(self, gpu, monkeypatch, capsys):
        monkeypatch.setitem(gpu.SLICES, "tests", gpu.Slice("sleep", ("-c", "import time; time.sleep(60)")))
        arguments = type("Arguments", (), {"minutes": 0.5 / 60})
        begun = time.monotonic()
        assert gpu.run("tests", arguments, PLACES) != 0
        assert time.monotonic() - begun < 30
        assert "run it again to continue" in capsys.readouterr().out
