"""``rematpass guide``: the guide that ships with the package, one topic per file in ``rematpass/guide``."""

from __future__ import annotations

import argparse
import re
import sys
from importlib.resources import files
from typing import Any

from rematpass.commands.arguments import Commands, add_command
from rematpass.config import unknown
from rematpass.errors import ConfigError

_ORDER = ("budget", "measurements", "frameworks", "migrating", "offline", "troubleshooting", "limits", "design")
_EXAMPLES = """examples:
  rematpass guide                  the topics
  rematpass guide budget           how to choose a budget
  rematpass guide troubleshooting  out of memory, graph breaks, compile time
"""


def add_parser(commands: Commands[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = add_command(
        commands,
        "guide",
        help="read the guide: budgets, frameworks, troubleshooting, limits",
        description="Show a topic of the guide, or without one list the topics.",
        examples=_EXAMPLES,
    )
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="the topic to show (default: list all topics)")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    if arguments.topic is None:
        print(_listing())
        return 0
    if arguments.topic not in topics():
        raise ConfigError(unknown(arguments.topic, "topic", topics()))
    text = read(arguments.topic)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text, end="")
    return 0


def topics() -> tuple[str, ...]:
    """The names of all topics, in reading order."""
    found = {entry.name.removesuffix(".md") for entry in _directory().iterdir() if entry.name.endswith(".md")}
    return tuple(sorted(found, key=lambda topic: (topic not in _ORDER, topic in _ORDER and _ORDER.index(topic), topic)))


def read(topic: str) -> str:
    """The Markdown of a topic, without the comments that mark code for the tests."""
    text: str = (_directory() / f"{topic}.md").read_text("utf-8")
    return re.sub(r"^<!--.*?-->\n+", "", text, flags=re.MULTILINE | re.DOTALL)


def _directory() -> Any:  # Traversable, whose module differs between versions of Python
    return files("rematpass") / "guide"


def summary(topic: str) -> str:
    """The first paragraph below a topic's title, on one line."""
    return " ".join(read(topic).split("\n\n")[1].split())


def _listing() -> str:
    width = max(map(len, topics()))
    lines = [f"  {topic:<{width}}  {summary(topic)}" for topic in topics()]
    return "\n".join(["rematpass guide TOPIC shows one of these topics:", *lines])
