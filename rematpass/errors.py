"""Every exception of the package, one class per cause.

A message says what happened, with the numbers, names the culprit, and ends with what to try.
"""


class RematError(Exception):
    """The base of all of them."""


class ConfigError(RematError, ValueError):
    """A setting that cannot be understood: the variable or option, the value given, and what is accepted."""


class BudgetInfeasible(RematError):
    """No plan stays under the budget in bytes.

    ``floor``: the lowest peak that can be reached, in bytes; ``budget``: what was asked for, in bytes.
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
    """A value that backward needs can neither be saved nor recomputed; the message names the path."""


class GraphError(RematError, ValueError):
    """A joint graph, or a file that should hold one, that is not valid."""


class PlanError(RematError):
    """A schedule that the judge rejects, or a file that should hold one and does not: the planner is at fault."""


class PlanTimeout(RematError):
    """Planning took longer than ``planning_seconds``; what follows is the same as when a planner fails."""


class TorchVersionError(RematError, ImportError):
    """A torch outside the supported range."""


class MeasureError(RematError):
    """Something could not be measured or compared as asked: the model, the device, a file."""


class ReportError(RematError):
    """A report that cannot be written, or a file of an earlier one that cannot be read."""


class CaptureError(RematError):
    """A joint graph with something in it that the graph model cannot express; torch's own partitioner takes over."""


def cause_of(error: BaseException) -> RematError | None:
    """The package's own error behind ``error``, which Dynamo wraps in one of its own; None if it is someone else's."""
    while not isinstance(error, RematError):
        inner = getattr(error, "inner_exception", None) or error.__cause__
        if inner is None:
            return None
        error = inner
    return error
