import dataclasses
import fractions
import logging
import os
import re
import subprocess
import sys

import pytest

from rematpass import budget as budget_module
from rematpass import config
from rematpass.budget import Budget, BudgetKind
from rematpass.config import Config, split_options
from rematpass.errors import ConfigError

BUDGET_FORMS = (
    "Accepted: a fraction from 0 (least memory) to 1 (no limit), at least 1MiB as in 8GiB, 512MiB, 2GB or 8589934592, "
    "or auto."
)
RESERVE_FORMS = "Accepted: 0, 8GiB, 512MiB, 2GB, or a whole number of bytes from 1048576 up."
SWITCH_FORMS = "Accepted: 1, true, yes, on, 0, false, no, off."
NO_BYTES = "is not a number of bytes; the units are B, KB, MB, GB, TB, KiB, MiB, GiB, TiB."
TOO_SMALL = "below the smallest budget, 1.00 MiB."
GIB = 2**30

NO_LIMIT = Budget()
AUTO = Budget(BudgetKind.AUTO)


def fraction(value):
    return Budget(BudgetKind.FRACTION, fraction=value)


def nbytes(value):
    return Budget(BudgetKind.BYTES, nbytes=value)


@pytest.fixture(autouse=True)
def each_test_warns_again():
    config._warn_of_unknown.cache_clear()


@pytest.fixture(autouse=True)
def the_smallest_budget_is_that_of_users(monkeypatch):
    monkeypatch.setattr(budget_module, "LEAST_BUDGET_BYTES", 2**20)  # tests/conftest.py lowers it


