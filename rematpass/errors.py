"""Every exception of the package, one class per cause.

A message states what happened, gives the numbers, names the cause, and ends with what to try.
"""


class RematError(Exception):
    """The base class of all exceptions that rematpass raises."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)


class ConfigError(RematError, ValueError):
    """A setting is invalid. The message names the variable or option, the given value, and the accepted values."""


class BudgetInfeasible(RematError):
    """No plan stays under the byte budget.

    ``floor``: the lowest peak that a plan reaches, in bytes; ``budget``: the requested peak, in bytes.
    """

    def __init__(self, message: str, *, budget: int, floor: int) -> None:
        super().__init__(message)
        self.budget = budget
        self.floor = floor

    def __reduce__(self) -> tuple[object, ...]:
        return _infeasible, (str(self), self.budget, self.floor)


def _infeasible(message: str, budget: int, floor: int) -> BudgetInfeasible:
    return BudgetInfeasible(message, budget=budget, floor=floor)


class ContradictoryMarks(RematError):
    """User annotations forbid both saving and recomputing a value that backward needs; the message names the path."""


class GraphError(RematError, ValueError):
    """A joint graph is invalid, or a file does not contain one."""


class PlanError(RematError):
    """The verifier rejects a schedule, or a file does not contain one. This is a bug in the planner."""


class PlanTimeout(RematError):
    """Planning took longer than ``planning_seconds``. It is handled like a planner failure."""


class TorchVersionError(RematError, ImportError):
    """The installed torch is outside the supported range."""


class MeasureError(RematError):
    """A measurement or comparison cannot be made: the model, the device or a file is unusable."""


class ReportError(RematError):
    """A report cannot be written, or an earlier report file cannot be read."""


class CaptureError(RematError):
    """The graph model cannot express something in the joint graph; torch's own partitioner is used instead."""


def cause_of(error: BaseException) -> RematError | None:
    """Return the ``RematError`` behind ``error``, which Dynamo may have wrapped; None if there is none."""
    while not isinstance(error, RematError):
        inner = getattr(error, "inner_exception", None) or error.__cause__
        if inner is None:
            return None
        error = inner
    return error
