"""The bytes alive while a graph runs, read from the lines that Inductor's wrapper is written from.

        + buf7      AllocateLine             buf7 -> buf9    ReuseLine: the same storage under another name
        - arg3      FreeLine: an input       - buf9          FreeIfNotReusedLine, unless a later line reuses it
        + buf12     ExternKernelAllocLine: a call that allocates its result
        SubgraphBegin, ..., SubgraphEnd: a region, or two branches, whose lines are read at the end

While the call of a line runs, everything it needs is alive, including what it reads for the last time. Library calls
take workspace besides, which is measured (``workspace.py``). Sizes are rounded up as the device's allocator does.

Lines are distinguished by the names of their classes, as in torch 2.11 to 2.15; a line with another name is reported in
``unknown``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import inductor_ir
from rematpass.compiler.inductor.extern_calls import viewed, workspace_inside
from rematpass.compiler.ops.size_hints import hint_in

# Lines that neither allocate nor free.
_WITHOUT_BYTES = frozenset(
    "NullLine CommentLine KernelDefinitionLine LineContext AssertSizeStrideLine GroupedAssertSizeStrideLine str "
    "DeferredLine EnterDeviceContextManagerLine ExitDeviceContextManagerLine "
    "EnterDeviceContextManagerWithStreamInfoLine ExitDeviceContextManagerWithStreamInfoLine "
    "SymbolicCallArgLine UnbackedSymbolDefsLine DynamicScalarLine "
    "ExitSubgraphLine AssertDivByZeroLine ExternKernelMultiOutLine".split()
)


@dataclass(frozen=True)
class LiveBytes:
    """A kernel or a call, named after its fx nodes, and the bytes alive while it runs."""

    name: str
    nbytes: int


@dataclass(frozen=True)
class _Operand:
    """The storage behind an operand of a subgraph's call, and the bytes that freeing it gives back."""

    storage: str
    nbytes: int
    is_input: bool


@dataclass(frozen=True)
class _SubgraphCall:
    has_branches: bool
    operands: list[_Operand | None]


