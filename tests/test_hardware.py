import pytest

from rematpass.core.hardware import PRESETS, Hardware, for_device, preset
from rematpass.errors import ConfigError


def test_matrix_rates_by_dtype():
    hardware = Hardware("h", (("float32", 3.0), ("bfloat16", 7.0), ("float64", 2.0)), 5.0, 11.0, 13.0)
    assert [hardware.matrix_rate(d) for d in ("float32", "bfloat16", "float64")] == [3.0, 7.0, 2.0]
    assert hardware.matrix_rate("complex64") == 2.0, "a dtype not listed runs like the slowest"


@pytest.mark.parametrize("name", ["h200", "h100", "a100", "l4", "rtx4090", "cpu"])
def test_presets_go_by_their_names_in_any_case(name):
    assert preset(name).name == preset(name.upper()).name == name


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_is_sane(name):
    hardware = PRESETS[name]
    assert hardware.matrix_rate("bfloat16") >= hardware.matrix_rate("float32") >= hardware.matrix_rate("float64") > 0
    assert hardware.vector_flops > 0
    assert hardware.bandwidth > 0
    assert hardware.launch_seconds > 0


def test_presets_are_what_the_data_sheets_say_scaled_down():
    h200 = preset("h200")
    assert h200.matrix_rate("bfloat16") == pytest.approx(0.7 * 989e12)
    assert h200.matrix_rate("float8_e5m2") == pytest.approx(0.7 * 1979e12)
    assert h200.vector_flops == h200.matrix_rate("float32") == pytest.approx(0.7 * 67e12)
    assert h200.bandwidth == pytest.approx(0.8 * 4.8e12)
    assert preset("a100").matrix_rate("float8_e5m2") == preset("a100").matrix_rate("float64"), "it has no such units"


@pytest.mark.parametrize("name", ["h300", "", "h 200"])
def test_an_unknown_name_is_told_the_valid_ones(name):
    with pytest.raises(ConfigError) as caught:
        preset(name)
    assert str(caught.value) == f"unknown hardware {name!r}; valid names are a100, cpu, h100, h200, l4, rtx4090"


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
        # unknown ones
        ("Tesla T4", "a100"),
        ("NVIDIA L40S", "a100"),
        ("NVIDIA GeForce RTX 4080", "a100"),
        ("AMD Instinct MI300X", "a100"),
        ("", "a100"),
    ],
)
def test_a_device_is_known_by_its_description(description, name):
    assert for_device(description).name == name
