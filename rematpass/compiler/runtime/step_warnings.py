"""Warnings while compiled steps run, for steps that take more memory than planned; under REMAT_CHECK, measured peaks.

A graph with symbolic sizes is planned once, for the sizes of its first step, and runs with others. Its peak then
follows the formula in its summary (``peak_formula``).

A graph is planned for as many calls per step as are known when it is compiled (``call_count.py``). A function called in
a loop, or a model called twice for one loss, is called more often, and what its calls save adds up. That is known when
backward starts: the number of calls that wait for their backward.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rematpass.budget import BudgetKind
from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context
from rematpass.compiler.planned import Record
from rematpass.compiler.runtime.backward_node import backward_node
from rematpass.compiler.runtime.check_peak import check_steps
from rematpass.config import Config
from rematpass.core.sizes import evaluate
from rematpass.errors import GraphError
from rematpass.units import format_bytes

log = logging.getLogger("rematpass")

Compiled = Callable[..., Any]
Planned = Callable[[], Record | None]  # the last record of the graph; None before it is planned
Peak = Callable[[Sequence[Any]], int | None]


def watched(
    compiled: Compiled,
    example_inputs: Sequence[Any],
    config: Config,
    planned: Planned,
    *,
    calls: int,
    device: torch.device,
) -> Compiled:
    """``compiled``, wrapped in what ``config`` asks to watch.

    ``planned`` returns the record of the graph, which may be planned after this call. ``calls``: how often a step is
    planned to call it. ``device``: where the peak is measured under REMAT_CHECK.
    """
    symbols = _symbols(example_inputs)
    peak = functools.partial(planned_peak, planned, symbols)
    name = f"graph {compile_context.compile_id()}".strip()
    if symbols and config.memory_budget.kind is not BudgetKind.FRACTION:  # a fraction is of the sizes planned for
        compiled = _warning_of_sizes(compiled, planned, symbols, peak, name)
    if not config.memory_budget.is_unlimited:
        compiled = _warning_of_calls(compiled, calls, name)
    if not config.check:
        return compiled
    hint = "" if config.hold_outputs else ", or remove REMAT_HOLD_OUTPUTS=0 if outputs are not dropped"
    return check_steps(compiled, peak, device=device, name=name, hint=hint)


def planned_peak(planned: Planned, symbols: Mapping[int, str], args: Sequence[Any]) -> int | None:
    """The planned peak in bytes of one call with these arguments; None without a plan.

    ``symbols``: the symbols of the arguments that are sizes, by position.
    """
    record = planned()
    if record is None or not record.summary.peak_formula:
        return None if record is None else record.peak_of_one_call
    formula, assumed = record.summary.peak_formula, dict(record.summary.sizes)
    sizes = {**assumed, **{symbol: int(args[i]) for i, symbol in symbols.items() if symbol in assumed}}
    try:
        return record.peak_of_one_call + evaluate(formula, sizes) - evaluate(formula, assumed)
    except GraphError as error:  # a formula that cannot be evaluated must not abort training
        log.debug("the peak at other sizes is not known: %s", error)
        return record.peak_of_one_call


def _saved_by_others(planned: Planned, symbols: Mapping[int, str], args: Sequence[Any]) -> int:
    """Bytes that the other calls of the step have saved, if all of them have these arguments."""
    record = planned()
    if record is None or record.graph.calls == 1:
        return 0
    graph = record.graph
    sizes = {**dict(graph.hints), **{symbol: int(args[i]) for i, symbol in symbols.items()}}
    counted = (graph.values[v] for v in record.plan.saved if graph.nbytes_of_others[v])
    try:
        return (graph.calls - 1) * sum(evaluate(value.nbytes_expr, sizes) for value in counted)
    except GraphError as error:
        log.debug("what other calls save at other sizes is not known: %s", error)
        return record.summary.nbytes_of_others


def _symbols(example_inputs: Sequence[Any]) -> dict[int, str]:
    """The symbols of the arguments that are sizes, by position."""
    names = {i: str(size.node.expr) for i, size in enumerate(example_inputs) if isinstance(size, torch.SymInt)}
    return {i: name for i, name in names.items() if name.isidentifier()}


def _warning_of_sizes(
    compiled: Compiled, planned: Planned, symbols: Mapping[int, str], peak: Peak, name: str
) -> Compiled:
    """A wrapper that warns, once, of a step whose sizes exceed a budget in bytes."""
    within: set[tuple[int, ...]] = set()
    has_warned = False

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal has_warned
        sizes = tuple(int(args[i]) for i in symbols)
        if not has_warned and sizes not in within and torch.is_grad_enabled():
            record, of_this = planned(), peak(args)
            budget = None if record is None else record.summary.budget_nbytes
            needed = 0 if of_this is None else of_this + _saved_by_others(planned, symbols, args)
            if budget is not None and needed > budget:
                has_warned = True
                given = ", ".join(f"{symbol}={size}" for symbol, size in zip(symbols.values(), sizes, strict=True))
                log.warning(
                    "%s: with the sizes of this step (%s) it takes %s, %s over the budget of %s. Let the first step "
                    "have the largest sizes, or compile with dynamic=False, so that each size is planned by itself",
                    name, given, format_bytes(needed), format_bytes(needed - budget), format_bytes(budget),
                )  # fmt: skip
            within.add(sizes)
        return compiled(*args, **kwargs)

    return run


def _warning_of_calls(compiled: Compiled, calls: int, name: str) -> Compiled:
    """A wrapper that warns, once, if more than ``calls`` of its calls wait for their backward at the same time."""
    waiting: weakref.WeakSet[Any] = weakref.WeakSet()  # nodes of backward; a freed one drops out
    has_warned = False

    def begins(node: weakref.ref[Any]) -> None:
        nonlocal has_warned
        if not has_warned and len(waiting) > calls:
            has_warned = True
            log.warning(
                "%s was called %d times before its backward, and is planned for %d: what each call saves adds up to "
                "more than that. The option calls=%d, or REMAT_CALLS, plans for all of them",
                name, len(waiting), calls, len(waiting),
            )  # fmt: skip
        waiting.discard(node())

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = compiled(*args, **kwargs)
        if (
            has_warned
            or not torch.is_grad_enabled()
            or _torch.saved_tensor_hooks_are_active()
            or _torch.backward_is_traced()
        ):
            return outputs
        if (node := backward_node(outputs, args)) is not None:
            waiting.add(node)
            reference = weakref.ref(node)  # the hook belongs to the node; a strong reference would be a cycle
            node.register_prehook(lambda _: begins(reference))
        return outputs

    return run
