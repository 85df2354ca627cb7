"""``rematpass guide``: the list of topics, one topic, and unknown ones."""

import re
from importlib.resources import files

import pytest

from rematpass import cli
from rematpass.commands import guide


def run(capsys, *arguments):
    code = cli.main(["guide", *arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_every_file_is_a_topic_in_reading_order():
    shipped = {path.name.removesuffix(".md") for path in (files("rematpass") / "guide").iterdir()}
    assert set(guide.topics()) == shipped
    assert guide.topics()[:2] == ("budget", "measurements")
    assert guide.topics() == guide._ORDER


def test_without_a_topic_all_are_listed_with_one_sentence_each(capsys):
    code, out, err = run(capsys)
    assert (code, err) == (0, "")
    lines = out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(guide.topics())
    assert [line for line in lines if not re.fullmatch(r"  [a-z]+ +[A-Z].*\.", line)] == []
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize("topic", guide.topics())
def test_a_topic_is_printed_as_plain_text_to_a_pipe(capsys, topic):
    code, out, err = run(capsys, topic)
    assert (code, err) == (0, "")
    assert out.startswith("# ")
    assert "<!--" not in out
    assert "\x1b" not in out


def test_a_topic_is_rendered_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    code, out, _ = run(capsys, "budget")
    assert code == 0
    assert "```" not in out
    assert not out.startswith("# ")


def test_an_unknown_topic_is_refused_with_the_nearest_one(capsys):
    code, out, err = run(capsys, "trubleshooting")
    assert (code, out) == (2, "")
    names = ", ".join(guide.topics())
    assert err == (
        f"rematpass: error: unknown topic 'trubleshooting'; did you mean troubleshooting? Valid names are {names}\n"
    )
