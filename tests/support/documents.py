"""README, CONTRIBUTING, the guide and the pages of benchmarks: their code blocks, headings, links and named files.

A code block that a test runs, or that no test runs, says so in an HTML comment in the line above it::

    <!-- run: loop -->              Python, run by tests/test_documented_code.py
    <!-- frameworks: trainer -->    Python, run by tests/frameworks/test_documented_examples.py
    <!-- ci:demo -->                shell, run by .ci/run
    <!-- not run: the reason -->    run by no test

Shell blocks without a comment are run by tests/frameworks/test_documented_commands.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
GUIDE = sorted((ROOT / "rematpass" / "guide").glob("*.md"))
DOCUMENTS = (README, *GUIDE)  # what users read, in the order in which their commands are run
ALL = (*DOCUMENTS, CONTRIBUTING, ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "gpu" / "README.md")


class Block(NamedTuple):
    """A fenced block. ``marker``: the text of the comment above it, "run: loop"; empty without one."""

    document: Path
    language: str
    marker: str
    code: str


def text(document: Path) -> str:
    return document.read_text("utf-8")


def name(document: Path) -> str:
    """For the ids of tests: the path below the root."""
    return document.relative_to(ROOT).as_posix()


def blocks(document: Path) -> Iterator[Block]:
    for marker, language, code in re.findall(
        r"^(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)^```$", text(document), re.MULTILINE | re.DOTALL
    ):
        yield Block(document, language, marker, code)


def examples(kind: str) -> dict[str, str]:
    """The Python blocks of README and the guide with the marker ``kind``, by name."""
    found = [block for document in DOCUMENTS for block in blocks(document) if block.marker.startswith(f"{kind}: ")]
    named = {block.marker.removeprefix(f"{kind}: "): block.code for block in found}
    assert len(named) == len(found), "two blocks have the same name"
    return named


def shell_lines(document: Path) -> Iterator[tuple[str, str]]:
    """The commands of the shell blocks, without comments, each with the marker of its block."""
    for block in blocks(document):
        if block.language == "sh":
            for line in block.code.splitlines():
                if command := line.partition("#")[0].strip():
                    yield block.marker, command


def prose(document: Path) -> str:
    """The text without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text(document), flags=re.MULTILINE | re.DOTALL)


def anchors(document: Path) -> set[str]:
    """The anchors that a Git host makes from the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document: Path) -> Iterator[str]:
    """The targets of links and pictures that are no URLs."""
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", prose(document))
    yield from (target for pair in found for target in pair if target and "://" not in target)


def code_spans(document: Path) -> list[str]:
    """Inline code, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(document))]
