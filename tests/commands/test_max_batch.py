"""``rematpass max-batch``: the search on known functions, and the command on a small model."""

import inspect
import re

import pytest

from rematpass import cli
from rematpass.commands.max_batch import Peaks, largest_under
from rematpass.core import frontier
from rematpass.lab.models import catalog, names


@pytest.mark.parametrize(
    "peak",
    [
        lambda n: 1000 + 37 * n,  # a straight line
        lambda n: 1000 + 3 * n * n,  # a parabola, as for attention
        lambda n: 1000 + 1000 * (n // 100),  # steps
        lambda n: 64 * -(-n // 8),
    ],
)
@pytest.mark.parametrize("allowed", [0, 999, 1000, 1037, 1074, 5000, 123_456])
def test_the_search_finds_the_largest_size(peak, allowed):
    looked = []

    def counted(n):
        looked.append(n)
        return peak(n)

    found = largest_under(counted, allowed)
    assert found == max((n for n in range(1, 20_000) if peak(n) <= allowed), default=0)
    assert len(set(looked)) < 60


def add(monkeypatch, spec):
    """Add a model to the catalog, and to the names that are known without torch."""
    monkeypatch.setitem(catalog.MODELS, spec.summary, spec)
    monkeypatch.setitem(names.SIZES, spec.summary, tuple(inspect.signature(spec.make).parameters))


@pytest.fixture
def small(monkeypatch):
    sizes = {"width": 16, "layers": 1, "vocabulary": 32, "length": 8}
    add(monkeypatch, catalog.Spec("small", catalog.MODELS["tiny-gpt"].make, sizes))
    return "small"


def run(capsys, *arguments):
    try:
        code = cli.main(["max-batch", *arguments])
    except SystemExit as exit:
        code = exit.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def rows(out):
    return [re.findall(r"[^│]+", line) for line in out.splitlines() if line.startswith("│")]


def test_several_budgets_make_a_table(capsys, small):
    code, out, _ = run(capsys, small, "--budget", "4MiB", "--budget", "1MiB", "--no-measure")
    assert code == 0
    one, four = [[cell.strip() for cell in row] for row in rows(out)]
    assert (one[0], four[0]) == ("1.00 MiB", "4.00 MiB")
    assert int(one[2]) < int(one[1]) < int(four[1])  # without recompute, with it, and with it in four times as much
    assert 3.5 < int(four[1]) / int(one[1]) < 8  # more than four: kernel launches are a smaller part of a step
    assert (one[4], four[4]) == ("", "")


@pytest.mark.slow
def test_the_size_is_confirmed_by_a_measured_step(capsys, small):
    code, out, _ = run(capsys, small, "--budget", "1MiB")
    assert code == 0
    [[_, batch, _, planned, measured]] = [[cell.strip() for cell in row] for row in rows(out)]
    assert int(batch) > 1
    assert planned.endswith(" KiB")
    assert float(planned.split()[0]) <= frontier.peak_allowed(2**20, "cpu") / 1024
    assert measured.endswith(" KiB")
    assert float(measured.split()[0]) <= 1024


@pytest.mark.slow
@pytest.mark.parametrize("size", ["batch", "length"])
def test_a_transformers_model_grows_in_either_size(capsys, monkeypatch, size):
    sizes = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1, "mlp": 80, "vocabulary": 96, "batch": 2, "length": 32}
    add(monkeypatch, catalog.Spec("small", catalog.MODELS["llama"].make, sizes))
    code, out, _ = run(capsys, "small", "--size", size, "--budget", "1MiB")
    assert code == 0
    [[_, found, unaided, _, measured]] = [[cell.strip() for cell in row] for row in rows(out)]
    assert sizes[size] < int(unaided) < int(found)
    assert 700 < float(measured.removesuffix(" KiB")) <= 1024


def test_the_symbolic_peak_is_the_peak_of_a_graph_of_that_size(small):
    """Traced at a batch of 7 with symbols and planned at 12; and traced at 12 without symbols."""
    import argparse

    import torch

    from rematpass.commands.max_batch import _traced
    from rematpass.compiler.plan_only import plan_only
    from rematpass.config import Config
    from rematpass.lab.models.build import build

    torch._dynamo.reset()
    graph, symbol = _traced(argparse.Namespace(target=small, size="batch", device="cpu"))
    assert dict(graph.hints)[symbol] == 7
    torch._dynamo.reset()
    model = build(small, batch=12)
    [record] = plan_only(model.module, model.step, Config(), dynamic=False)
    assert Peaks(graph, symbol).ceiling(12) == pytest.approx(record.ladder.ceiling, rel=0.01)


def test_a_budget_that_no_size_fits_is_exit_code_1(capsys, small):
    code, out, _ = run(capsys, small, "--budget", "2KiB", "--no-measure")
    assert code == 1
    assert "none fits" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "--budget", "0.5"], "--budget 0.5: max-batch needs a budget in bytes, such as 8GiB"),
        (["small", "--budget", "64"], "option memory_budget='64': a number without a unit"),
        (["nothing", "--budget", "1MiB"], "unknown model 'nothing'"),
        (["small"], "the following arguments are required: --budget"),
        (
            ["chain", "--size", "length", "--budget", "1MiB"],
            "chain: unknown size 'length'; valid names",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, small, arguments, message):
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
