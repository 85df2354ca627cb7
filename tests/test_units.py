import pytest
from hypothesis import given
from hypothesis import strategies as st

from rematpass.units import BYTE_UNITS, format_bytes, format_percent, format_seconds, parse_bytes

UNITS = "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("8589934592", 8589934592),
        ("7B", 7),
        ("3KB", 3_000),
        ("5MB", 5_000_000),
        ("2GB", 2_000_000_000),
        ("7TB", 7_000_000_000_000),
        ("3KiB", 3 * 1024),
        ("512MiB", 512 * 1024**2),
        ("8GiB", 8 * 1024**3),
        ("5TiB", 5 * 1024**4),
        ("1.5 GiB", 3 * 1024**3 // 2),
        (".5GiB", 1024**3 // 2),
        ("  8 gib\n", 8 * 1024**3),
        ("8gb", 8 * 10**9),
        ("0.1KiB", 102),  # 102.4
        ("0.3GB", 300_000_000),  # a float would give 299999999.99999997
        ("123456789.123456789GB", 123456789123456789),
    ],
)
def test_bytes_are_parsed_exactly(text, nbytes):
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "-1", "-8GiB", "+8GiB", "nan", "inf", "NaN GiB", "1e9", "8e9B", "1_000", "1,5GiB", "1.", "1.GiB"),
        *("8Gib ps", "8bits", "GiB", "8GiBGiB", "8 GiB 2", "0x10", "8iB", "٣GiB", "9" * 5000, "auto"),
    ],
)
def test_anything_else_is_refused_with_the_units(text):
    with pytest.raises(ValueError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a number of bytes; the units are {UNITS}"


@pytest.mark.parametrize(
    ("text", "meant"),
    [("8G", "8GiB"), ("8g", "8GiB"), ("8 Gi", "8GiB"), ("1.5T", "1.5TiB"), ("512m", "512MiB"), ("3k", "3KiB")],
)
def test_an_ambiguous_unit_suggests_the_binary_one(text, meant):
    with pytest.raises(ValueError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"{text!r} is not a number of bytes; the units are {UNITS}; did you mean {meant}?"


@pytest.mark.parametrize("text", ["1.5", "1.5B", "2.0"])
def test_a_fraction_of_a_byte_suggests_a_unit(text):
    number = text.removesuffix("B")
    with pytest.raises(ValueError, match=rf"^'{text}' is not a whole number of bytes; did you mean {number}GiB\?$"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1024**2 - 6, "1023.99 KiB"),
        (1024**2 - 5, "1.00 MiB"),  # 1023.995 KiB would be printed as 1024.00
        (512 * 1024**2, "512.00 MiB"),
        (3 * 1024**3 // 2, "1.50 GiB"),
        (5 * 1024**4, "5.00 TiB"),
        (5000 * 1024**4, "5000.00 TiB"),
        (-7, "-7 B"),
        (-13 * 1024**2 // 4, "-3.25 MiB"),
    ],
)
def test_bytes_are_formatted_with_two_decimals(nbytes, text):
    assert format_bytes(nbytes) == text


@given(st.integers(min_value=0, max_value=2**60))
def test_bytes_rounded_up_are_enough_when_parsed_again(nbytes):
    text = format_bytes(nbytes, round_up=True)
    assert nbytes <= parse_bytes(text) <= nbytes + nbytes // 100 + 1


@given(st.integers(min_value=0, max_value=10**12), st.sampled_from(sorted(BYTE_UNITS)))
def test_whole_units_are_exact(number, unit):
    assert parse_bytes(f"{number}{unit}") == number * BYTE_UNITS[unit]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (3e-9, "3.00 ns"),
        (7.25e-6, "7.25 us"),
        (0.0013, "1.30 ms"),
        (-0.0013, "-1.30 ms"),
        (0.996, "996.00 ms"),
        (0.999_996, "1.00 s"),
        (75, "75.00 s"),
        (3600.5, "3600.50 s"),
        (float("inf"), "inf s"),
        (float("nan"), "nan s"),
    ],
)
def test_seconds_are_formatted_with_two_decimals(seconds, text):
    assert format_seconds(seconds) == text


def test_percent_has_the_given_decimals():
    assert format_percent(0.1234) == "12.3%"
    assert format_percent(-0.05, decimals=0) == "-5%"
    assert format_percent(1) == "100.0%"
