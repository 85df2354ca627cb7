"""``rematpass plan``, as used in CI without a GPU."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.reports import TINY_GPT

from rematpass import cli
from rematpass.commands.plan_file import plan_graph, read_graph
from rematpass.config import Config

BLOCKER = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("no torch here")
sys.meta_path.insert(0, Blocked())
try:
    import torch
except ImportError:
    pass
else:
    sys.exit("the blocker does not block")
from rematpass.cli import main
code = main(sys.argv[1:])
assert not any(m.split(".")[0] == "torch" for m in sys.modules)
sys.exit(code)
"""


def run(capsys, *arguments):
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("REMAT_MEMORY_BUDGET", "REMAT_SOLVER", "REMAT_HARDWARE", "REMAT_MAX_RECOMPUTE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def graph(tmp_path):
    return shutil.copy(TINY_GPT, tmp_path / "gpt.graph.json")


def peaks(out):
    return [document["summary"]["planned_peak"] for document in json.loads(out)]


@pytest.mark.parametrize(
    "arguments", [["plan", "GRAPH", "--budget", "0.3", "--frontier"], ["explain", "GRAPH", "--output", "DIR"]]
)
def test_a_file_is_planned_without_torch(graph, tmp_path, arguments):
    given = [{"GRAPH": str(graph), "DIR": str(tmp_path / "out")}.get(a, a) for a in arguments]
    done = subprocess.run([sys.executable, "-c", BLOCKER, *given], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "planned peak" in done.stdout
    assert "▶ this plan" in done.stdout


def test_the_default_output_is_one_line(capsys, graph):
    code, out, err = run(capsys, "plan", graph, "--device", "h200", "--budget", "0")
    assert (code, err) == (0, "")
    assert out.startswith("gpt.graph.json: planned peak ")
    assert " on h200 by its cost model" in out
    assert out.count("\n") == 1


def test_json_has_the_whole_frontier_and_a_budget_selects_from_it(capsys, graph):
    documents = []
    for budget in ("0", "1"):
        code, out, _ = run(capsys, "plan", graph, "--budget", budget, "--json", "--device", "h100")
        assert code == 0
        documents.append(json.loads(out))
    least, fastest = documents
    assert least["frontier"] == fastest["frontier"]
    assert least["hardware"] == "h100"
    assert least["summary"]["planned_peak"] == least["summary"]["floor"] == least["frontier"][-1]["peak"]
    assert fastest["summary"]["planned_peak"] == fastest["summary"]["ceiling"] == fastest["frontier"][0]["peak"]
    assert least["summary"]["planned_peak"] < fastest["summary"]["planned_peak"]


def test_seconds_depend_on_the_device(capsys, graph):
    seconds = {}
    for device in ("h200", "cpu"):
        _, out, _ = run(capsys, "plan", graph, "--device", device, "--solver", "save_all", "--json")
        seconds[device] = json.loads(out)["summary"]["step_seconds"]
    assert seconds["h200"] < seconds["cpu"]


def test_the_command_line_overrides_the_environment(capsys, graph, monkeypatch):
    monkeypatch.setenv("REMAT_MEMORY_BUDGET", "0")
    _, out, _ = run(capsys, "plan", graph, "--json")
    _, other, _ = run(capsys, "plan", graph, "--json", "--budget", "1")
    assert json.loads(out)["summary"]["planned_peak"] < json.loads(other)["summary"]["planned_peak"]


def test_outputs_that_the_caller_drops_do_not_count(capsys, graph, monkeypatch):
    _, held, _ = run(capsys, "plan", graph, "--json", "--budget", "0")
    monkeypatch.setenv("REMAT_HOLD_OUTPUTS", "0")
    _, dropped, _ = run(capsys, "plan", graph, "--json", "--budget", "0")
    held, dropped = json.loads(held)["summary"], json.loads(dropped)["summary"]
    assert dropped["planned_peak"] == dropped["peak_without_outputs"] < held["planned_peak"]


def test_a_graph_of_an_eager_backend_is_planned_without_fusion(tmp_path):
    """A plan for ``remat_aot_eager`` counts values that a fusing compiler would never write to memory."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(*[torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU()) for _ in range(3)])
    options = {"memory_budget": 0.3, "report_dir": str(tmp_path)}
    torch.compile(model, backend="remat_aot_eager", options=options)(torch.randn(64, 16)).sum().backward()
    [path], [report] = tmp_path.glob("*.graph.json"), [p for p in tmp_path.glob("*.json") if p.name.count(".") == 1]
    compiled = json.loads(report.read_text("utf-8"))["summary"]
    graph = read_graph(path)
    assert not graph.fuse
    planned = plan_graph(graph, Config.read({"memory_budget": 0.3}, {})).summary
    assert (planned.plan_hash, planned.planned_peak) == (compiled["plan_hash"], compiled["planned_peak"])
    fused = plan_graph(dataclasses.replace(graph, fuse=True), Config.read({"memory_budget": 0.3}, {})).summary
    assert fused.ceiling < planned.ceiling


class TestLock:
    @pytest.fixture
    def lock(self, capsys, graph, tmp_path):
        assert (
            run(capsys, "plan", graph, "--budget", "0.3", "--device", "h100", "--lock", tmp_path / "lock.json")[0] == 0
        )
        return tmp_path / "lock.json"

    def edit(self, lock, name="gpt.graph.json", **fields):
        document = json.loads(lock.read_text())
        document["graphs"][name].update(fields)
        lock.write_text(json.dumps(document))

    def test_a_lock_stores_settings_and_peak(self, capsys, graph, lock):
        entry = json.loads(lock.read_text())["graphs"]["gpt.graph.json"]
        _, out, _ = run(capsys, "plan", graph, "--budget", "0.3", "--device", "h100", "--json")
        summary = json.loads(out)["summary"]
        assert entry == {
            "memory_budget": "0.3",
            "device": "h100",
            "solver": "ladder",
            "max_recompute": "1",
            **{name: summary[name] for name in ("planned_peak", "floor", "ceiling", "plan_hash")},
        }

    def test_an_unchanged_peak_passes(self, capsys, graph, lock):
        code, out, _ = run(capsys, "plan", graph, "--check", lock)
        assert code == 0
        assert "gpt.graph.json: as committed: " in out

    def test_a_risen_peak_is_exit_code_1(self, capsys, graph, lock):
        peak = json.loads(lock.read_text())["graphs"]["gpt.graph.json"]["planned_peak"]
        self.edit(lock, planned_peak=peak - 1024)
        code, out, _ = run(capsys, "plan", graph, "--check", lock)
        assert code == 1
        assert "gpt.graph.json: RISEN by 1.00 KiB (" in out

    def test_a_fallen_peak_passes_and_is_reported(self, capsys, graph, lock):
        peak = json.loads(lock.read_text())["graphs"]["gpt.graph.json"]["planned_peak"]
        self.edit(lock, planned_peak=peak + 1024)
        code, out, _ = run(capsys, "plan", graph, "--check", lock, "--json")
        assert code == 0
        assert json.loads(out)["check"].startswith("fallen by 1.00 KiB (")
        assert json.loads(out)["check"].endswith("--lock commits it")

    def test_a_check_ignores_the_environment(self, capsys, graph, lock, monkeypatch):
        monkeypatch.setenv("REMAT_MEMORY_BUDGET", "1")
        assert run(capsys, "plan", graph, "--check", lock)[0] == 0

    def test_a_check_obeys_the_command_line(self, capsys, graph, lock):
        assert run(capsys, "plan", graph, "--check", lock, "--budget", "1")[0] == 1

    def test_one_risen_peak_of_several_is_exit_code_1(self, capsys, graph, tmp_path):
        other = shutil.copy(TINY_GPT, tmp_path / "other.json")
        lock = tmp_path / "two.json"
        assert run(capsys, "plan", graph, other, "--solver", "save_all", "--lock", lock)[0] == 0
        self.edit(lock, planned_peak=1)
        code, out, _ = run(capsys, "plan", graph, other, "--check", lock, "--json")
        checks = [document["check"] for document in json.loads(out)]
        assert code == 1
        assert (checks[0][:5], checks[1][:12]) == ("RISEN", "as committed")
        assert len(set(peaks(out))) == 1

    def test_a_report_of_a_changed_model_is_compared_with_the_earlier_lock(self, capsys, graph, tmp_path):
        """Report files have the plan's hash in their names, which changes with the plan."""
        before, after = (tmp_path / f"graph-0-0-{digits * 6}.graph.json" for digits in ("0f", "a3"))
        before.write_text(graph.read_text())
        lock = tmp_path / "reports.lock.json"
        assert run(capsys, "plan", before, "--budget", "0.3", "--lock", lock)[0] == 0
        assert list(json.loads(lock.read_text())["graphs"]) == ["graph-0-0.graph.json"]
        after.write_text(graph.read_text())
        code, out, _ = run(capsys, "plan", after, "--check", lock)
        assert (code, "as committed" in out) == (0, True)
        self.edit(lock, "graph-0-0.graph.json", planned_peak=1)
        assert run(capsys, "plan", after, "--check", lock)[0] == 1

    def test_graphs_with_equal_names_are_refused_before_planning(self, capsys, graph, tmp_path):
        both = [tmp_path / f"graph-0-0-{digits * 6}.graph.json" for digits in ("0f", "a3")]
        for path in both:
            path.write_text(graph.read_text())
        code, out, err = run(capsys, "plan", *both, "--lock", tmp_path / "lock.json")
        assert (code, out) == (2, "")
        assert f"{both[0]} and {both[1]} have the same name in a lock, graph-0-0.graph.json" in err
        assert not (tmp_path / "lock.json").exists()
        assert run(capsys, "plan", *both, "--json")[0] == 0

    def test_a_graph_that_is_not_in_the_lock_is_refused(self, capsys, tmp_path, lock):
        other = shutil.copy(TINY_GPT, tmp_path / "other.json")
        code, _, err = run(capsys, "plan", other, "--check", lock)
        assert code == 2
        assert err == (
            f"rematpass: error: {lock} does not contain other.json; it contains gpt.graph.json. "
            "To write it again, use --lock\n"
        )

    def test_a_file_that_is_not_a_lock_is_refused(self, capsys, graph, tmp_path, lock):
        for text, reason in (("{", "is not a lock file"), ('{"format": 7}', "has another format than 1")):
            (tmp_path / "x.json").write_text(text)
            code, _, err = run(capsys, "plan", graph, "--check", tmp_path / "x.json")
            assert code == 2
            assert reason in err
        code, _, err = run(capsys, "plan", graph, "--check", tmp_path / "missing.json")
        assert (code, "No such file or directory; --lock writes it" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.json"], "cannot read missing.json: No such file or directory"),
        ([__file__], "not a joint graph: "),
        (["list.json"], "list.json: not a joint graph: expected a JSON object with the key 'format'. A joint graph is"),
        (["object.json"], "object.json: not a joint graph: expected a JSON object with the key 'format'. "),
        (["binary.json"], "binary.json: not a joint graph: not text. A joint graph is"),
        (["."], "cannot read .: Is a directory"),
        (["GRAPH", "--device", "h300"], "unknown hardware 'h300'; did you mean h200? Valid names are a100, cpu,"),
        (
            ["GRAPH", "--budget", "auto"],
            "the budget auto needs a device, which a graph from a file does not have;",
        ),
        (["GRAPH", "--budget", "16"], "option memory_budget='16': a number without a unit; did you mean 16GiB?"),
        (["GRAPH", "--budget", "1048576", "--solver", "leader"], "did you mean ladder?"),
        (["GRAPH", "--budget", "0.5", "--max-recompute", "0"], "option max_recompute='0': must be above 0."),
        (["GRAPH", "--lock", "a", "--check", "b"], "argument --check: not allowed with argument --lock"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, tmp_path, monkeypatch, graph, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, content in (("list", b"[]"), ("object", b"{}"), ("binary", b"\x7fELF\xd0\xff")):
        Path(f"{name}.json").write_bytes(content)
    code, out, err = run(capsys, "plan", *[str(graph) if a == "GRAPH" else a for a in arguments])
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_an_infeasible_budget_names_the_floor(capsys, graph):
    code, _, err = run(capsys, "plan", graph, "--budget", "4KiB")
    assert code == 2
    assert "no plan stays under 4.00 KiB; the lowest peak is " in err
