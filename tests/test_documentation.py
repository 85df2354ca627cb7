"""README, CONTRIBUTING and the guide name only what exists: files, links, commands, options, variables, figures."""

import re
import shlex

import pytest
from support.documents import (
    ALL,
    CONTRIBUTING,
    DOCUMENTS,
    GUIDE,
    README,
    ROOT,
    anchors,
    blocks,
    code_spans,
    links,
    name,
    prose,
    shell_lines,
    text,
)

from rematpass import cli
from rematpass.config import OPTIONS, SOLVERS, Config
from rematpass.core.hardware import PRESETS

every_document = pytest.mark.parametrize("document", ALL, ids=name)
DIRECTORIES = {path.name for base in (ROOT, ROOT / "rematpass") for path in base.iterdir() if path.is_dir()}
TOPICS = {"budget", "measurements", "frameworks", "migrating", "offline", "troubleshooting", "limits", "design"}


def commands():
    """Every command line of the package in a shell block, without what precedes it: variables, torchrun."""
    for document in ALL:
        for _, line in shell_lines(document):
            if found := re.search(r"(?:-m |&& |^)rematpass (.+)", line):
                yield found[1]


def test_readme_fits_three_screens():
    assert 120 <= len(text(README).splitlines()) <= 150


def test_contributing_fits_one_screen():
    assert len(text(CONTRIBUTING).splitlines()) < 60


def test_the_guide_has_its_topics():
    assert {page.stem for page in GUIDE} == TOPICS


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_a_guide_page_begins_with_a_title_and_one_sentence(page):
    title, sentence, *_ = text(page).split("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert re.fullmatch(r"[A-Z].*\.", " ".join(sentence.split()))
    assert len(sentence) <= 120


@pytest.mark.parametrize("page", GUIDE, ids=name)
def test_readme_links_every_guide_page(page):
    assert name(page) in set(links(README))


@pytest.mark.parametrize("document", ALL, ids=name)
def test_every_python_block_is_run_or_says_why_not(document):
    for block in blocks(document):
        if block.language == "python":
            assert re.match(r"(run|frameworks): \w+$|not run: .{10}", block.marker), block.code


@every_document
def test_every_relative_link_leads_to_a_file_and_a_heading(document):
    for link in links(document):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", [*DOCUMENTS, CONTRIBUTING], ids=name)
def test_every_file_in_code_spans_exists(document):
    for span in code_spans(document):
        if re.fullmatch(r"[\w./*<>-]+/[\w.*<>-]*", span) and span.partition("/")[0] in DIRECTORIES:
            pattern = re.sub(r"<\w+>", "*", span).rstrip("/")
            assert any(list(base.glob(pattern)) for base in (ROOT, ROOT / "rematpass")), span


def test_the_shell_blocks_hold_every_kind_of_command():
    assert {command.split()[0] for command in commands()} >= set("compare explain plan run max-batch calibrate".split())


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_the_parser_accepts_every_command(command):
    arguments = cli._parser().parse_args(shlex.split(command, comments=True))
    options = {option: getattr(arguments, option, None) for option in ("solver", "max_recompute", "report_dir")}
    budgets = getattr(arguments, "budget", None)
    for budget in budgets if isinstance(budgets, list) else [budgets]:
        Config.read({**options, "memory_budget": budget}, {})


@every_document
def test_every_command_in_code_spans_exists(document):
    (known,) = (action.choices for action in cli._parser()._actions if action.choices)
    for span in code_spans(document):
        if found := re.match(r"(?:python -m )?rematpass ([a-z][\w-]*)", span):
            assert found[1] in known, span


@every_document
def test_every_variable_exists(document):
    known = {f"REMAT_{option.upper()}" for option in OPTIONS}
    assert set(re.findall(r"\bREMAT_[A-Z_]+\b", text(document))) <= known


def test_the_budget_page_lists_every_setting_solver_and_preset():
    page = text(ROOT / "rematpass" / "guide" / "budget.md")
    rows = re.findall(r"^\| `(REMAT_\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(f"REMAT_{option.upper()}" for option in OPTIONS)
    assert all(f"`{known}`" in page for known in (*SOLVERS, *PRESETS))


def test_measurements_links_every_page_of_results():
    page = ROOT / "rematpass" / "guide" / "measurements.md"
    linked = {(page.parent / link).resolve() for link in links(page) if link.endswith(".md")}
    assert linked >= set((ROOT / "benchmarks" / "results").glob("*.md"))


@pytest.mark.parametrize("document", [README, ROOT / "rematpass" / "guide" / "measurements.md"], ids=name)
def test_every_peak_in_a_table_is_a_figure_of_a_results_page(document):
    """Bytes with two decimals; those of the demo are on no page."""
    stored = "".join(text(page) for page in (ROOT / "benchmarks" / "results").glob("*.md"))
    quoted = prose(document).partition("## The demo")[0]
    for row in re.findall(r"^\|.*", quoted, re.MULTILINE):
        for figure in re.findall(r"\b\d+\.\d\d [MG]iB", row):
            assert figure in stored, row


def test_troubleshooting_quotes_messages_as_they_are():
    """Text in double quotes; "..." stands for what a message fills in."""
    sources = "".join(text(source) for source in (ROOT / "rematpass").rglob("*.py"))
    joined = re.sub(r"\"\s*\n\s*f?\"", "", sources)
    page = " ".join(prose(ROOT / "rematpass" / "guide" / "troubleshooting.md").split())
    quoted = re.findall(r"(?<!=)\"([a-z][^\"`]+)\"", re.sub(r"`[^`]*`", "", page))
    assert len(quoted) >= 5
    for message in quoted:
        for piece in filter(None, re.split(r"\s*(?:\.\.\.|\(\.\.\.\))\s*", message)):
            assert piece in joined, message
