"""Assembles random training programs as source text, from the kinds of statements in ``fuzz_grammar``.

A statement is accepted only if eager mode can run it at its position and backward still works after it, so a kind of
statement need not always be valid. Sizes are 2 to 7, so that a program compiles in well under a second; several are
equal, so that shapes often match.
"""

from __future__ import annotations

import dataclasses
import random
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from support import programs, programs_features
from support.programs import Program

SIZES = 2, 3, 3, 4, 5, 5, 7
LARGEST = 1e3  # statements with larger values are rejected, so that nothing overflows

# The names that programs may use: torch, F, nn, Model, the custom ops. Dynamo looks names up in a module.
MODULE = types.ModuleType("random_programs")
MODULE.__dict__.update({n: v for m in (programs, programs_features) for n, v in vars(m).items() if n[:2] != "__"})
sys.modules[MODULE.__name__] = MODULE
NAMES = dict(vars(MODULE))


@dataclass(frozen=True)
class Source:
    """A program as text: parts of the model and arguments as (name, expression), statements, and returned names."""

    parts: tuple[tuple[str, str], ...]
    arguments: tuple[tuple[str, str], ...]
    lines: tuple[str, ...]
    returns: tuple[str, ...]
    compile: tuple[tuple[str, Any], ...]

    def text(self) -> str:
        """The function ``make`` of a ``Program``."""
        names = ", ".join(["m", *(name for name, _ in self.arguments)])
        body = "".join(f"        {line}\n" for text in self.lines for line in text.splitlines())
        parts = "".join(f", {name}={expression}" for name, expression in self.parts)
        arguments = ", ".join(expression for _, expression in self.arguments)
        return (
            f"def make():\n    def forward({names}):\n{body}        return {', '.join(self.returns)},\n\n"
            f"    return Model(forward{parts}), [{arguments}]\n"
        )

    def program(self) -> Program:
        scope = dict(NAMES)
        exec(compile(self.text(), "<a random program>", "exec"), scope)
        dynamo = {"capture_scalar_outputs": True, "capture_dynamic_output_shape_ops": True}
        return Program(scope["make"], compile=dict(self.compile), dynamo=dynamo)

    def without(self, line: int) -> Source:
        return dataclasses.replace(self, lines=self.lines[:line] + self.lines[line + 1 :])


class Writer:
    """Writes one program and runs each statement in eager mode."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.parts: dict[str, str] = {}
        self.arguments: dict[str, str] = {}
        self.lines: list[str] = []
        self.names: list[str] = []  # tensors that statements have made, newest last
        self.breaks = self.random.random() < 0.1
        self._restart()

    def _restart(self) -> None:
        """Reset the scope to the one before the first statement, and run all statements again."""
        torch.manual_seed(self.seed)
        self.scope: dict[str, Any] = dict(NAMES)
        self.scope["m"] = programs.Model(lambda m: None, **{n: eval(text, NAMES) for n, text in self.parts.items()})
        self.scope |= {name: eval(text, NAMES) for name, text in self.arguments.items()}
        for line in list(self.lines):
            try:
                exec(line, self.scope)
            except Exception:  # fails with other random numbers than before
                self.lines.remove(line)

    # -- called by the kinds of statements

    def one_of(self, *choices: Any) -> Any:
        return self.random.choice(choices)

    def size(self) -> int:
        return self.random.choice(SIZES)

    def part(self, expression: str) -> str:
        """Add a part to the model; returns its expression."""
        name = f"p{len(self.parts)}"
        self.parts[name] = expression
        value = eval(expression, NAMES)
        if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
            self.scope["m"].register_buffer(name, value)
        else:
            setattr(self.scope["m"], name, value)
        return f"m.{name}"

    def parts_of(self, kind: str) -> list[str]:
        return [f"m.{name}" for name, expression in self.parts.items() if expression.startswith(kind)]

    def fresh(self) -> str:
        return f"h{len(self.names)}"

    def tensors(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> list[str]:
        """Names of float32 tensors in scope, oldest first."""
        here = [*self.arguments, *self.names]
        found = [n for n in here if isinstance(self.scope.get(n), torch.Tensor)]
        return [n for n in found if self.scope[n].dtype == torch.float32 and fits(self.scope[n])]

    def tensor(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> str:
        """One of ``tensors``, usually a recent one.

        Raises:
            LookupError: no tensor fits.
        """
        found = self.tensors(fits)
        recent = found[-4:] if self.random.random() < 0.7 else found
        return self.random.choice(recent)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.scope[name].shape)

    def dim(self, name: str) -> int:
        return self.random.randrange(-len(self.shape(name)), len(self.shape(name))) if self.shape(name) else 0

    # -- accepting statements

    def statement(self, kinds: Sequence[tuple[Callable[[Writer], str], int]]) -> None:
        """Add a statement of a random kind; none if ten attempts fail."""
        writers, weights = zip(*kinds, strict=True)
        for _ in range(10):
            kind = self.random.choices(writers, weights)[0]
            before = len(self.parts)
            try:
                text = kind(self)
                self._take(text)
                return
            except Exception:  # eager mode cannot run it here, for any reason
                for name in list(self.parts)[before:]:
                    del self.parts[name]
                self._restart()

    def _take(self, text: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Dynamo does not trace a warning
            exec(text, self.scope)
        made = [self.scope[n] for n in (self.fresh(), *self.tensors()) if n in self.scope]
        if any(not t.isfinite().all() or t.abs().amax() > LARGEST for t in made if t.numel() and t.is_floating_point()):
            raise ValueError("too large")
        ends = [t for t in made if t.requires_grad and t.is_floating_point()]
        if ends:
            leaves = [p for p in self.scope["m"].parameters() if p.requires_grad]
            leaves += [self.scope[n] for n in self.arguments if self.scope[n].requires_grad]
            torch.autograd.grad([t.sum() for t in ends], leaves, retain_graph=True, allow_unused=True)
        if self.fresh() in self.scope:
            self.names.append(self.fresh())
        self.lines.append(text)
