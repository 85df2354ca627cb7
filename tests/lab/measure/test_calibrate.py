"""Calibration: plausible rates, and a preset that the planner reads."""

import json

import pytest
import torch
from torch import nn

from rematpass import cli
from rematpass.compiler.partitioner import RematPartitioner
from rematpass.compiler.planned import records
from rematpass.config import Config
from rematpass.core.hardware import preset
from rematpass.lab.measure import calibrate


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(calibrate, "_matrix_rate", lambda size, dtype, _: 1e9 * torch.finfo(dtype).bits)
    monkeypatch.setattr(calibrate, "_bandwidth", lambda nbytes, _: 1e10)
    monkeypatch.setattr(calibrate, "_vector_rate", lambda elements, _: 3e9)
    monkeypatch.setattr(calibrate, "_mask_seconds", lambda elements, _: 2e-9)


@pytest.mark.slow
def test_measured_rates_are_plausible():
    found = calibrate.calibrate()
    assert {dtype for dtype, _ in found.flops} == {"float32", "bfloat16", "float16", "float64"}
    assert all(1e6 < rate < 1e15 for _, rate in found.flops)
    assert 1e8 < found.bandwidth < 1e13
    assert 1e7 < found.vector_flops < 1e14
    assert 1e-8 < found.launch_seconds < 1e-2
    assert 0 <= found.mask < 1e5
    assert found.name.startswith("cpu, ")


def test_the_command_writes_a_preset_that_the_planner_reads(small, tmp_path, capsys):
    path = tmp_path / "here.json"
    assert cli.main(["calibrate", "--output", str(path)]) == 0
    assert f"wrote {path}" in "".join(capsys.readouterr().out.split("\n"))
    assert dict(preset(str(path)).flops)["float32"] == 32e9
    assert preset(str(path)).mask == 6.0
    module = nn.Sequential(nn.Linear(8, 8), nn.GELU())
    torch.compile(module, backend="remat_aot_eager", options={"hardware": str(path)})(
        torch.randn(2, 8)
    ).sum().backward()
    assert records()[-1].hardware == preset(str(path)).name


def test_a_preset_with_other_content_changes_the_cache_key(small, tmp_path):
    path = tmp_path / "here.json"
    path.write_text(calibrate.calibrate().to_json())
    config = Config.read({"hardware": str(path)}, {})
    first, again = (RematPartitioner(config).uuid() for _ in range(2))
    assert first == again
    path.write_text(json.dumps({**json.loads(path.read_text()), "bandwidth": 5e9}))
    assert RematPartitioner(config).uuid() != first


def test_errors_are_one_line(small, tmp_path, capsys):
    assert cli.main(["calibrate", "--output", str(tmp_path / "none" / "here.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert cli.main(["calibrate", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
