import inspect

import pytest

from rematpass.compiler.devices import KINDS
from rematpass.errors import MeasureError
from rematpass.lab.models import names
from rematpass.lab.models.catalog import MODELS


def test_the_names_are_those_of_the_catalog():
    sizes = {name: tuple(inspect.signature(spec.make).parameters) for name, spec in MODELS.items()}
    assert list(names.SIZES.items()) == list(sizes.items())


def test_the_devices_are_those_that_can_be_measured():
    assert tuple(kind.type for kind in KINDS) == names.DEVICES


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: names.check_model("lama"),
            "unknown model 'lama'; did you mean llama? Valid names are llama, llama-small, gpt2, vit, resnet50, mlp, "
            "chain, unet, t5, tiny-gpt, llama-1b-2k, llama-1b-4k, llama-1b-8k, llama-1b-16k, gpt2-medium, vit-l, "
            "resnet50-224, unet-512, or package.module:function",
        ),
        (
            lambda: names.check_sizes("chain", ["batch", "lenght"]),
            "chain: unknown size 'lenght'; valid names are layers, width, batch",
        ),
        (
            lambda: names.check_sizes("llama", ["lenght"]),
            "llama: unknown size 'lenght'; did you mean length? Valid names are width, layers, heads, kv_heads, mlp, "
            "vocabulary, batch, length, tied",
        ),
        (lambda: names.check_device("gpu"), "'gpu' is not a device; try cpu or cuda"),
        (
            lambda: names.parse_sizes(["batch=few"]),
            "'batch=few' is not a size; expected a name and a whole number above 0, as in batch=16",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_the_valid_ones(check, message):
    with pytest.raises(MeasureError) as caught:
        check()
    assert str(caught.value) == message


def test_valid_names_pass():
    names.check_model("llama")
    names.check_model("train:make")
    names.check_sizes("llama", ["batch", "length"])
    names.check_device("cuda:1")
    assert names.parse_sizes(["batch=16", "layers=2"]) == {"batch": 16, "layers": 2}