BUDGETS = [
    ("1", NO_LIMIT),
    ("1.0", NO_LIMIT),
    (" 1. ", NO_LIMIT),
    ("0", fraction(0.0)),
    ("0.0", fraction(0.0)),
    ("0.5", fraction(0.5)),
    (".25", fraction(0.25)),
    ("5e-1", fraction(0.5)),
    ("8GiB", nbytes(8 * GIB)),
    ("1.5 gib", nbytes(3 * GIB // 2)),
    ("512MiB", nbytes(GIB // 2)),
    ("2GB", nbytes(2 * 10**9)),
    ("1MiB", nbytes(2**20)),
    ("1024KiB", nbytes(2**20)),
    ("1048576B", nbytes(2**20)),
    ("8589934592", nbytes(8 * GIB)),
    ("1048576", nbytes(2**20)),
    ("auto", AUTO),
    (" Auto ", AUTO),
]


@pytest.mark.parametrize(("text", "budget"), BUDGETS)
def test_every_form_of_a_budget_is_parsed(text, budget):
    by_variable = Config.read({}, {"REMAT_MEMORY_BUDGET": text}).memory_budget
    by_option = Config.read({"memory_budget": text}, {}).memory_budget
    assert by_variable == by_option == budget
    assert by_variable.given == f"REMAT_MEMORY_BUDGET={text}"
    assert by_option.given == f"option memory_budget={text}"


@pytest.mark.parametrize(
    ("value", "budget"),
    [
        (1, NO_LIMIT),
        (1.0, NO_LIMIT),
        (0, fraction(0.0)),
        (0.5, fraction(0.5)),
        (fractions.Fraction(1, 4), fraction(0.25)),
        (8 * GIB, nbytes(8 * GIB)),
        (2**20, nbytes(2**20)),
    ],
)
def test_a_budget_given_as_a_number_is_parsed(value, budget):
    assert Config.read({"memory_budget": value}, {}).memory_budget == budget


def test_numpy_numbers_are_accepted():
    numpy = pytest.importorskip("numpy")
    assert Config.read({"memory_budget": numpy.int64(3 * 2**20)}, {}).memory_budget == nbytes(3 * 2**20)
    assert Config.read({"memory_budget": numpy.float32(0.5)}, {}).memory_budget == fraction(0.5)


def test_a_budget_as_text():
    assert [b.is_unlimited for b in (NO_LIMIT, fraction(1.0), fraction(0.99), nbytes(2**40), AUTO)] == [1, 1, 0, 0, 0]
    assert not any(b.given for b in (NO_LIMIT, AUTO))
    assert [str(b) for b in (NO_LIMIT, fraction(0.25), nbytes(3 * GIB // 2), AUTO)] == [
        "no limit",
        "0.25 of the way from floor to ceiling",
        "1.50 GiB",
        "auto",
    ]


REFUSED_BUDGETS = [
    ("16", "a number without a unit; did you mean 16GiB?"),
    ("1.5", "a number without a unit; did you mean 1.5GiB?"),
    ("1023", "a number without a unit; did you mean 1023GiB?"),
    ("1024", "a number without a unit; did you mean 1024MiB?"),
    ("1048575", "a number without a unit; did you mean 1048575MiB?"),
    ("8e9", "bytes must be a whole number; did you mean 8000000000?"),
    ("-0.5", "negative."),
    ("-8GiB", f"'-8GiB' {NO_BYTES}"),
    ("nan", f"'nan' {NO_BYTES}"),
    ("inf", f"'inf' {NO_BYTES}"),
    ("1e999", "not a finite number."),
    ("", f"'' {NO_BYTES}"),
    ("half", f"'half' {NO_BYTES}"),
    ("50%", f"'50%' {NO_BYTES}"),
    ("8G", f"'8G' {NO_BYTES[:-1]}; did you mean 8GiB?"),
    ("7B", TOO_SMALL),
    ("10KiB", TOO_SMALL),
    ("0.5MiB", TOO_SMALL),
    ("1MB", TOO_SMALL),
    ("1048575B", TOO_SMALL),
    ("2.5B", "'2.5B' is not a whole number of bytes; did you mean 2.5GiB?"),
    (16, "a number without a unit; did you mean 16GiB?"),
    (1.0000001, "a number without a unit; did you mean 1.0000001GiB?"),
    (8e9, "bytes must be a whole number; did you mean 8000000000?"),
    (-1, "negative."),
    (float("nan"), "not a finite number."),
    (float("inf"), "not a finite number."),
    (True, "a value of type bool is neither a number nor a string."),
    (False, "a value of type bool is neither a number nor a string."),
    (b"1", "a value of type bytes is neither a number nor a string."),
    ([0.5], "a value of type list is neither a number nor a string."),
]


@pytest.mark.parametrize(("value", "reason"), REFUSED_BUDGETS)
def test_an_invalid_budget_is_refused(value, reason):
    with pytest.raises(ConfigError) as caught:
        Config.read({"memory_budget": value}, {})
    assert str(caught.value) == f"option memory_budget={value!r}: {reason} {BUDGET_FORMS}"
    if isinstance(value, str):
        with pytest.raises(ConfigError) as caught:
            Config.read({}, {"REMAT_MEMORY_BUDGET": value})
        assert str(caught.value) == f"REMAT_MEMORY_BUDGET={value!r}: {reason} {BUDGET_FORMS}"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_recompute", "2", 2.0),
        ("max_recompute", "0.5", 0.5),
        *(("strict", text, True) for text in ("1", "true", "YES", " on ")),
        *(("strict", text, False) for text in ("0", "False", "no", "off")),
        ("check", "1", True),
        ("hold_outputs", "0", False),
        *(("solver", name, name) for name in config.SOLVERS),
        ("hardware", "h100", "h100"),
        ("hardware", "", ""),
        ("auto_reserve", "0", 0),
        ("auto_reserve", "3GiB", 3 * GIB),
        ("auto_reserve", "3221225472", 3 * GIB),
    ],
)
def test_other_settings_are_parsed(name, text, value):
    by_variable = Config.read({}, {f"REMAT_{name.upper()}": text})
    assert by_variable == Config.read({name: text}, {}) == dataclasses.replace(Config(), **{name: value})


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("max_recompute", 2, 2.0),
        ("strict", True, True),
        ("strict", False, False),
        ("strict", 1, True),
        ("auto_reserve", 0, 0),
        ("auto_reserve", 3 * GIB, 3 * GIB),
    ],
)
def test_options_accept_python_types(name, given, value):
    assert getattr(Config.read({name: given}, {}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_recompute", "0", "must be above 0. Accepted: a finite number above 0, in forward passes."),
        ("max_recompute", "-1", "negative. Accepted: a finite number above 0, in forward passes."),
        ("max_recompute", "nan", "not a number. Accepted: a finite number above 0, in forward passes."),
        ("max_recompute", "two", "not a number. Accepted: a finite number above 0, in forward passes."),
        ("calls", "0", "not a whole number above 0. Accepted: a whole number of at least 1."),
        ("calls", 1.5, "not a whole number above 0. Accepted: a whole number of at least 1."),
        ("strict", "maybe", f"not a switch. {SWITCH_FORMS}"),
        ("strict", "2", f"not a switch. {SWITCH_FORMS}"),
        ("check", "", f"not a switch. {SWITCH_FORMS}"),
        (
            *("solver", "min_cut"),
            "unknown solver; did you mean mincut? "
            "Accepted: ladder, mincut, save_all, recompute_all, chen_sqrt, nested.",
        ),
        ("solver", "ilp", "unknown solver. Accepted: ladder, mincut, save_all, recompute_all, chen_sqrt, nested."),
        ("auto_reserve", "16", f"a number without a unit; did you mean 16GiB? {RESERVE_FORMS}"),
        ("auto_reserve", "0.5", f"a number without a unit; did you mean 0.5GiB? {RESERVE_FORMS}"),
        ("auto_reserve", "auto", f"'auto' {NO_BYTES} {RESERVE_FORMS}"),
    ],
)
def test_invalid_values_of_other_settings_are_refused(name, value, message):
    with pytest.raises(ConfigError) as caught:
        Config.read({}, {f"REMAT_{name.upper()}": value})
    assert str(caught.value) == f"REMAT_{name.upper()}={value!r}: {message}"


def test_a_value_that_is_not_a_string_is_refused():
    accepted = "a hardware preset, or a file that rematpass calibrate wrote"
    message = f"option hardware=3: a value of type int is not a string. Accepted: {accepted}."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Config.read({"hardware": 3}, {})


def test_without_settings_the_defaults_hold():
    assert Config.read({}, {}) == Config.read(None, {}) == Config.read({"memory_budget": None}, {}) == Config()
    assert Config().memory_budget.is_unlimited


def test_an_option_wins_over_the_variable():
    environ = {"REMAT_MEMORY_BUDGET": "0.25", "REMAT_STRICT": "1"}
    read = Config.read({"memory_budget": 0.75}, environ)
    assert (read.memory_budget, read.strict) == (fraction(0.75), True)
    assert read.memory_budget.given == "option memory_budget=0.75"


def test_an_option_hides_an_invalid_variable():
    assert Config.read({"strict": True}, {"REMAT_STRICT": "maybe"}).strict


def test_the_environment_is_read_at_each_call(monkeypatch):
    for budget in (0.5, 0.25):
        monkeypatch.setenv("REMAT_MEMORY_BUDGET", str(budget))
        assert Config.read().memory_budget == fraction(budget)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("memory_buget", "did you mean memory_budget?"),
        (
            "xyz",
            "valid options are memory_budget, max_recompute, strict, solver, hardware, cost, planning_seconds, "
            "save_decisions, pure_ops, hold_outputs, calls, auto_reserve, check, report_dir",
        ),
    ],
)
def test_an_unknown_option_is_an_error(name, hint):
    with pytest.raises(ConfigError) as caught:
        Config.read({name: 1}, {})
    assert str(caught.value) == f"rematpass has no option {name!r}; {hint}"


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("REMAT_MEMORY_BUGET", "did you mean REMAT_MEMORY_BUDGET?"),
        ("REMATPASS_MEMORY_BUDGET", "did you mean REMAT_MEMORY_BUDGET?"),
        ("REMAT_strict", "did you mean REMAT_STRICT?"),
        (
            "REMAT_XYZ",
            "valid names are REMAT_MEMORY_BUDGET, REMAT_MAX_RECOMPUTE, REMAT_STRICT, REMAT_SOLVER, REMAT_HARDWARE, "
            "REMAT_COST, REMAT_PLANNING_SECONDS, REMAT_SAVE_DECISIONS, REMAT_PURE_OPS, REMAT_HOLD_OUTPUTS, "
            "REMAT_CALLS, REMAT_AUTO_RESERVE, REMAT_CHECK, REMAT_REPORT_DIR",
        ),
    ],
)
def test_an_unknown_variable_is_warned_about_once(caplog, variable, hint):
    for _ in range(2):
        assert Config.read({}, {variable: "8GiB", "REMATCH": "1", "HOME": "/"}) == Config()
    assert caplog.record_tuples == [
        (
            "rematpass",
            logging.WARNING,
            f"the unknown environment variable {variable} has no effect; {hint}",
        )
    ]


