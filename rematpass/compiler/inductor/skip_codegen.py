"""Inductor's schedule and wrapper lines without the code of kernels.

The bodies of loops are not written; each kernel is only told what its ops read and write, from which it derives its
arguments. On the CPU this takes a third of the time of code generation, and for Triton the whole dry run takes a
quarter less. Other devices get complete code.

The patches apply to the backends and nodes of one scheduler, which lives for one graph. The attributes used here
(``define_kernel``, ``kernel_type``, ``codegen_node``, ``cse``, ``args``) have these names in torch 2.11 to 2.15.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import V
from rematpass.compiler.inductor.wrapper_memory import origin


def skip_kernel_code(scheduler: Any) -> None:
    """Let the backends of this scheduler name kernels instead of defining them, and write no loops."""
    for device in {node.get_device() for node in scheduler.nodes} - {None}:
        backend, codegen = scheduler.get_backend(device), devices.of(device).codegen
        for part in (backend, *vars(backend).values()):
            if hasattr(part, "define_kernel"):
                part.define_kernel = _kernel_name
            if codegen == "triton" and hasattr(part, "kernel_type"):
                part.kernel_type = _unwritten(part.kernel_type)
        if codegen == "cpp" and hasattr(backend, "codegen_node"):
            backend.codegen_node = functools.partial(_without_tiling, backend.codegen_node)
    skip = {"cpp": _skip_body, "triton": _skip_body_for_triton}
    for node in scheduler.nodes:
        for op in filter(_is_loop, node.get_nodes()):
            if op.get_device() is not None and (codegen := devices.of(op.get_device()).codegen) in skip:
                op.codegen = functools.partial(skip[codegen], op)


def _is_loop(op: Any) -> bool:
    return isinstance(op, _torch.inductor_scheduler.SchedulerNode)


@functools.cache
def _unwritten(kernel_type: Any) -> Any:
    """A subclass that generates no code."""

    class Unwritten(kernel_type):  # type: ignore[misc]
        is_unwritten = True

        def codegen_kernel(self, name: Any = None) -> Any:
            if not _is_skipped(self):
                return super().codegen_kernel(name)
            self.triton_meta = self.inductor_meta = None  # the kernel's call line refers to them
            return ""

    return Unwritten


def _is_skipped(kernel: Any) -> bool:
    """Whether the kernel's code is skipped: not that of templates, nor of kernels that take workspace while written."""
    takes_workspace = getattr(kernel, "mix_order_reduction", False) or getattr(kernel, "cooperative_reduction", False)
    return getattr(kernel, "is_unwritten", False) and not takes_workspace


def _without_tiling(codegen_node: Callable[[Any], None], node: Any) -> None:
    """Lay out a kernel's loops for scalars, which is faster.

    Tiling for vectors matters only where loops share an outer one (``OuterLoopFusedSchedulerNode``).
    """
    shares_outer_loop = hasattr(node, "outer_loop_fusion_depth")
    with contextlib.nullcontext() if shares_outer_loop else _torch.inductor_config.patch({"cpp.simdlen": 1}):
        codegen_node(node)


def _skip_body(op: Any, index_vars: Any) -> None:
    """Record in the kernel what an op's loop reads and writes, without writing the loop."""
    kernel = V.kernel
    local = getattr(V.local_buffer_context, "global_to_local", {})
    reads = [d for d in op.read_writes.reads if not isinstance(d, _torch.WeakDep) and _is_of_a_tensor(d)]
    for name in [d.name for d in reads if d.name not in local]:
        if name in kernel.cse.invalidated_stores:
            kernel.must_keep_buffers.add(name)
        if name not in kernel.cse.store_cache:
            kernel.args.input(name)
    for name in [d.name for d in op.read_writes.writes if d.name not in local]:
        kernel.store_buffer_names.add(name)
        kernel.cse.store_cache[name] = name
        if name not in V.graph.removed_buffers:
            kernel.args.output(name)


def _is_of_a_tensor(dependency: Any) -> bool:
    """Whether a dependency is on a tensor. Readers of a data-dependent size depend on the call that computes it."""
    buffer = V.graph.try_get_buffer(dependency.name)
    return buffer is None or buffer.has_tensor_output()


def _skip_body_for_triton(op: Any, index_vars: Any) -> None:
    """The same for Triton. What is computed outside of a reduction's loops is known after them, without a buffer."""
    if not _is_skipped(V.kernel):
        type(op).codegen(op, index_vars)
        return
    _skip_body(op, index_vars)
    V.kernel.compute.writeline("")  # an empty loop would end unnoticed, with what it stored still in the cache
    if op.is_reduction() or not V.kernel.inside_reduction:
        V.kernel.outside_loop_vars.update(d.name for d in op.read_writes.writes)


def _kernel_name(source: Any, nodes: Sequence[Any], *args: Any, **kwargs: Any) -> str:
    return " ".join(dict.fromkeys(origin(n.node) for n in nodes if getattr(n, "node", None) is not None))
