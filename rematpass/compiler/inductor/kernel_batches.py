"""C++ functions of a graph, compiled several at a time.

Inductor starts the compiler once for each function, and nine tenths of the processor time is for the start, the
precompiled header and the linker: 0.7 to 0.9 s for functions of 0.6 to 18 kB (gcc 12, torch 2.13), 2.0 s for twelve at
once. Plans have more and smaller functions than Inductor's own order: GPT-2 at a budget of 0.25 has 78 instead of 40.

The header of the generated module makes its ``async_compile`` a ``KernelBatches``, which is all that the text of the
module has of this. The functions and how they are called stay the same. A function in another form than Inductor's
own loops (a template, for example), and each function of a batch that cannot be compiled, is compiled by itself.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rematpass.compiler import _torch
from rematpass.compiler._torch import V

log = logging.getLogger("rematpass")

_FEWEST = 8  # functions of a batch, if there are so many: fewer save little
_MOST = 32  # functions of a batch, which one thread compiles
_FORM = re.compile(r'\s*(?:#include[^\n]*\n\s*)+extern "C"[^\n{(]*\bkernel\(')
_HEADERS = "#define PY_SSIZE_T_CLEAN\n#include <Python.h>\n#include <sstream>\n#include <cstdlib>\n#include <cerrno>"
_HEADER_OF_MODULE = f"""
from {__name__} import KernelBatches
async_compile = KernelBatches(async_compile)
"""


@dataclass(frozen=True, eq=False)
class _Function:
    """A function to compile, in the place of the compiled one until ``KernelBatches.wait``."""

    argtypes: tuple[str, ...]
    source: str


class KernelBatches:
    """Inductor's ``AsyncCompile``, but that C++ functions are compiled in batches, when ``wait`` is called."""

    def __init__(self, single: Any) -> None:
        self._single = single
        self._functions: list[_Function] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._single, name)

    def cpp_pybinding(self, argtypes: Sequence[str], source: str, *args: Any, **kwargs: Any) -> Any:
        """The function ``kernel`` of a C++ source, compiled after ``wait``."""
        if args or kwargs or not _can_be_batched(source):
            return self._single.cpp_pybinding(argtypes, source, *args, **kwargs)
        self._functions.append(_Function(tuple(argtypes), source))
        return self._functions[-1]

    def wait(self, scope: dict[str, Any]) -> None:
        """Compile what is pending, and put it into ``scope`` under its names."""
        compiled = dict(zip(self._functions, self._compiled(), strict=True))
        self._functions = []
        scope.update({name: compiled[value] for name, value in scope.items() if isinstance(value, _Function)})
        self._single.wait(scope)

    def _compiled(self) -> list[Any]:
        threads = _torch.compile_threads()
        size = min(_MOST, max(_FEWEST, -(-len(self._functions) // threads)))
        batches = [self._functions[i : i + size] for i in range(0, len(self._functions), size)]
        loading = [self._started(batch, self._single.submit if threads > 1 else None) for batch in batches]
        return [function for load in loading for function in load()]

    def _started(self, batch: Sequence[_Function], submit: Any) -> Callable[[], list[Any]]:
        """Start compiling; what is returned waits for the functions."""

        def one_by_one() -> list[Any]:
            return [self._single.cpp_pybinding(list(f.argtypes), f.source) for f in batch]

        if len(batch) == 1:
            return one_by_one
        try:
            load = _torch.CppPythonBindingsCodeCache.load_pybinding_async(
                list(batch[0].argtypes), source_of(batch), submit_fn=submit
            )
        except Exception:
            log.debug("C++ functions are compiled one by one", exc_info=True)
            return one_by_one

        def loaded() -> list[Any]:
            try:
                first = load()
                return [first, *(_binding(first.__self__, i) for i in range(1, len(batch)))]
            except Exception:
                log.debug("C++ functions are compiled one by one", exc_info=True)
                return one_by_one()

        return loaded


def batch_kernels(wrapper: Any) -> None:
    """Let the module that ``wrapper`` writes compile its C++ functions in batches."""
    is_subgraph = hasattr(V.graph, "parent")  # its functions are in the module of the graph that calls it
    if sys.platform == "linux" and "cpu" in V.graph.device_types and not V.graph.cpp_wrapper and not is_subgraph:
        wrapper.header.splice(_HEADER_OF_MODULE)


def _can_be_batched(source: str) -> bool:
    """Whether the source is one function and includes, so that it can stand beside others."""
    return source.count('extern "C"') == 1 and bool(_FORM.match(source))


def source_of(batch: Sequence[_Function]) -> str:
    """One source with all functions; all but the first, which Inductor binds, with their bindings."""
    includes = dict.fromkeys(line for f in batch for line in f.source.splitlines() if line.startswith("#include"))
    parts = [*includes, _HEADERS]
    for i, function in enumerate(batch):
        body = "\n".join(line for line in function.source.splitlines() if not line.startswith("#include"))
        parts += [body] if i == 0 else [body.replace("kernel(", f"{_name(i)}(", 1), _bindings_of(function, _name(i))]
    return "\n".join(parts) + "\n"


def _name(index: int) -> str:
    return f"kernel_{index}"


def _bindings_of(function: _Function, name: str) -> str:
    """As Inductor binds ``kernel``, but under another name and in a namespace.

    Raises:
        ValueError: this version of torch binds functions differently.
    """
    cache = _torch.CppPythonBindingsCodeCache
    if "{entry_func}" not in cache.suffix_template or not cache.call_entry_function.startswith("kernel("):
        raise ValueError("the bindings of Inductor's C++ functions have another form")
    arguments = (f"parse_arg<{t.replace('const ', '')}>(args, {n})" for n, t in enumerate(function.argtypes))
    bindings = cache.suffix_template.format(
        arg_len=len(function.argtypes),
        call_entry_func=cache.call_entry_function.format(", ".join(arguments)).replace("kernel(", f"{name}(", 1),
        entry_func=name,
        extra_parse_arg="",
    )
    return f"namespace of_{name} {{\n{bindings}\n}}"


def _binding(library: Any, index: int) -> Any:
    """The bound function of one index, from the library that was loaded for the first one."""
    name = _name(index)
    spec = importlib.util.spec_from_file_location(f"{library.__name__.rpartition('.')[0]}.{name}", library.__file__)
    if spec is None or spec.loader is None:
        raise ImportError(f"{library.__file__} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