def test_options_are_split_into_ours_and_inductors():
    options = {"memory_budget": 0.5, "max_autotune": True, "strict": True}
    assert split_options(options) == ({"memory_budget": 0.5, "strict": True}, {"max_autotune": True})
    assert split_options(None) == ({}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("memory_budget", b) for b in ("0.5", "0.25", "8GiB", "4GiB", "auto")),
        ("max_recompute", "2"),
        ("strict", "1"),
        ("solver", "mincut"),
        ("hardware", "h100"),
        *(("auto_reserve", b) for b in ("0", "3GiB")),
        *(("calls", n) for n in ("1", "8")),
    ],
)
def test_the_key_depends_on_every_setting_that_can_change_a_plan(name, value):
    others = {Config().key(), Config(memory_budget=fraction(0.75)).key(), Config(max_recompute=3.0).key()}
    assert Config.read({name: value}, {}).key() not in others


def test_the_key_excludes_settings_that_cannot_change_a_plan():
    assert Config.read({"check": True}, {}).key() == Config().key()
    assert Config.read({"memory_budget": "1GiB"}, {}).key() == Config.read({}, {"REMAT_MEMORY_BUDGET": "1024MiB"}).key()


def test_every_field_is_a_setting_and_in_the_key_unless_excluded():
    names = [field.name for field in dataclasses.fields(Config)]
    assert names == list(config.OPTIONS)
    assert {name for name in names if f'"{name}"' not in Config().key()} == {"check", "report_dir"}


def test_the_key_is_the_same_in_every_process():
    source = (
        "from rematpass.config import Config; print(Config.read({'memory_budget': 0.1, 'solver': 'mincut'}, {}).key())"
    )
    command, environs = [sys.executable, "-c", source], [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("3", "5")]
    keys = {subprocess.run(command, env=e, capture_output=True, text=True, check=True).stdout for e in environs}
    assert keys == {Config.read({"memory_budget": 0.1, "solver": "mincut"}, {}).key() + "\n"}


def test_the_module_documents_every_variable_in_the_order_of_the_fields():
    documented = re.findall(r"^``(\w+)`` ", config.__doc__, re.MULTILINE)
    assert documented == list(config._VARIABLES.values())