class WrapperMemory:
    """The bytes alive, line by line.

    ``held``: the bytes of each allocated name that is alive. ``items``: the results in a call's tuple that no line has
    taken out yet. A subgraph may return one result twice: ``same_as`` is the name that holds it, ``names_alive`` the
    number of names for it that are alive. ``base``: bytes alive throughout. ``inputs``: for each input the storage and
    the bytes that freeing it gives back.
    """

    def __init__(self, graph: Any, base: int, inputs: Mapping[str, tuple[str, int] | None]) -> None:
        self.graph = graph
        self.storage_of = {name: storage[0] for name, storage in inputs.items() if storage}
        self.shared: dict[str, int] = {}
        for storage in self.storage_of.values():
            self.shared[storage] = self.shared.get(storage, 0) + 1
        self.bytes_of = dict(storage for storage in inputs.values() if storage)
        self.held: dict[str, int] = {}
        self.part_of: dict[str, str] = {}
        self.items: dict[str, list[str]] = {}
        self.same_as: dict[str, str] = {}
        self.names_alive: dict[str, int] = {}
        self.live = base + sum(self.bytes_of.values())
        self.timeline = [LiveBytes("input", self.live)]
        self.unknown: set[str] = set()
        self.calls: list[_SubgraphCall] = []  # whose lines are being read, innermost last

    def read(self, line: Any) -> None:
        kind = type(line).__name__
        handle = getattr(self, f"_{kind}", None)
        if handle:
            handle(line)
        elif kind not in _WITHOUT_BYTES:
            self.unknown.add(kind)

    def _AllocateLine(self, line: Any) -> None:  # noqa: N802  (the lines' own names, here and below)
        self._allocate(line.node)

    def _allocate(self, buffer: Any) -> None:
        self.held[buffer.get_name()] = _nbytes(self.graph, buffer)
        self.live += self.held[buffer.get_name()]

    def _ReuseLine(self, line: Any) -> None:  # noqa: N802
        old, new = self._held_as(line.node.get_name()), line.reused_as.get_name()
        if old in self.held:
            self.held[new] = self.held.pop(old)
        elif old in self.storage_of:
            self.held[new] = self.bytes_of[self.storage_of.pop(old)]

    def _FreeIfNotReusedLine(self, line: Any) -> None:  # noqa: N802
        if not line.is_reused:
            self._FreeLine(line)

    def _FreeLine(self, line: Any) -> None:  # noqa: N802
        if self.calls and self.calls[-1].has_branches:
            return
        name = self._held_as(line.node.get_name())
        self.names_alive[name] = self.names_alive.get(name, 1) - 1
        if self.names_alive[name]:
            return
        self.live -= self.held.pop(name, 0)
        for item in self.items.pop(name, ()):  # results still in the tuple are freed with it
            self.live -= self.held.pop(item, 0)
        storage = self.storage_of.pop(name, None)
        if storage is not None:
            self.shared[storage] -= 1
            if not self.shared[storage]:
                self.live -= self.bytes_of[storage]

    def _ReinterpretLine(self, line: Any) -> None:  # noqa: N802
        self.part_of[line.reused_as.get_name()] = line.node.get_name()

    def _MultiOutputLine(self, line: Any) -> None:  # noqa: N802
        name = self._held_as(line.result_name)
        self.names_alive[name] = self.names_alive.get(name, 0) + 1
        for items in self.items.values():
            if name in items:
                items.remove(name)

    def _KernelCallLine(self, line: Any) -> None:  # noqa: N802
        self.timeline.append(LiveBytes(line.kernel_name, self.live))

    def _ExternKernelOutLine(self, line: Any) -> None:  # noqa: N802
        self.timeline.append(LiveBytes(origin(line.node), self.live + workspace_inside(self.graph, line.node)))

    def _ExternKernelAllocLine(self, line: Any) -> None:  # noqa: N802
        node = line.node
        layout = node.get_output_spec()
        if isinstance(layout, inductor_ir.MultiOutputLayout):
            results = [o for o in getattr(node, "outputs", ()) if isinstance(o, inductor_ir.MultiOutput)]
            if base := viewed(self.graph, node):
                self._hold_views(base, results)
                results = []
            for result in results:
                self._allocate(result)
            self.items[node.get_name()] = [o.get_name() for o in results]
        elif _owns_its_bytes(layout) and not node.get_inputs_that_alias_output():
            self._allocate(node)
        self.timeline.append(LiveBytes(origin(node), self.live + workspace_inside(self.graph, node)))

    def _hold_views(self, base: str, views: list[Any]) -> None:
        """A storage lives as long as any view of it that a call has made."""
        base = self._held_as(base)
        self.names_alive.setdefault(base, 1)  # its own; the lines that take the views out of the tuple add theirs
        for view in views:
            self.part_of[view.get_name()] = self.same_as[view.get_name()] = base

    def _IndexPutFallbackLine(self, line: Any) -> None:  # noqa: N802
        self._ExternKernelOutLine(line)

    def _ScatterFallbackLine(self, line: Any) -> None:  # noqa: N802
        self._ExternKernelOutLine(line)

    def _SubgraphBegin(self, line: Any) -> None:  # noqa: N802
        self.calls.append(_SubgraphCall(line.has_branches, [self._operand(node) for node in line.operands]))

    def _SubgraphEnd(self, line: Any) -> None:  # noqa: N802
        """The subgraph frees the operands that the caller has released since the begin.

        Where there are branches, Inductor's code frees an operand in the first branch only (torch 2.11 to 2.13): if the
        other one runs, the operand lives to the end, which is assumed here.
        """
        operands = self.calls.pop().operands
        given = [(str(o), 0 if self._is_alive(o) else o.nbytes) if o else None for o in operands]
        base, most = self.live, -1
        for graph in line.subgraphs:
            inner = WrapperMemory(graph, base, dict(zip(graph.graph_input_names, given, strict=False)))
            for inner_line in graph.wrapper_code.lines:
                inner.read(inner_line)
            self.timeline += [LiveBytes(f"{origin(line.node)}: {e.name}", e.nbytes) for e in inner.timeline]
            self.unknown |= inner.unknown
            results = [inner.storage(result) for result in graph.graph_outputs]
            if (left := sum(dict(filter(None, results)).values())) > most:
                most, chosen = left, results
        self._hold_results(line.node, chosen, base)

    def _hold_results(self, node: Any, storages: list[tuple[str, int] | None], base: int) -> None:
        """Hold the results of a subgraph's call, each storage under the first name for it."""
        first: dict[str, str] = {}
        for output, storage in zip(node.outputs, storages, strict=False):
            if storage is None or not isinstance(output, inductor_ir.MultiOutput):
                continue
            name = output.get_name()
            if storage[0] in first:
                self.part_of[name] = self.same_as[name] = first[storage[0]]
            else:
                first[storage[0]] = name
                self.held[name] = storage[1]
        self.live = base + sum(self.held[name] for name in first.values())
        self.items[node.get_name()] = list(first.values())

    def _held_as(self, name: str) -> str:
        return self.same_as.get(name, name)

    def _EnterSubgraphLine(self, line: Any) -> None:  # noqa: N802
        if not self.calls:
            self.unknown.add("EnterSubgraphLine")

    def _operand(self, node: Any) -> _Operand | None:
        found = self.storage(node)
        if found is None:
            return None
        name, nbytes = found
        if name not in self.storage_of:
            return _Operand(name, nbytes, is_input=False)
        storage = self.storage_of[name]
        return _Operand(storage, self.bytes_of[storage], is_input=True)

    def _is_alive(self, operand: _Operand) -> bool:
        return self.shared[operand.storage] > 0 if operand.is_input else operand.storage in self.held

    def storage(self, result: Any) -> tuple[str, int] | None:
        """The storage behind an output, and the bytes allocated for it here."""
        while not isinstance(result, inductor_ir.Buffer):
            if isinstance(result, inductor_ir.MutableBox):
                result = result.data
            elif isinstance(result, inductor_ir.BaseView):
                result = result.unwrap_view()
            else:
                return None
        name = result.get_name()
        while name in self.part_of:
            name = self.part_of[name]
        return name, self.held.get(name, 0)


def origin(node: Any) -> str:
    """The name of a kernel's fx node, or of the buffer that it writes."""
    source = node.get_origin_node() if hasattr(node, "get_origin_node") else None
    return str(source.name) if source is not None else str(node.get_name())


def _nbytes(graph: Any, buffer: Any) -> int:
    size = hint_in(graph, graph.get_allocation_storage_size(buffer))
    nbytes = size * int(_torch.get_dtype_size(buffer.get_dtype()))
    device = buffer.get_device()
    return nbytes if device is None else devices.of(device).allocated(nbytes)


def _owns_its_bytes(layout: Any) -> bool:
    return isinstance(layout, inductor_ir.Layout) and not isinstance(layout, inductor_ir.MutationLayoutSHOULDREMOVE)
