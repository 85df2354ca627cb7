"""A dry run changes nothing in the process that the real compile or the user could notice."""

from __future__ import annotations

import contextlib
import contextvars
import copy
from collections.abc import Iterator, Sequence
from typing import Any

from rematpass.compiler import _torch
from rematpass.compiler._torch import V, inductor_driver, inductor_metrics

_is_running = contextvars.ContextVar("rematpass dry run", default=False)


def is_dry_run() -> bool:
    """Whether Inductor is working for a dry run now, on a copy of a graph."""
    return _is_running.get()


@contextlib.contextmanager
def without_trace(inputs: Sequence[Any]) -> Iterator[None]:
    """Restore counters, metrics and random state at the end; record no guards and write no debug files."""
    metrics = {k: copy.copy(v) for k, v in vars(inductor_metrics).items() if isinstance(v, (int, list)) and k[0] != "_"}
    counters = {k: v.copy() for k, v in _torch.dynamo_counters.items()}
    shape_env = inductor_driver.shape_env_from_inputs(inputs)
    unguarded = shape_env.suppress_guards() if shape_env is not None else contextlib.nullcontext()
    token = _is_running.set(True)
    try:
        with _torch.preserve_rng_state(), _torch.without_modes(), V.set_debug_handler(_Silent()), unguarded:
            yield
    finally:
        _is_running.reset(token)
        vars(inductor_metrics).update(metrics)
        _torch.dynamo_counters.clear()
        _torch.dynamo_counters.update(counters)


class _Silent:
    """A debug handler for Inductor that writes no files."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
