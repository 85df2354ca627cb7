"""The public names: ``help``, ``inspect`` and ``typing`` find their documentation and types."""

import inspect
import pydoc
import typing

import pytest

import rematpass

FUNCTIONS_AND_CLASSES = [name for name in rematpass.__all__ if name != "__version__"]


def callables(name):
    """A public function, or the public methods of a class with its constructor, by name."""
    found = getattr(rematpass, name)
    if not inspect.isclass(found):
        return {name: found}
    return {
        f"{name}.{member}": function
        for member, function in inspect.getmembers(found, callable)
        if member in vars(found) and (member == "__init__" or not member.startswith("_"))
    }


@pytest.mark.parametrize("name", FUNCTIONS_AND_CLASSES)
def test_type_hints_can_be_evaluated(name):
    typing.get_type_hints(getattr(rematpass, name))
    for what, function in callables(name).items():
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters
        untyped = [p for p in parameters if p not in hints and p not in ("self", "cls")]
        assert untyped == [], what
        assert "return" in hints, what


@pytest.mark.parametrize("name", FUNCTIONS_AND_CLASSES)
def test_every_public_name_has_a_signature_and_a_docstring(name):
    found = getattr(rematpass, name)
    assert inspect.signature(found)
    first = (found.__doc__ or "").strip().splitlines()[0]
    assert first.endswith((".", ":")), "the first line of a docstring is a sentence"


def test_help_begins_with_what_people_call_and_then_has_the_map():
    text = pydoc.plain(pydoc.render_doc(rematpass))
    parts = ("torch.compile(model", "rematpass.enable(", "REMAT_MEMORY_BUDGET=8GiB", "How it works", "errors.py")
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert places[0] < 300
    for name in FUNCTIONS_AND_CLASSES:
        assert name in text
