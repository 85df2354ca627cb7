"""Errors that the user has to fix: they are raised to the user with a short traceback, and never cause a fallback."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace

from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context
from rematpass.errors import BudgetInfeasible, ConfigError, ContradictoryMarks

USER_ERRORS = (ConfigError, ContradictoryMarks, BudgetInfeasible)


@contextlib.contextmanager
def short_traceback(backend: str) -> Iterator[None]:
    """Raise a user error as Dynamo's ``BackendCompilerFailed``, whose traceback leaves out the compiler's frames.

    Dynamo would wrap the error in the same exception, but show all frames from its own to the planner's. It lets one
    pass that is a ``BackendCompilerFailed`` already, and begins its traceback at ``first_useful_frame``. The error
    itself is the ``inner_exception``. Outside of Dynamo it is raised as it is.
    """
    try:
        yield
    except USER_ERRORS as error:
        if not compile_context.compile_id():
            raise
        named = SimpleNamespace(__name__=backend)
        raise _torch.BackendCompilerFailed(named, error, inspect.currentframe()) from None
