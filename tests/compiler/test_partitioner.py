import copy
import dataclasses
import functools
import gc
import json
import logging
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.graphs import Builder
from support.programs import PROGRAMS, afresh, differences, reference, run
from torch._dynamo.exc import BackendCompilerFailed

from rematpass import BudgetInfeasible, Config, plans
from rematpass.compiler import partitioner, planner
from rematpass.compiler.auto_budget import auto_budget
from rematpass.compiler.backend import remat_aot_eager
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planner import Planner
from rematpass.core import frontier
from rematpass.core.op import Origin
from rematpass.core.schedule import Plan
from rematpass.core.solve import ladder
from rematpass.errors import CaptureError, ContradictoryMarks, PlanError

afresh = pytest.fixture(autouse=True)(afresh)

WIDTH, BATCH, LAYERS = 16, 4096, 16  # activations of 256 KiB, far more than parameters


def tower():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Tanh()) for _ in range(LAYERS))
    )


def train(batch=BATCH, model=None, dynamic=None, **options):
    """One step of the tower; the summary of its plan."""
    step = torch.compile(model or tower(), backend="remat_aot_eager", options=options, dynamic=dynamic)
    step(torch.ones(batch, WIDTH)).sum().backward()
    return plans()[-1] if plans() else None


@pytest.fixture(scope="module")
def ends():
    """Floor and ceiling of the tower."""
    torch._dynamo.reset()
    summary = train(memory_budget=0)
    return summary.floor, summary.ceiling


@pytest.mark.parametrize("fraction", [0, 0.25, 0.5, "0.75", 1, "1.0", None])
def test_the_peak_under_a_fraction_is_between_floor_and_ceiling(fraction, ends):
    floor, ceiling = ends
    assert floor < 0.7 * ceiling
    summary = train(memory_budget=fraction)
    limit = floor + float(1 if fraction is None else fraction) * (ceiling - floor)
    assert floor <= summary.planned_peak <= limit


def test_a_lower_budget_never_takes_more_memory_or_fewer_seconds(ends):
    chosen = []
    for twentieth in range(21):
        torch._dynamo.reset()
        chosen.append(train(memory_budget=twentieth / 20))
    peaks, seconds = [c.planned_peak for c in chosen], [c.step_seconds for c in chosen]
    assert peaks == sorted(peaks)
    assert seconds == sorted(seconds, reverse=True)
    assert len(set(peaks)) > 5


@pytest.mark.parametrize("form", ["{}", "{}B"])
def test_the_peak_leaves_a_thousandth_of_a_byte_budget_free(form, ends):
    nbytes = sum(ends) // 2
    summary = train(memory_budget=form.format(nbytes))
    assert summary.budget_nbytes == nbytes
    assert 1.001 * summary.planned_peak <= nbytes


def test_a_budget_below_the_floor_names_the_floor_and_its_largest_values(ends):
    with pytest.raises(BackendCompilerFailed) as caught:
        train(memory_budget="1MiB")
    error = caught.value.inner_exception
    assert isinstance(error, BudgetInfeasible)
    assert (error.budget, error.floor) == (1 << 20, ends[0])
    first, *largest, every, last = str(error).splitlines()
    assert first.endswith("with at most 1 extra forwards of recompute. The largest values at that moment:")
    assert "no plan stays under 1.00 MiB; the lowest peak is " in first
    assert len(largest) == 5
    assert any("float32[4096, 16]" in line and "test_partitioner" not in line for line in largest)
    assert every.startswith("Every plan takes 1.02 MiB, in ")
    assert last.startswith("Try memory_budget=")
    suggested = last.split("memory_budget=")[1].split(" or more")[0]
    torch._dynamo.reset()
    held = train(memory_budget=suggested)
    assert ends[0] <= held.planned_peak <= frontier.peak_allowed(held.budget_nbytes, "cpu")


