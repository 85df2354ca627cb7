"""A joint graph at other sizes: symbols of its shapes get other numbers, and the bytes follow.

``Value.nbytes_expr`` is the formula behind the bytes of a value, in Python's notation, with the symbols of
``JointGraph.hints``. FLOPs are known for one size only; they are scaled with the bytes that the op reads and writes.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rematpass.core.graph import JointGraph
from rematpass.core.op import Op, Value
from rematpass.errors import GraphError

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: Fraction,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Max": max,
    "Min": min,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "CeilDiv": lambda a, b: -(-a // b),
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "ModularIndexing": lambda a, b, c: a // b % c,
    "floor": math.floor,
    "ceiling": math.ceil,
    "Abs": abs,
}


def evaluate(formula: str, symbols: Mapping[str, int]) -> int:
    """The value of a formula of sizes, a whole number.

    Raises:
        GraphError: the formula contains something other than arithmetic on sizes, or a symbol without a value.
    """

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.Name(id=name) if name in symbols:
                return symbols[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
                return _FUNCTIONS[name](*map(value, arguments))
        raise GraphError(f"the size {formula!r} cannot be evaluated: {ast.unparse(node)!r} is unknown")

    try:
        return int(value(ast.parse(formula, mode="eval").body))
    except (SyntaxError, TypeError, ZeroDivisionError) as error:
        raise GraphError(f"the size {formula!r} cannot be evaluated: {error}") from error


def resized(graph: JointGraph, sizes: Mapping[str, int]) -> JointGraph:
    """``graph`` with other sizes for some of its symbols.

    Raises:
        GraphError: a name is not a symbol of the graph, or a formula cannot be evaluated.
    """
    symbols = dict(graph.hints)
    if unknown := sizes.keys() - symbols.keys():
        raise GraphError(f"{min(unknown)} is not a symbol of the graph; it has {', '.join(symbols) or 'none'}")
    symbols |= sizes
    values = tuple(_resized(v, symbols) for v in graph.values)
    ops = tuple(_scaled(graph, op, values) for op in graph.ops)
    return dataclasses.replace(graph, ops=ops, values=values, hints=tuple(sorted(symbols.items())))


def _resized(value: Value, symbols: Mapping[str, int]) -> Value:
    return dataclasses.replace(value, nbytes=evaluate(value.nbytes_expr, symbols)) if value.nbytes_expr else value


def _scaled(graph: JointGraph, op: Op, values: tuple[Value, ...]) -> Op:
    """``op`` with its FLOPs and bytes read scaled by the growth of the value that grew the most among its own."""
    growth = [
        Fraction(values[v].nbytes, graph.values[v].nbytes) for v in (*op.reads, *op.writes) if graph.values[v].nbytes
    ]
    most = max(growth, default=Fraction(1))
    return dataclasses.replace(op, flops=round(op.flops * most), nbytes_read=round(op.nbytes_read * most))
