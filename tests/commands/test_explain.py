"""``rematpass explain``: a model of the package, a model of the user's, a file."""

import json
import subprocess
import sys
import textwrap

import pytest
from support.reports import TINY_GPT

from rematpass import cli


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
    assert out.startswith("graph 0/0\nbudget          0.3 of the way from floor to ceiling\nplanned peak ")
    assert "by the cost model for h200" in out
    for part in ("Frontier: what memory buys", "Memory over time", "fate and reason", "Totals per module"):
        assert part in out
    [page] = tmp_path.glob("*.html")
    assert err == f"The report: {page} (and .txt, .json, .trace.json, .graph.json)\n"
    assert len(list(tmp_path.iterdir())) == 5


def test_json_goes_to_standard_output_alone(capsys, tmp_path):
    code, out, _ = run(capsys, "explain", TINY_GPT, "--json", "--output", tmp_path)
    assert code == 0
    [file] = [p for p in tmp_path.glob("*.json") if p.name.count(".") == 1]
    assert json.loads(out) == json.loads(file.read_text("utf-8"))


def test_the_page_is_opened_when_asked(capsys, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(capsys, "explain", TINY_GPT, "--output", tmp_path, "--open")[0] == 0
    [page] = tmp_path.glob("*.html")
    assert opened == [page.resolve().as_uri()]


def test_a_model_of_the_users_with_a_graph_break_is_two_reports(tmp_path):
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
        """)
    )
    command = [sys.executable, "-m", "rematpass", "explain", "mine:make", "--budget", "0", "--output", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.html"))) == 2
    assert "mine.py:" in next((tmp_path / "out").glob("*.graph.json")).read_text("utf-8")
    assert "first" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


def test_a_model_of_the_package_is_planned_as_inductor_would_plan_it(capsys, tmp_path, monkeypatch):
    """The joint graph has been through Inductor's passes, and nothing is compiled."""
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
        (["no-such-model"], "no model 'no-such-model'; there are llama"),
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