def test_a_recompile_over_budget_continues_at_the_floor_and_logs_the_excess(ends, caplog):
    model = tower()
    step = torch.compile(model, backend="remat_aot_eager", options={"memory_budget": ends[1]}, dynamic=False)
    step(torch.ones(BATCH // 2, WIDTH)).sum().backward()
    step(torch.ones(4 * BATCH, WIDTH)).sum().backward()
    over = [r.getMessage() for r in caplog.records if r.getMessage().startswith("over budget by ")]
    assert len(over) == 1
    assert "after a recompile for other shapes; training continues at the floor" in over[0]
    assert plans()[-1].planned_peak == plans()[-1].floor > ends[1]
    torch._dynamo.reset()
    strict = {"memory_budget": ends[1], "strict": 1}
    step = torch.compile(model, backend="remat_aot_eager", options=strict, dynamic=False)
    step(torch.ones(BATCH // 2, WIDTH)).sum().backward()
    with pytest.raises(BackendCompilerFailed, match="no plan stays under"):
        step(torch.ones(4 * BATCH, WIDTH))


def broken(problem, solver, default):
    if solver == "ladder":
        raise PlanError("the planner has a bug")
    return build(problem, solver, default)


build = frontier.build


def test_a_plan_that_the_judge_rejects_is_never_used(monkeypatch, caplog):
    monkeypatch.setitem(ladder.SOLVERS, "ladder", lambda problem: (Plan("broken", (), (), ()),))
    seen = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": 0.5})
    assert not differences(seen, reference("mlp"))
    (warning,) = warned(caplog)
    assert warning.startswith(
        "planning failed (PlanError: the plan of broken is not valid, at the end of forward: op 0"
    )


def test_if_planning_fails_under_a_fraction_torchs_partitioner_takes_over(monkeypatch, caplog):
    monkeypatch.setattr(frontier, "build", broken)
    seen = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": 0.5})
    assert not differences(seen, reference("mlp"))
    assert not plans()
    warnings = [r.getMessage() for r in caplog.records if r.name == "rematpass" and r.levelno >= logging.WARNING]
    assert warnings == [
        "planning failed (PlanError: the planner has a bug); torch's own partitioner takes over. "
        "The memory budget is NOT held for this graph. REMAT_STRICT=1 raises instead"
    ]


def test_if_planning_fails_under_a_byte_budget_everything_is_recomputed(monkeypatch, caplog):
    monkeypatch.setattr(frontier, "build", broken)
    summary = train(memory_budget="64MiB")
    assert summary.solver == "recompute_all"
    assert summary.fallback == "PlanError: the planner has a bug"
    assert (
        "planning failed (PlanError: the planner has a bug); all that can be recomputed is recomputed instead"
        in caplog.messages
    )


def test_strict_mode_raises_the_planners_error(monkeypatch):
    monkeypatch.setattr(frontier, "build", broken)
    with pytest.raises(BackendCompilerFailed, match="the planner has a bug"):
        train(memory_budget=0.5, strict=1)


def test_contradictory_marks_are_raised_without_a_fallback(monkeypatch):
    def contradict(*_):
        raise ContradictoryMarks("backward needs a value that can neither be saved nor recomputed: op a -> value b")

    monkeypatch.setattr(frontier, "build", contradict)
    with pytest.raises(BackendCompilerFailed, match="can neither be saved nor recomputed: op a -> value b"):
        train(memory_budget=0.5)


def train_functions(*functions, **options):
    for function in functions:
        compiled = torch.compile(function, backend="remat_aot_eager", options=options)
        compiled(torch.ones(7, requires_grad=True)).sum().backward()


def shared_budget_warnings(caplog):
    return [m for m in caplog.messages if m.startswith("more than one graph is trained under the memory budget of ")]


def test_a_second_graph_under_a_byte_budget_is_warned_of_once(caplog):
    functions = (lambda x: x.sin().exp(), lambda x: x.cos().exp(), lambda x: x.tan().exp())
    train_functions(*functions, memory_budget="64MiB")
    assert len(plans()) == 3
    (message,) = shared_budget_warnings(caplog)
    assert message.startswith("more than one graph is trained under the memory budget of 64.00 MiB")
    assert "it holds for each of them by itself, not for their sum" in message


def test_a_dynamo_reset_also_resets_the_warning_of_shared_budgets(caplog):
    sine, cosine = (lambda x: x.sin().exp()), (lambda x: x.cos().exp())
    train_functions(sine, memory_budget="64MiB")
    torch._dynamo.reset()
    train_functions(sine, memory_budget=0.5)
    train_functions(cosine, memory_budget="64MiB")  # the only graph under this budget since the reset
    assert not shared_budget_warnings(caplog)
    train_functions(lambda x: x.tan().exp(), memory_budget="64MiB")
    assert len(shared_budget_warnings(caplog)) == 1


def test_the_log_line(caplog):
    caplog.set_level(logging.INFO, logger="rematpass")
    summary = train(memory_budget=0.5)
    (line,) = [m for m in caplog.messages if "planned peak" in m]
    assert line == summary.line()
    for part in (
        "budget 0.5 of the way",
        "planned peak",
        "floor",
        "ceiling",
        "saves",
        "recomputes",
        "of step seconds",
        "plan",
    ):
        assert part in line


@pytest.mark.parametrize(("given", "shown"), [({"memory_budget": 0.5}, True), ({}, False)])
def test_the_log_line_is_shown_if_and_only_if_a_budget_was_given(given, shown, caplog):
    caplog.set_level(logging.WARNING)
    train(**given)
    assert any("planned peak" in m for m in caplog.messages) is shown


KEYS = "from rematpass import Config; from rematpass.compiler.partitioner import RematPartitioner as P; print({}.hex())"


def test_the_cache_key_is_the_same_in_another_process():
    mine = RematPartitioner(Config.read({"memory_budget": "64MiB"}, {})).uuid()
    expression = "P(Config.read({'memory_budget': '64MiB'}, {})).uuid()"
    other = subprocess.run([sys.executable, "-c", KEYS.format(expression)], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == mine.hex()


def test_all_that_can_change_a_plan_changes_the_cache_key(monkeypatch):
    settings = [{}, {"memory_budget": 0.5}, {"memory_budget": "64MiB"}, {"max_recompute": 2}, {"solver": "mincut"}]
    settings += [
        {"hardware": "h200"},
        {"strict": 1},
        {"save_decisions": 0},
        {"pure_ops": "mylib::scan"},
        {"planning_seconds": 60},
        {"hold_outputs": 0},
        {"calls": 2},
    ]
    keys = [RematPartitioner(Config.read(s, {})).uuid() for s in settings]
    keys.append(RematPartitioner(Config(), fuse=False).uuid())
    monkeypatch.setattr(partitioner, "sources_hash", lambda: "other sources")
    keys.append(RematPartitioner(Config()).uuid())
    monkeypatch.setattr(partitioner, "free_bytes", lambda device: 7 << 30)
    keys.append(RematPartitioner(Config.read({"memory_budget": "auto"}, {})).uuid())
    monkeypatch.setattr(partitioner, "free_bytes", lambda device: 8 << 30)
    keys.append(RematPartitioner(Config.read({"memory_budget": "auto"}, {})).uuid())
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_the_auto_budget_counts_all_calls_of_a_graph_and_the_optimizers_state():
    """Four blocks of 1 GiB of weights: Adam's state for all, and the gradients of the three that a plan leaves out."""
    b = Builder()
    b.input(1 << 30, Origin.STATIC, dtype="float32")
    budgets = []
    for calls in (1, 4):
        graph = b.build([b.op([0], 4)], [], calls=calls)
        auto = Config.read({"memory_budget": "auto"}, {})
        budgets.append(Planner(auto, True, None, torch.device("cpu"), 64 << 30).budget(graph).nbytes)
    assert budgets == [auto_budget(64 << 30, 1 << 30, None), auto_budget(61 << 30, 4 << 30, None)]


def test_nothing_else_changes_the_pickled_partitioner(tmp_path):
    """Inductor's key contains the pickle: neither the spelling of a budget nor a report directory may cause a miss."""

    def pickled(environ=(), **options):
        return pickle.dumps(RematPartitioner(Config.read(options, dict(environ))))

    same = pickled(memory_budget="1GiB")
    assert pickled(memory_budget="1024MiB") == same
    assert pickled({"REMAT_MEMORY_BUDGET": "1GiB"}.items()) == same
    assert pickled(memory_budget="1GiB", report_dir=tmp_path) == same
    assert pickled(memory_budget="2GiB") != same
    assert pickled(memory_budget="1GiB", hardware="l4") != same
    again = pickle.loads(same)
    assert (again.config.memory_budget.nbytes, again.planned) == (2**30, None)


def test_a_report_is_written_for_every_planned_graph(tmp_path, ends):
    summary = train(memory_budget=0.5, report_dir=tmp_path / "reports")
    stem = f"graph-0-0-{summary.plan_hash}"
    assert {p.name for p in (tmp_path / "reports").iterdir()} == {
        f"{stem}{suffix}" for suffix in (".html", ".txt", ".json", ".trace.json", ".graph.json")
    }
    report = json.loads((tmp_path / "reports" / f"{stem}.json").read_text("utf-8"))
    assert report["summary"] == json.loads(json.dumps(dataclasses.asdict(summary)))
    assert report["others"][0]["name"] == "torch's default, in our order"


def test_a_report_that_cannot_be_written_is_logged(tmp_path, caplog, ends):
    (tmp_path / "taken").write_text("")
    assert train(memory_budget=0.5, report_dir=tmp_path / "taken") is not None
    [text] = [r.getMessage() for r in caplog.records if "no report" in r.getMessage()]
    assert text.startswith(f"no report of graph 0/0: ReportError: cannot write {tmp_path}/taken/")


def warned(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "rematpass" and r.levelno >= logging.WARNING]


def test_a_timeout_is_handled_like_a_failure(caplog):
    """Under a byte budget everything is recomputed, under a fraction torch's partitioner takes over; both log why."""
    summary = train(memory_budget="64MiB", planning_seconds=1e-9)
    assert summary.solver == "recompute_all"
    assert summary.fallback.startswith("PlanTimeout: planning took longer than planning_seconds allows")
    torch._dynamo.reset()
    plans(clear=True)
    caplog.clear()
    seen = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": 0.5, "planning_seconds": 1e-9})
    assert not differences(seen, reference("mlp"))
    (warning,) = warned(caplog)
    assert warning.startswith("planning failed (PlanTimeout: planning took longer than planning_seconds allows;")
    assert "The memory budget is NOT held for this graph." in warning
    torch._dynamo.reset()
    assert train(memory_budget=0.5, planning_seconds=600, strict=1).fallback == ""


@pytest.mark.parametrize(("budget", "solver"), [("64MiB", "recompute_all"), (0.5, None)])
def test_running_out_of_memory_while_planning_is_handled_like_a_failure(budget, solver, monkeypatch, caplog):
    def out_of_memory(problem, solver, default):
        if solver == "ladder":
            raise MemoryError
        return build(problem, solver, default)

    monkeypatch.setattr(frontier, "build", out_of_memory)
    summary = train(memory_budget=budget)
    assert (summary and summary.solver) == solver
    assert [w.startswith("planning failed (MemoryError: ") for w in warned(caplog)].count(True) == 1


def test_if_recomputing_everything_fails_too_torchs_partitioner_takes_over(monkeypatch, caplog):
    def always_broken(problem, solver, default):
        raise PlanError(f"no {solver}")

    monkeypatch.setattr(frontier, "build", always_broken)
    seen = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": "64MiB"})
    assert not differences(seen, reference("mlp"))
    (warning,) = warned(caplog)
    assert warning.startswith("planning failed (PlanError: no ladder); torch's own partitioner takes over. The memory")


def test_a_graph_that_cannot_be_captured_is_left_to_torch(monkeypatch, caplog):
    def unreadable(*_, **__):
        raise CaptureError("a joint graph holds no such thing")

    monkeypatch.setattr(partitioner, "capture", unreadable)
    seen = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": 0.5})
    assert not differences(seen, reference("mlp"))
    assert warned(caplog)[0].startswith(
        "planning failed (CaptureError: a joint graph holds no such thing); torch's own"
    )


def test_the_cycle_collector_is_off_from_capture_to_the_summary(monkeypatch):
    seen = []

    def watched(module, name):
        original = getattr(module, name)

        def wrapper(*args, **kwargs):
            seen.append((name, gc.isenabled()))
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapper)

    watched(partitioner, "capture")
    watched(planner, "summarize")
    assert gc.isenabled()
    train(memory_budget=0.5)
    assert (seen, gc.isenabled()) == ([("capture", False), ("summarize", False)], True)


def test_threads_that_compile_at_once_get_the_gradients_of_a_single_thread():
    """The backend is passed as a function: two threads must not look up a backend's name for the first time at once."""
    names = ["mlp", "checkpoint_regions", "a_buffer_read_and_then_updated"] * 2
    made = [PROGRAMS[name].make() for name in names]

    def gradients(forward, arguments, **compile):
        arguments = [a.detach().clone().requires_grad_() for a in arguments]
        (torch.compile(forward, **compile) if compile else forward)(*arguments).square().sum().backward()
        return [a.grad for a in arguments]

    alone = [gradients(*one) for one in copy.deepcopy(made)]
    compiled = functools.partial(
        gradients, backend=remat_aot_eager, options={"memory_budget": 0, "strict": 1}, fullgraph=True
    )
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(compiled, *zip(*made, strict=True)))
    for mine, theirs in zip(together, alone, strict=True):
        assert all(map(torch.equal, mine, theirs))
    assert plans()  # a thread may use what another one has compiled


SUBPROCESS = """
import torch
from rematpass import plans
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 3))
model(torch.ones(11, 5)).sum().backward()
expected = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
torch.compile(model, backend="remat", options={"memory_budget": 0, "strict": 1})(torch.ones(11, 5)).sum().backward()
assert len(plans()) == 1
for p, grad in zip(model.parameters(), expected):
    torch.testing.assert_close(p.grad, grad)
"""


@pytest.mark.slow
def test_inductor_can_compile_in_a_subprocess():
    """The graph and all settings are sent to a worker, including the partitioner."""
    environment = {
        "TORCHINDUCTOR_FX_COMPILE_MODE": "SUBPROCESS",
        "TORCHINDUCTOR_WORKER_START": "subprocess",
        "TORCHINDUCTOR_COMPILE_THREADS": "2",
        "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1",
    }
    subprocess.run([sys.executable, "-c", SUBPROCESS], env=os.environ | environment, check=True)


def test_a_partitioner_can_be_sent_to_another_process():
    mine = RematPartitioner(Config.read({"memory_budget": "64MiB", "save_decisions": 0}, {}))
    assert pickle.loads(pickle.dumps(mine)).uuid() == mine.uuid()


RESIZES = """
import torch

def step(weight, new):
    torch.ops.inductor.resize_storage_bytes_(weight, 32)
    with torch.no_grad():
        weight.copy_(new)
    return weight + 1

weight = torch.nn.Parameter(torch.zeros(8))
weight.untyped_storage().resize_(0)
result = torch.compile(step, backend="remat_aot_eager")(weight, torch.full((8,), 2.0))
result.sum().backward()
assert result.tolist() == [3.0] * 8 and weight.grad.tolist() == [1.0] * 8
"""


def test_a_graph_without_a_backward_of_its_own_is_passed_on_as_it_came():
    """torch's partitioner crashes on the rewritten graph, which reads a storage before it is allocated."""
    subprocess.run([sys.executable, "-c", RESIZES], check=True)


def test_torchs_partitioner_gets_the_graph_as_it_came(monkeypatch, caplog):
    seen = []

    def default(module, inputs, **kwargs):
        seen.append([n.format_node() for n in module.graph.nodes])
        return torchs(module, inputs, **kwargs)

    def rewrite(module):
        before.append([n.format_node() for n in module.graph.nodes])
        module.graph.call_function(torch.ops.aten.sin.default, (next(iter(module.graph.nodes)),))
        module.recompile()
        raise CaptureError("not planned")

    before, torchs = [], partitioner._torch.default_partition
    monkeypatch.setattr(partitioner, "rewrite_joint", rewrite)
    monkeypatch.setattr(partitioner._torch, "default_partition", default)
    seen_by_user = run(PROGRAMS["mlp"], "remat_aot_eager", {"memory_budget": 0.5})
    assert not differences(seen_by_user, reference("mlp"))
    assert seen
    assert seen == before
    assert "not planned" in caplog.text
