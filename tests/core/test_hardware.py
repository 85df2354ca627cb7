import re

import pytest

from rematpass.core.hardware import PRESETS, Hardware, device_facts, for_device, preset
from rematpass.errors import ConfigError


def test_matrix_rates_by_dtype():
    hardware = Hardware("h", (("float32", 3.0), ("bfloat16", 7.0), ("float64", 2.0)), 5.0, 11.0, 13.0)
    assert [hardware.matrix_rate(d) for d in ("float32", "bfloat16", "float64")] == [3.0, 7.0, 2.0]
    assert hardware.matrix_rate("complex64") == 2.0, "a dtype that is not listed runs at the slowest rate"
    assert hardware.matrix_rate("tensorfloat32") == 3.0, "without a rate for it, it is float32"
    assert preset("h200").matrix_rate("tensorfloat32") == preset("h200").matrix_rate("bfloat16") / 2


@pytest.mark.parametrize("name", ["h200", "h100", "a100", "l4", "rtx4090", "cpu"])
def test_preset_names_ignore_case(name):
    assert preset(name).name == preset(name.upper()).name == name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_rates_of_a_preset_are_plausible(name):
    hardware = PRESETS[name]
    assert hardware.matrix_rate("bfloat16") >= hardware.matrix_rate("float32") >= hardware.matrix_rate("float64") > 0
    assert hardware.vector_flops > 0
    assert hardware.bandwidth > 0
    assert hardware.launch_seconds > 0


def test_presets_are_the_data_sheets_figures_scaled_down():
    h200 = preset("h200")
    assert h200.matrix_rate("bfloat16") == pytest.approx(0.7 * 989e12)
    assert h200.matrix_rate("float8_e5m2") == pytest.approx(0.7 * 1979e12)
    assert h200.vector_flops == h200.matrix_rate("float32") == pytest.approx(0.7 * 67e12)
    assert h200.bandwidth == pytest.approx(0.8 * 4.8e12)
    assert preset("a100").matrix_rate("float8_e5m2") == preset("a100").matrix_rate("float64"), (
        "it has no rate for float8"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [("h300", "did you mean h200? Valid names"), ("", "valid names"), ("h 200", "did you mean h200? Valid names")],
)
def test_the_message_for_an_unknown_name_lists_the_valid_ones(name, hint):
    with pytest.raises(ConfigError) as caught:
        preset(name)
    assert str(caught.value) == (
        f"unknown hardware {name!r}; {hint} are a100, cpu, h100, h200, l4, rtx4090, "
        "or a .json file that rematpass calibrate wrote"
    )


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("cpu", "cpu"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GH200 480GB", "h200"),
        # unknown GPUs
        ("Tesla T4", "a100"),
        ("NVIDIA L40S", "a100"),
        ("NVIDIA GeForce RTX 4080", "a100"),
        ("AMD Instinct MI300X", "a100"),
        ("", "a100"),
    ],
)
def test_a_description_selects_the_preset(description, name):
    assert for_device(description).name == name


@pytest.mark.parametrize(
    ("description", "facts"),
    [("cpu", (1000, 12)), ("cpu, 2 threads", (1000, 12)), ("NVIDIA H200", (100, 8)), ("", (100, 8))],
)
def test_every_device_that_is_not_a_cpu_has_the_facts_of_a_gpu(description, facts):
    found = device_facts(description)
    assert (found.budget_parts, found.most_sources_for_one) == facts


def test_a_preset_survives_a_file(tmp_path):
    here = Hardware("here", (("float32", 3e11), ("bfloat16", 5e11)), 7e10, 1.1e10, 1.3e-6, 0.4, 300.0, 70.0)
    (tmp_path / "here.json").write_text(here.to_json())
    assert preset(str(tmp_path / "here.json")) == here


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the hardware preset"),
        ("{", "is not a hardware preset as rematpass calibrate writes it"),
        ("[]", "is not a hardware preset as rematpass calibrate writes it"),
        ('{"name": "x"}', "is not a hardware preset as rematpass calibrate writes it: KeyError('flops')"),
        (Hardware("x", (), 1.0, 1.0, 0.0).to_json(), "rates must be above 0"),
        (Hardware("x", (("float32", 1.0),), 1.0, 0.0, 0.0).to_json(), "rates must be above 0"),
        (Hardware("x", (("float32", 1.0),), 1.0, 1.0, -1.0).to_json(), "costs must not be below 0"),
        (Hardware("x", (("float32", 1.0),), 1.0, 1.0, 0.0, mask=-1.0).to_json(), "costs must not be below 0"),
    ],
)
def test_a_file_without_a_preset_is_refused(content, message, tmp_path):
    path = tmp_path / "here.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        preset(str(path))
    assert str(path) in str(caught.value)
