"""Random programs with fixed seeds, and tests of the fuzzer (``python tests/fuzz.py``)."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import torch
from support.fuzz_grammar import write
from support.fuzz_writer import Source
from support.programs import afresh, run

from rematpass.compiler import select_plan
from rematpass.compiler.ops import kinds, traits

afresh = pytest.fixture(autouse=True)(afresh)

DROPOUT = Source(
    parts=(("p0", "nn.Linear(3, 5)"),),
    arguments=(("x0", "_randn(7, 3)"),),
    lines=("h0 = m.p0(x0)", "h1 = torch.cos(x0)", "h2 = F.dropout(torch.tanh(h0), 0.5)", "h3 = h2.exp()"),
    returns=("h3", "x0"),
    compile=(("fullgraph", True),),
)
ALL = {"solver": "recompute_all", "strict": 1}


@pytest.mark.parametrize("seed", range(12))
def test_a_random_program_equals_eager_mode(seed):
    verdict = fuzz.judge(write(seed), "remat_aot_eager", fuzz.settings(seed))
    assert verdict.kind in (fuzz.SAME, fuzz.NEAR, fuzz.TORCHS, fuzz.REFUSED), verdict


def test_most_random_programs_are_valid_and_compared_bit_for_bit():
    found = fuzz.fuzz(range(5))
    assert found[fuzz.WRONG] == found[fuzz.INVALID] == 0
    assert found[fuzz.SAME] >= 3


def test_a_seed_determines_the_program():
    assert write(17) == write(17)
    assert len({write(seed).text() for seed in range(10)}) == 10


def test_a_hundred_programs_contain_every_kind_of_statement():
    text = "".join(write(seed).text() for seed in range(100))
    for part in (
        "dropout", "checkpoint(", "context_fn=", "no_grad()", "torch.cond(", "autocast(", "noted(", "cube(", "Swish",
        "_(", "BatchNorm1d", "block_with_dropout(", "index_put(", "register_hook", ".weight", "dot_product_attention(",
    ):  # fmt: skip
        assert part in text, part


def let_dropout_run_again(monkeypatch):
    """Inject a bug: dropout may be recomputed, from whatever random state."""
    right = traits.traits_of
    monkeypatch.setattr(
        "rematpass.compiler.capture.graph_reader.traits_of",
        lambda node, **more: (
            dataclasses.replace(right(node, **more), never_recompute="")
            if kinds.draws_random_numbers(node)
            else right(node, **more)
        ),
    )
    monkeypatch.setattr("rematpass.compiler.emit.needs_random_state", lambda node: False)


def test_a_bug_is_found_and_shrunk_to_the_statements_it_needs(monkeypatch):
    assert fuzz.judge(DROPOUT, "remat_aot_eager", ALL).kind == fuzz.SAME
    let_dropout_run_again(monkeypatch)
    verdict = fuzz.judge(DROPOUT, "remat_aot_eager", ALL)
    assert verdict.kind == fuzz.WRONG
    assert "gradient of p0.weight" in verdict.why
    small = fuzz.shrink(DROPOUT, "remat_aot_eager", ALL)
    assert small.lines == (DROPOUT.lines[0], *DROPOUT.lines[2:])


def test_a_crash_is_a_bug_only_where_torchs_own_backend_runs(monkeypatch):
    monkeypatch.setattr(select_plan, "rewrite_step", lambda *modules, fuse: 1 / 0)
    verdict = fuzz.judge(DROPOUT, "remat_aot_eager", ALL)
    assert verdict.kind == fuzz.WRONG
    assert "ZeroDivisionError" in verdict.why
    refused = dataclasses.replace(DROPOUT, lines=(*DROPOUT.lines, "torch._dynamo.graph_break()"))
    assert fuzz.judge(refused, "remat_aot_eager", ALL).kind == fuzz.REFUSED
    assert fuzz.judge(DROPOUT.without(0), "remat_aot_eager", ALL).kind == fuzz.INVALID


def test_the_printed_program_can_be_pasted_into_programs_py():
    scope = dict(vars(sys.modules["random_programs"]))
    exec(DROPOUT.text(), scope)
    forward, arguments = scope["make"]()
    assert isinstance(forward, torch.nn.Module)
    assert [a.shape for a in arguments] == [(7, 3)]
    assert "gradient of p0.weight" in run(DROPOUT.program())


def test_the_command():
    command = [sys.executable, Path(__file__).with_name("fuzz.py"), "--programs", "1", "--seed", "1"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == f"{fuzz.SAME}: 1"
