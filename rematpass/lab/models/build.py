"""Models with random weights, built from their configurations; nothing is downloaded, and a seed fixes the weights.

``build("llama")`` builds a model of ``catalog.MODELS``; ``load("package.module:function")`` loads a user's model. Both
return a Model: a module, a step that returns its loss, and the blocks for per-block ``torch.utils.checkpoint``.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rematpass.compiler import devices
from rematpass.errors import MeasureError
from rematpass.lab.models.catalog import MODELS
from rematpass.lab.models.names import check_model, check_sizes


@dataclass
class Model:
    """A module to train. ``step`` runs ``module`` on its own data and returns the loss, without backward.

    ``blocks``: the repeated blocks, for per-block checkpointing and compilation; empty if nothing repeats.
    """

    name: str
    module: nn.Module
    step: Callable[[], torch.Tensor]
    blocks: list[nn.Module]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that require a gradient."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def required_blocks(self) -> list[nn.Module]:
        """``blocks``, which must not be empty.

        Raises:
            MeasureError: the model has no blocks.
        """
        if not self.blocks:
            raise MeasureError(f"{self.name} has no list of equal blocks to checkpoint or compile one by one")
        return self.blocks

    def checkpoint_blocks(self) -> None:
        """Make every block a ``torch.utils.checkpoint`` region, in place: backward runs it again.

        Raises:
            MeasureError: the model has no blocks.
        """
        for block in self.required_blocks:
            block.forward = _checkpointed(block.forward)


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def build(
    name: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    seed: int = 0,
    **sizes: Any,
) -> Model:
    """Build a model of ``MODELS``, in training mode; ``sizes`` override those of its configuration (``layers=2``).

    The same seed gives the same weights and data; torch's random state is restored. Parameters and floating-point
    inputs have ``dtype``, by default that of the configuration.

    Raises:
        MeasureError: the name, a size or the device is unknown, or transformers is missing.
    """
    check_model(name, MODELS)
    spec, device = MODELS[name], devices.usable(device)
    accepted = list(inspect.signature(spec.make).parameters)
    check_sizes(name, sizes, accepted)
    dtype = dtype or spec.dtype
    with devices.of(device).fork_rng(device):
        torch.manual_seed(seed)
        with device:  # a GPU initializes large models faster
            module, inputs = spec.make(**{**spec.sizes, **sizes})
    module = module.to(device=device, dtype=dtype).train()
    inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def step() -> torch.Tensor:
        result = module(**inputs)
        return result if isinstance(result, torch.Tensor) else result.loss

    return Model(name, module, step, find_blocks(module, spec.blocks))


def find_blocks(module: nn.Module, of_class: str = "") -> list[nn.Module]:
    """The repeated blocks: all modules of class ``of_class``, or by default the members of the outermost lists.

    A list is a ModuleList or Sequential with at least two members of one class that have submodules (ten Linear are not
    blocks). A model may have several lists, such as an encoder's and a decoder's.
    """
    if of_class:
        return [m for m in module.modules() if type(m).__name__ == of_class]
    blocks: list[nn.Module] = []
    todo = [module]
    while todo:
        parent = todo.pop(0)
        members = list(parent.children())
        alike = len(members) > 1 and len({type(m) for m in members}) == 1 and all(any(m.children()) for m in members)
        if alike and isinstance(parent, (nn.ModuleList, nn.Sequential)):
            blocks += members
        else:
            todo = members + todo
    return blocks


def load(target: str, **sizes: Any) -> Model:
    """Call a user's function, given as "package.module:function", which returns a module and a step.

    ``sizes`` are passed to the function (``batch=8``). The step takes no arguments, runs the module, and returns the
    loss. The current directory is added to ``sys.path``.

    Raises:
        MeasureError: the function cannot be imported, raises, or returns something else.
    """
    module_name, _, function_name = target.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise MeasureError(f"cannot import {target!r}: {error}; expected package.module:function") from error
    except Exception as error:
        raise MeasureError(f"importing {module_name!r} raised {type(error).__name__}: {error}") from error
    try:
        found = function(**sizes)
    except Exception as error:
        raise MeasureError(f"{target} raised {type(error).__name__}: {error}") from error
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module) and callable(found[1])):
        raise MeasureError(
            f"{target} returned {_described(found)}; expected (module, step), a torch module and a function"
        )
    module, step = found
    if not any(p.requires_grad for p in module.parameters()):
        raise MeasureError(
            f"the model of {target} has no parameter that requires a gradient, so there is nothing to train"
        )
    return Model(target, module, step, find_blocks(module))


def _described(found: object) -> str:
    if isinstance(found, tuple):
        return f"a tuple of {', '.join(type(item).__name__ for item in found) or 'nothing'}"
    return "None" if found is None else f"a {type(found).__name__}"
