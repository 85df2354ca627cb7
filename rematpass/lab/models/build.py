"""Real models, from their configurations alone: nothing is downloaded, weights are random, and a seed fixes them.

``build("llama")`` returns a Model: a module, a step that returns its loss, and the blocks that per-block
``torch.utils.checkpoint`` works on. ``catalog.MODELS`` lists them; ``load("package.module:function")`` takes a user's.
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

    ``blocks``: what per-block checkpointing wraps; empty where nothing repeats.
    """

    name: str
    module: nn.Module
    step: Callable[[], torch.Tensor]
    blocks: list[nn.Module]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def some_blocks(self) -> list[nn.Module]:
        """``blocks``, of which there are some.

        Raises:
            MeasureError: there are none.
        """
        if not self.blocks:
            raise MeasureError(f"{self.name} holds no list of equal blocks, so nothing can be done block by block")
        return self.blocks

    def checkpoint_blocks(self) -> None:
        """Make every block a ``torch.utils.checkpoint`` region, in place: only its input is saved, and it runs again.

        Raises:
            MeasureError: there are no blocks.
        """
        for block in self.some_blocks:
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
    """Make a model of ``MODELS``, in training mode; ``sizes`` replace those of its configuration (``layers=2``).

    The same seed gives the same weights and data, and torch's own random state is left as it was. Parameters and
    floating-point inputs get ``dtype``, by default the configuration's.

    Raises:
        MeasureError: no model of that name, or no size; no such device; transformers is missing.
    """
    check_model(name, MODELS)
    spec, device = MODELS[name], devices.usable(device)
    accepted = list(inspect.signature(spec.make).parameters)
    check_sizes(name, sizes, accepted)
    dtype = dtype or spec.dtype
    with devices.of(device).fork_rng(device):
        torch.manual_seed(seed)
        with device:  # large models are faster to initialize where they will live
            module, inputs = spec.make(**{**spec.sizes, **sizes})
    module = module.to(device=device, dtype=dtype).train()
    inputs = {k: v.to(device, dtype if v.is_floating_point() else None) for k, v in inputs.items()}

    def step() -> torch.Tensor:
        result = module(**inputs)
        return result if isinstance(result, torch.Tensor) else result.loss

    return Model(name, module, step, find_blocks(module, spec.blocks))


def find_blocks(module: nn.Module, of_class: str = "") -> list[nn.Module]:
    """The blocks that repeat: all modules of class ``of_class``, or else the members of the outermost lists.

    A list is a ModuleList or Sequential with at least two members, all of one class, which have parts of their own
    (ten Linear are no blocks). A model may hold several lists: an encoder's and a decoder's.
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
    """Call a user's function, given as "package.module:function"; it returns a module and a step.

    ``sizes`` are handed to the function (``batch=8``). The step takes no arguments, runs the module, and returns the
    loss. The current directory can be imported from.

    Raises:
        MeasureError: it cannot be imported or fails, or it returns something else.
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
