"""What is watched while compiled steps run: what takes one over its budget and, under REMAT_CHECK, measured bytes.

Where sizes are symbols a graph is planned once, for the sizes that it is compiled with, and runs with others. Its peak
then changes as the formula of the peak does (``peak_formula`` of the summary).

A graph is planned for as many calls in a step as can be seen when it is compiled (``alike``). A function that a loop
calls, or a model that is called twice for one loss, is called more often, and what it saves adds up. That shows when
backward starts: so many of its calls wait for theirs.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rematpass.compiler import _torch
from rematpass.compiler.capture import compile_context
from rematpass.compiler.partitioner import RematPartitioner, log
from rematpass.config import BudgetKind
from rematpass.core.sizes import evaluate
from rematpass.errors import GraphError
from rematpass.units import format_bytes

Compiled = Callable[..., Any]
BACKWARD_NODE = "CompiledFunctionBackward"
Peak = Callable[[Sequence[Any]], int | None]


def watched(compiled: Compiled, partitioner: RematPartitioner, example_inputs: Sequence[Any]) -> Compiled:
    """``compiled``, or a function around it that watches it."""
    symbols, config = _symbols(example_inputs), partitioner.config
    peak = functools.partial(planned_peak, partitioner, symbols)
    name = f"graph {compile_context.compile_id()}".strip()
    if symbols and config.memory_budget.kind is not BudgetKind.FRACTION:  # that goes by the sizes planned for
        compiled = _warning_of_sizes(compiled, partitioner, symbols, peak, name)
    if not config.memory_budget.is_unlimited:
        compiled = _warning_of_calls(compiled, partitioner.calls, name)
    if not config.check:
        return compiled
    from rematpass.compiler.runtime.check_peak import (
        check_steps,  # the one thing of the lab that a training run may ask for
    )

    hint = "" if config.hold_outputs else ", or take REMAT_HOLD_OUTPUTS=0 away if outputs are not dropped"
    return check_steps(compiled, peak, device=partitioner.device, name=name, hint=hint)


def planned_peak(partitioner: RematPartitioner, symbols: Mapping[int, str], args: Sequence[Any]) -> int | None:
    """Bytes of the planned peak of a step with these arguments, of which ``symbols`` are sizes; None without a plan."""
    record = partitioner.planned
    if partitioner.planned_peak is None or record is None or not record.summary.peak_formula:
        return partitioner.planned_peak
    formula, assumed = record.summary.peak_formula, dict(record.summary.sizes)
    here = {**assumed, **{symbol: int(args[i]) for i, symbol in symbols.items() if symbol in assumed}}
    try:
        return partitioner.planned_peak + evaluate(formula, here) - evaluate(formula, assumed)
    except GraphError as error:  # a formula that we cannot work out ends no training
        log.debug("the peak at other sizes is not known: %s", error)
        return partitioner.planned_peak


def _of_others(partitioner: RematPartitioner, symbols: Mapping[int, str], args: Sequence[Any]) -> int:
    """Bytes that the other calls of a step have saved, if all of them have these arguments."""
    record = partitioner.planned
    if record is None or record.graph.calls == 1:
        return 0
    graph = record.graph
    here = {**dict(graph.hints), **{symbol: int(args[i]) for i, symbol in symbols.items()}}
    counted = (graph.values[v] for v in record.plan.saved if graph.nbytes_of_others[v])
    try:
        return (graph.calls - 1) * sum(evaluate(value.nbytes_expr, here) for value in counted)
    except GraphError as error:
        log.debug("what other calls save at other sizes is not known: %s", error)
        return record.summary.nbytes_of_others


def _symbols(example_inputs: Sequence[Any]) -> dict[int, str]:
    """The places of the arguments that are sizes, with the symbols that they are known by."""
    names = {i: str(size.node.expr) for i, size in enumerate(example_inputs) if isinstance(size, torch.SymInt)}
    return {i: name for i, name in names.items() if name.isidentifier()}


def _warning_of_sizes(
    compiled: Compiled, partitioner: RematPartitioner, symbols: Mapping[int, str], peak: Peak, name: str
) -> Compiled:
    """A function that warns, once, of a step whose sizes take it over a budget in bytes."""
    within: set[tuple[int, ...]] = set()
    told = False

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal told
        sizes = tuple(int(args[i]) for i in symbols)
        if not told and sizes not in within and torch.is_grad_enabled():
            budget = None if partitioner.planned is None else partitioner.planned.summary.budget_nbytes
            of_this = peak(args)
            needed = 0 if of_this is None else of_this + _of_others(partitioner, symbols, args)
            if budget is not None and needed > budget:
                told = True
                here = ", ".join(f"{symbol}={size}" for symbol, size in zip(symbols.values(), sizes, strict=True))
                log.warning(
                    "%s: with the sizes of this step (%s) it takes %s, %s over the budget of %s. Let the first step "
                    "have the largest sizes, or compile with dynamic=False, so that each size is planned by itself",
                    name, here, format_bytes(needed), format_bytes(needed - budget), format_bytes(budget),
                )  # fmt: skip
            within.add(sizes)
        return compiled(*args, **kwargs)

    return run


def _warning_of_calls(compiled: Compiled, planned: int, name: str) -> Compiled:
    """A function that warns, once, when more than ``planned`` of its calls wait for their backward at a time."""
    waiting: weakref.WeakSet[Any] = weakref.WeakSet()  # backward's nodes: those that nobody holds wait no more
    told = False

    def begins(node: weakref.ref[Any]) -> None:
        nonlocal told
        if not told and len(waiting) > planned:
            told = True
            log.warning(
                "%s was called %d times before its backward, and is planned for %d: what each call saves adds up to "
                "more than that. The option calls=%d, or REMAT_CALLS, plans for all of them",
                name, len(waiting), planned, len(waiting),
            )  # fmt: skip
        waiting.discard(node())

    @functools.wraps(compiled)
    def run(*args: Any, **kwargs: Any) -> Any:
        outputs = compiled(*args, **kwargs)
        if told or not torch.is_grad_enabled() or _torch.saved_tensor_hooks_are_active() or _torch.backward_is_traced():
            return outputs
        if (node := backward_node(outputs, args)) is not None:
            waiting.add(node)
            its = weakref.ref(node)  # the hook belongs to the node: they must not hold each other
            node.register_prehook(lambda _: begins(its))
        return outputs

    return run


def backward_node(outputs: Any, inputs: Sequence[Any] = ()) -> Any:
    """The autograd node that runs the compiled backward of these outputs; None if they need no gradient.

    An output that is a view of another has nodes of its own in front of it; one that is a view of an input leads to
    the node that the input comes from, of another graph.
    """
    found = outputs if isinstance(outputs, Sequence) else [outputs]
    others = {i.grad_fn for i in inputs if isinstance(i, torch.Tensor) and i.grad_fn is not None}
    todo = list({o.grad_fn for o in found if isinstance(o, torch.Tensor) and o.grad_fn is not None} - others)
    seen = others.union(todo)
    while todo:
        node = todo.pop()
        if node.name().endswith(BACKWARD_NODE):
            return node
        behind = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= behind
        todo += behind
    return None
