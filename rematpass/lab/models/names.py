"""The names in the catalog, without torch: commands refuse an unknown name before they load it.

``tests/lab/models/test_names.py`` compares these lists with the catalog and with ``compiler/devices``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rematpass.config import unknown
from rematpass.errors import MeasureError

DEVICES = ("cpu", "cuda")

_LLAMA = ("width", "layers", "heads", "kv_heads", "mlp", "vocabulary", "batch", "length", "tied")
_GPT2 = ("width", "layers", "heads", "vocabulary", "batch", "length", "dropout", "attention")
_VIT = ("width", "layers", "heads", "side", "classes", "batch", "attention")
_RESNET = ("depths", "side", "classes", "batch")
_STACK = ("layers", "width", "batch")
_UNET = ("channels", "levels", "side", "batch")

# model -> the sizes that can be set
SIZES: dict[str, tuple[str, ...]] = {
    "llama": _LLAMA,
    "llama-small": _LLAMA,
    "gpt2": _GPT2,
    "vit": _VIT,
    "resnet50": _RESNET,
    "mlp": _STACK,
    "chain": _STACK,
    "unet": _UNET,
    "t5": ("width", "layers", "heads", "mlp", "vocabulary", "batch", "length", "dropout"),
    "tiny-gpt": ("width", "layers", "vocabulary", "batch", "length"),
    **{f"llama-1b-{k}k": _LLAMA for k in (2, 4, 8, 16)},
    "gpt2-medium": _GPT2,
    "vit-l": _VIT,
    "resnet50-224": _RESNET,
    "unet-512": _UNET,
}


def check_model(target: str, known: Iterable[str] = SIZES) -> None:
    """Check that ``target`` is a model of the catalog or has the form "package.module:function".

    Raises:
        MeasureError: it is neither.
    """
    if ":" not in target and target not in known:
        raise MeasureError(f"{unknown(target, 'model', known)}, or package.module:function")


def check_sizes(model: str, sizes: Iterable[str], known: Sequence[str] | None = None) -> None:
    """Check that a model of the catalog has each of the sizes.

    Raises:
        MeasureError: it lacks one.
    """
    accepted = SIZES[model] if known is None else known
    for size in sizes:
        if size not in accepted:
            raise MeasureError(f"{model}: {unknown(size, 'size', accepted)}")


def check_device(device: str) -> None:
    """Check that measurements support a device of this type; whether the machine has it, only torch knows.

    Raises:
        MeasureError: they do not.
    """
    if device.partition(":")[0] not in DEVICES:
        raise MeasureError(f"{device!r} is not a device; try {' or '.join(DEVICES)}")


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """Parse sizes of a model from texts such as "batch=16".

    Raises:
        MeasureError: a text has another form.
    """
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal() or int(number) < 1:
            raise MeasureError(f"{text!r} is not a size; expected a name and a whole number above 0, as in batch=16")
        sizes[name] = int(number)
    return sizes
