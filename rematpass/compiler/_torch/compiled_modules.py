"""How ``torch.compile`` changes modules: wrappers around them, and the compiled call that ``Module.compile`` sets.

``Module._call_impl`` and ``Module._compiled_call_impl`` exist in torch 2.11 to 2.15.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._dynamo.eval_frame import OptimizedModule


def wrapped_modules(root: torch.nn.Module) -> list[torch.nn.Module]:
    """The modules in ``root`` that ``torch.compile`` has wrapped."""
    return [m._orig_mod for m in root.modules() if isinstance(m, OptimizedModule)]


def is_compiled_in_place(module: torch.nn.Module) -> bool:
    """Whether ``module.compile()`` has been called."""
    return module._compiled_call_impl is not None


@contextlib.contextmanager
def called_through(module: torch.nn.Module, compiled: Callable[[Callable[..., Any]], Any]) -> Iterator[None]:
    """Inside the ``with``, calls of ``module`` run ``compiled(call)`` instead of ``call``, the eager call.

    ``Module.compile`` would compile ``_call_impl`` itself, which Dynamo skips for torch's own classes (``Sequential``).
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)

    before = module._compiled_call_impl
    module._compiled_call_impl = compiled(call)
    try:
        yield
    finally:
        module._compiled_call_impl = before
