"""Compile caches: what hits, what misses, and that a hit still logs the plan."""

import gzip
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import fx

from rematpass.compiler import _torch, plan_cache
from rematpass.compiler.inductor import settings
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.plan_cache import find, key
from rematpass.config import Config

# Compiles one small model again under each of the given settings, and prints what the caches did.
SCRIPT = """
import json, logging, sys
import torch
from torch._dynamo.utils import counters
import rematpass
from rematpass.compiler import partitioner

def train(backend, options):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 16), torch.nn.GELU())
    torch.compile(model, backend=backend, options=options)(torch.ones(64, 16)).sum().backward()

for run in json.loads(sys.argv[1]):
    torch._dynamo.reset()
    counters.clear()
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    rematpass_log = logging.getLogger("rematpass")
    rematpass_log.handlers = [handler]
    if "source" in run:
        partitioner.sources_hash = lambda: run["source"]
    if run.get("enable"):
        with rematpass.enable(**run["options"]):
            train("inductor", None)
    else:
        train("remat", run["options"])
    aot = counters["aot_autograd"]
    said = {"hit": aot["autograd_cache_hit"], "miss": aot["autograd_cache_miss"]}
    fx = {"fx hit": counters["inductor"]["fxgraph_cache_hit"], "fx miss": counters["inductor"]["fxgraph_cache_miss"]}
    print(json.dumps({**said, **fx, "planned": len(rematpass.plans(clear=True)), "lines": lines}))
"""


def process(cache, *runs):
    """What a new process prints for each run."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}
    environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


HALF = {"options": {"memory_budget": 0.5}}


@pytest.mark.slow
def test_a_second_process_hits_and_still_logs_the_plan(tmp_path):
    cache, reports = tmp_path / "cache", tmp_path / "reports"
    [first] = process(cache, HALF)
    assert (first["hit"], first["miss"], first["planned"]) == (0, 1, 1)
    [line] = first["lines"]
    assert line.startswith("graph 0/0: budget 0.5 of the way")

    with_report = {"options": {**HALF["options"], "report_dir": str(reports)}}
    changed = [
        {"options": {"memory_budget": 0.25}},
        {"options": {"memory_budget": 0.5, "hardware": "l4"}},  # another cost model
        {"options": {"memory_budget": 0.5, "max_recompute": 2}},
        {**HALF, "source": "the planner's source has changed"},
    ]
    again, reported, *others = process(cache, HALF, with_report, *changed)
    for hit in (again, reported):
        assert (hit["hit"], hit["miss"], hit["planned"], hit["fx miss"]) == (1, 0, 0, 0)
        assert hit["lines"] == [f"{line}, from the compile cache"]
    for miss in others:
        assert (miss["hit"], miss["miss"], miss["planned"]) == (0, 1, 1)
        assert "from the compile cache" not in miss["lines"][0]
    assert sorted(p.suffix for p in reports.iterdir()) == [".html", ".json", ".json", ".json", ".txt"]

    one, two = process(cache, {**with_report, "enable": True}, {**HALF, "enable": True})
    assert (one["hit"], one["planned"]) == (0, 1)  # enable() with a report plans again
    assert two["planned"] in (0, 1)


ARTIFACTS = """
import sys
import torch
from torch._dynamo.utils import counters

path, rows, dynamic = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "dynamic"
if sys.argv[4] == "load":
    assert torch.compiler.load_cache_artifacts(open(path, "rb").read()) is not None
step = torch.compile(lambda x, y: x.sin() @ y, backend="remat", dynamic=dynamic, options={"memory_budget": 0.5})
x, y = torch.ones(rows, 16, requires_grad=True), torch.ones(16, 5, requires_grad=True)
step(x, y).sum().backward()
if sys.argv[4] == "save":
    open(path, "wb").write(torch.compiler.save_cache_artifacts()[0])
print(counters["aot_autograd"]["autograd_cache_hit"], counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "rows"), [("static", 8), ("dynamic", 8), ("dynamic", 11)])
def test_artifacts_of_one_process_hit_in_another(tmp_path, sizes, rows):
    """With symbolic sizes, at other sizes too."""

    def hits(rows, what):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("REMAT_")}
        environ["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / what)
        command = [sys.executable, "-c", ARTIFACTS, str(tmp_path / "artifacts"), str(rows), sizes, what]
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.split()

    assert hits(8, "save") == ["0", "0"]
    assert hits(rows, "load") == ["1", "2"]


class Compiled:
    """Dynamo's graph of ``x.sin() * scale``, and its inputs."""

    def __init__(self, scale=2.0, shape=(3, 5), **tensor):
        def function(x):
            return x.sin() * scale

        self.gm = fx.symbolic_trace(function)
        self.inputs = [torch.ones(shape, **tensor)]

    def key(self, uuid=b"u", **options):
        return key(uuid, self.gm, self.inputs, options)


def test_equal_compilations_have_equal_keys():
    assert Compiled().key() == Compiled().key()
    partitioner = RematPartitioner(Config())
    assert Compiled().key(custom_partitioner_fn=partitioner) == Compiled().key()


@pytest.mark.parametrize(
    "other",
    [
        lambda: Compiled(scale=3.0).key(),
        lambda: Compiled(shape=(5, 3)).key(),
        lambda: Compiled(dtype=torch.float64).key(),
        lambda: Compiled(requires_grad=True).key(),
        lambda: Compiled().key(b"v"),
        lambda: Compiled().key(max_autotune=True),
    ],
)
def test_all_that_the_plan_depends_on_changes_the_key(other):
    assert other() != Compiled().key()


def test_settings_of_inductor_change_the_key():
    before = Compiled().key()
    with _torch.inductor_config.patch(permute_fusion=not _torch.inductor_config.permute_fusion):
        assert Compiled().key() != before
    assert Compiled().key() == before


def test_a_stored_plan_that_cannot_be_read_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setattr(_torch, "cache_directory", lambda: str(tmp_path))
    assert find("abc") is None
    path = plan_cache._path("abc")
    path.parent.mkdir(parents=True)
    for content in (b"no gzip", gzip.compress(b"{"), gzip.compress(b'{"format": 9, "summary": {}, "files": {}}')):
        path.write_bytes(content)
        assert find("abc") is None


def test_nothing_is_stored_if_caches_are_disabled(tmp_path, monkeypatch):
    monkeypatch.setattr(_torch, "cache_directory", lambda: str(tmp_path))
    compiled, partitioner = Compiled(), RematPartitioner(Config())
    with _torch.inductor_config.patch(force_disable_caches=True):
        assert settings.caches_are_disabled()
        with plan_cache.keeping(partitioner, compiled.gm, compiled.inputs, {}):
            pass
    assert list(tmp_path.iterdir()) == []
