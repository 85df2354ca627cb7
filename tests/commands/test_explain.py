"""``rematpass explain``: of a catalog model, a user's model and a file."""

import json
import subprocess
import sys
import textwrap

import pytest
from support.reports import TINY_GPT

from rematpass import __version__, cli


def run(capsys, *arguments):
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_a_file_is_explained_and_the_report_written(capsys, tmp_path):
    code, out, err = run(capsys, "explain", TINY_GPT, "--budget", "0.3", "--hardware", "h200", "--output", tmp_path)
    assert code == 0
    first, origin, rest = out.split("\n", 2)
    assert (first, "rematpass " in origin) == ("graph 0/0", True)
    assert rest.startswith("budget          0.3 of the way from floor to ceiling\nplanned peak ")
    assert "by the cost model for h200" in out
    for part in (
        "Frontier: peak and step time of each plan",
        "Memory over time",
        "fate and reason",
        "Totals per module",
    ):
        assert part in out
    [page] = tmp_path.glob("*.html")
    assert err == f"The report: {page} (and .txt, .json, .trace.json, .graph.json)\n"
    assert len(list(tmp_path.iterdir())) == 5


def test_with_json_standard_output_is_one_document(capsys, tmp_path):
    code, out, _ = run(capsys, "explain", TINY_GPT, "--json", "--output", tmp_path)
    assert code == 0
    [file] = [p for p in tmp_path.glob("*.json") if p.name.count(".") == 1]
    assert json.loads(out) == json.loads(file.read_text("utf-8"))
    assert json.loads(out)["versions"] == {"rematpass": __version__}


def test_open_opens_the_page_in_the_browser(capsys, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(capsys, "explain", TINY_GPT, "--output", tmp_path, "--open")[0] == 0
    [page] = tmp_path.glob("*.html")
    assert opened == [page.resolve().as_uri()]


@pytest.fixture
def users_model(tmp_path):
    """A directory with a module mine.py."""
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
            def forward(self, x):
                x = self.first(x).sigmoid().tanh()
                torch._dynamo.graph_break()
                return self.second(x).sigmoid().tanh()

        def make():
            net, x = Net(), torch.randn(8, 16)
            return net, lambda: net(x).sum()

        def make_without_loss():
            net, x = Net(), torch.randn(8, 16)
            return net, lambda: net(x)
        """)
    )
    return tmp_path


def test_a_users_model_with_a_graph_break_has_two_reports(users_model):
    tmp_path = users_model
    command = [sys.executable, "-m", "rematpass", "explain", "mine:make", "--budget", "0", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.html"))) == 2
    assert "mine.py:" in next((tmp_path / "out").glob("*.graph.json")).read_text("utf-8")
    assert "first" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    documents = [json.loads(p.read_text("utf-8")) for p in (tmp_path / "out").glob("*.json") if p.name.count(".") == 1]
    assert {(d["model"], tuple(d["versions"])) for d in documents} == {("mine:make", ("rematpass", "torch"))}


def test_a_step_that_returns_a_matrix_is_refused(users_model):
    command = [sys.executable, "-m", "rematpass", "explain", "mine:make_without_loss"]
    done = subprocess.run(command, cwd=users_model, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    message = "the step returned a tensor of shape (8, 16); return the loss, a tensor with one element"
    assert done.stderr == f"rematpass: error: {message}\n"
    assert not (users_model / "rematpass-report").exists()


def test_a_catalog_model_is_planned_as_for_inductor(capsys, tmp_path, monkeypatch):
    """The joint graph has passed through Inductor's passes, and no code is generated."""
    from rematpass.compiler.planned import records
    from rematpass.lab.models import catalog

    small = {"width": 32, "layers": 2, "vocabulary": 64, "batch": 2, "length": 16}
    spec = catalog.Spec("small", catalog.MODELS["tiny-gpt"].make, small)
    monkeypatch.setitem(catalog.MODELS, "tiny-gpt", spec)
    code, out, _ = run(capsys, "explain", "--output", tmp_path, "--hardware", "h100", "--budget", "0")
    assert code == 0
    record = records()[-1]
    assert f"planned peak    {record.summary.planned_peak / 1024:.2f} KiB" in out
    assert "blocks.1" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-model"], "unknown model 'no-such-model'; valid names are llama,"),
        (["nothing.json"], "cannot read nothing.json: No such file or directory"),
        (["os:nothing"], "cannot import 'os:nothing'"),
        ([str(TINY_GPT), "--hardware", "h300"], "unknown hardware 'h300'"),
        ([str(TINY_GPT), "--output", __file__], "cannot write "),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "explain", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
