"""The exact peak of a forward and a backward graph, from Inductor itself, before it generates any code.

The graph's copy goes through what Inductor does to the real one: its passes, its lowering, its scheduler with our
order, its decisions on what is overwritten in place, and its plan of what is allocated, handed on and freed. The
bytes alive are then added up over the wrapper's lines (``wrapper_memory.py``); nothing is compiled and nothing runs.

Measured and predicted, MiB, torch 2.13 on the CPU: MLP 56.11 and 56.11, residual MLP 46.06 and 46.06, chain of 64
layers 66.01 and 66.01, GPT-2 101.12 and 101.12, Llama 36.00 and 35.75, ResNet 52.91 and 52.84, U-Net 11.77 and 11.35.
What is missing are bytes that calls allocate inside themselves and that are known roughly or not at all on the CPU.

Seconds: about a quarter of what compiling takes, nearly all of it lowering and scheduling. The bodies of loops are not
written (``_skip_body``): on the CPU the same lines come out at a third of the time that code generation takes, and for
Triton the whole dry run takes a quarter less.

Nothing of it stays: the module is copied, counters and metrics are put back, guards on sizes are not recorded, and
kernels get no names. It has to run under the configuration of the real compile, as it does inside a partitioner.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import time
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rematpass.compiler import _torch, devices
from rematpass.compiler._torch import V, inductor_driver, inductor_ir, inductor_metrics
from rematpass.compiler.inductor.wrapper_memory import (
    BodiesBegin,
    BodiesEnd,
    LiveBytes,
    WrapperMemory,
    allocated,
    origin,
)
from rematpass.compiler.ops.copy_module import copy_module
from rematpass.compiler.ops.size_hints import hint

_under_way = contextvars.ContextVar("rematpass dry run", default=False)


def is_under_way() -> bool:
    """Whether Inductor's passes see a copy just now, and no graph that will run."""
    return _under_way.get()


@dataclass(frozen=True)
class DryRun:
    """One graph's course. ``storages``: for each output, the name of its storage and the bytes that the graph
    allocated for it (0: it is an input). ``unknown``: kinds of lines whose bytes are not accounted for.
    ``without_outputs``: backward's course if the caller has let go of forward's outputs.
    """

    timeline: tuple[LiveBytes, ...]
    storages: tuple[tuple[str, int] | None, ...]
    strides: tuple[tuple[int, ...] | None, ...]
    seconds: float
    unknown: tuple[str, ...] = ()
    without_outputs: tuple[LiveBytes, ...] = ()

    @property
    def peak(self) -> LiveBytes:
        return max(self.timeline, key=lambda moment: moment.nbytes, default=LiveBytes("", 0))


@dataclass(frozen=True)
class StepDryRun:
    """Forward and backward. Backward's bytes include the saved values, the tangents, and forward's outputs, which
    whoever called it may keep.
    """

    fwd: DryRun
    bwd: DryRun

    @property
    def peak_nbytes(self) -> int:
        """The most bytes alive at one moment of the step, beyond what stood before it."""
        return max(self.fwd.peak.nbytes, self.bwd.peak.nbytes)

    @property
    def peak_nbytes_without_outputs(self) -> int:
        """The same if the caller lets go of forward's outputs before backward starts."""
        return max(self.fwd.peak.nbytes, *(moment.nbytes for moment in self.bwd.without_outputs))


def dry_run_step(fwd: fx.GraphModule, bwd: fx.GraphModule, *, num_fwd_outputs: int) -> StepDryRun:
    """Both graphs of a partition, backward fed with what forward saves, in forward's strides.

    Any exception of Inductor's comes through: whoever calls this has an estimate of his own to fall back on.
    """
    fwd_inputs, fwd_outputs = _inputs(fwd), _outputs(fwd)
    visible = [i for i in range(num_fwd_outputs) if isinstance(fwd_outputs[i], fx.Node)]
    first = dry_run(fwd, [n.meta["val"] for n in fwd_inputs], visible=visible)
    storage_of = {n.name: s for n, s in zip(fwd_outputs, first.storages, strict=True) if isinstance(n, fx.Node) and s}
    stride_of = {n.name: s for n, s in zip(fwd_outputs, first.strides, strict=True) if isinstance(n, fx.Node) and s}
    handed_out = dict(s for s in first.storages[:num_fwd_outputs] if s)
    inputs, storages, donated = [], [], []
    if_dropped: list[tuple[str, int] | None] = []
    held = 0  # bytes of tangents that stay to the end of backward
    for i, node in enumerate(_inputs(bwd)):
        value = node.meta["val"]
        storage = storage_of.get(node.name)
        if isinstance(value, torch.Tensor) and node.name in stride_of:
            value = _restrided(value, stride_of[node.name])
        elif isinstance(value, torch.Tensor) and "tangents" in node.name:
            nbytes = allocated(hint(value.untyped_storage().nbytes()), value.device)
            storage = node.name, nbytes if _torch.FREES_TANGENTS else 0
            held += nbytes - storage[1]
        if_dropped.append(storage)
        if storage and storage[0] in handed_out:
            storage = storage[0], 0  # counted below, once, for all of backward
        elif storage and storage[1] and "tangents" not in node.name:
            donated.append(i)
        inputs.append(value)
        storages.append(storage)
    kept = sum(handed_out.values())
    second = dry_run(
        bwd,
        inputs,
        is_backward=True,
        given=storages,
        donated=donated,
        base=kept + held,
        given_if_dropped=if_dropped,
        base_if_dropped=held,
    )
    return StepDryRun(first, second)


def dry_run(
    module: fx.GraphModule,
    inputs: Sequence[Any],
    *,
    is_backward: bool = False,
    given: Sequence[tuple[str, int] | None] = (),
    donated: Sequence[int] = (),
    visible: Sequence[int] | None = None,
    base: int = 0,
    given_if_dropped: Sequence[tuple[str, int] | None] | None = None,
    base_if_dropped: int = 0,
) -> DryRun:
    """Lower and schedule a copy of one graph and add up its bytes.

    ``inputs`` are fake tensors and sizes; ``given`` names the storage behind each input and what freeing it gives
    back (nothing, where it stood before the step); ``donated`` are the inputs that may be overwritten; ``visible`` are
    the outputs whose strides the user sees (all of them by default); ``base`` bytes are alive throughout. With
    ``given_if_dropped`` a second course is taken, with these inputs and ``base_if_dropped``.
    """
    start = time.perf_counter()
    module = copy_module(module)
    outputs = _outputs(module)
    shown = visible if visible is not None else [i for i, n in enumerate(outputs) if isinstance(n, fx.Node)]
    module.graph.find_nodes(op="output")[0].meta["user_visible_output_idxs"] = list(shown)
    with _leaving_no_trace(inputs), _lowered(module, inputs, is_backward, donated) as graph:
        names = [n.name for n in _inputs(module)]
        course = WrapperMemory(graph, base, dict(zip(names, given, strict=False)))
        other = WrapperMemory(graph, base_if_dropped, dict(zip(names, given_if_dropped or (), strict=False)))
        for line in graph.wrapper_code.lines:
            course.take(line)
            other.take(line)
        storages = [course.storage(result) for result in graph.graph_outputs]
        left = sum(dict(filter(None, storages)).values())
        return DryRun(
            timeline=(*course.timeline, LiveBytes("output", base + left)),
            storages=tuple(storages),
            strides=tuple(map(_strides, graph.graph_outputs)),
            seconds=time.perf_counter() - start,
            unknown=tuple(sorted(course.unknown)),
            without_outputs=tuple(other.timeline) if given_if_dropped is not None else (),
        )


@contextlib.contextmanager
def _lowered(module: fx.GraphModule, inputs: Sequence[Any], is_backward: bool, donated: Sequence[int]) -> Iterator[Any]:
    """Inductor's graph of ``module``, scheduled, its wrapper's lines planned; entered as the graph at work."""
    inductor_driver.view_to_reshape(module)
    with torch.no_grad():
        fake_mode = inductor_driver.fake_tensor_prop(module, inputs)
    inductor_driver._recursive_record_original_output_strides(module)
    with contextlib.ExitStack() as stack:
        stack.enter_context(V.set_fake_mode(fake_mode))
        stack.enter_context(inductor_driver.get_cuda_device_context(module))
        inductor_driver._recursive_post_grad_passes(module, is_inference=False)
        stack.enter_context(inductor_driver.maybe_disable_comprehensive_padding(inputs))
        stack.enter_context(inductor_driver.maybe_disable_graph_partition(False, False))
        graph = _torch.inductor_graph.GraphLowering(
            module,
            example_inputs=inputs,
            shape_env=inductor_driver.shape_env_from_inputs(inputs),
            is_inference=False,
            is_backward=is_backward,
            inputs_to_check=(),
        )
        graph.bw_donated_idxs = list(donated) if is_backward else None
        stack.enter_context(V.set_graph_handler(graph))
        stack.enter_context(V.set_extern_kernel_nodes([]))
        graph.run(*inputs)
        _plan_lines(graph)
        yield graph


def _plan_lines(graph: Any) -> None:
    """What Inductor does to a lowered graph until its wrapper's lines are planned; the graph is the one at work."""
    graph.init_wrapper_code()
    graph._update_scheduler()
    _name_kernels_only(graph.scheduler)
    _mark_bodies(graph.wrapper_code)
    graph.wrapper_code.push_codegened_graph(graph)
    graph.scheduler.codegen()
    graph.wrapper_code.run_wrapper_ir_passes(False)


def _mark_bodies(wrapper: Any) -> None:
    """Let this wrapper say where it runs bodies, and plan their lines in the same way, without text."""
    write_body = wrapper.codegen_subgraph_common

    def plan_body(subgraph: Any) -> None:
        subgraph.graph.codegen = functools.partial(_without_text, subgraph.graph)
        write_body(subgraph)

    wrapper.codegen_subgraph_common = plan_body
    wrapper.codegen_invoke_subgraph = functools.partial(_between_marks, wrapper, wrapper.codegen_invoke_subgraph)
    wrapper.codegen_conditional = functools.partial(_between_marks, wrapper, wrapper.codegen_conditional)


def _between_marks(wrapper: Any, write: Callable[[Any], None], node: Any) -> None:
    wrapper.writeline(BodiesBegin(node))
    write(node)
    wrapper.writeline(BodiesEnd(node))


def _without_text(graph: Any) -> tuple[Any, Any]:
    _plan_lines(graph)
    graph.wrapper_code.pop_codegened_graph()
    nothing = types.SimpleNamespace(value="")
    return nothing, nothing


def _name_kernels_only(scheduler: Any) -> None:
    """Let this scheduler's backends name kernels instead of defining them, and write no loops where that is tried."""
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
    """A class of kernels without text."""

    class Unwritten(kernel_type):  # type: ignore[misc]
        is_unwritten = True

        def codegen_kernel(self, name: Any = None) -> Any:
            if not _is_skipped(self):
                return super().codegen_kernel(name)
            self.triton_meta = self.inductor_meta = None  # a call's line carries them
            return ""

    return Unwritten


def _is_skipped(kernel: Any) -> bool:
    """Not a template, whose own text calls for the loops, and not what takes its workspace while it is written."""
    takes_workspace = getattr(kernel, "mix_order_reduction", False) or getattr(kernel, "cooperative_reduction", False)
    return getattr(kernel, "is_unwritten", False) and not takes_workspace


def _without_tiling(codegen_node: Callable[[Any], None], node: Any) -> None:
    """Lay a kernel's loops out for scalars: how they are tiled for vectors decides only what loops can share an outer
    one (``OuterLoopFusedSchedulerNode``)."""
    shares = hasattr(node, "outer_loop_fusion_depth")
    with contextlib.nullcontext() if shares else _torch.inductor_config.patch({"cpp.simdlen": 1}):
        codegen_node(node)


def _skip_body(op: Any, index_vars: Any) -> None:
    """What writing one op's loop tells its kernel: what it reads and writes; not the loop."""
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
    """A size that depends on data ties whoever asks for it to the call that found it out, which is no tensor."""
    buffer = V.graph.try_get_buffer(dependency.name)
    return buffer is None or buffer.has_tensor_output()


def _skip_body_for_triton(op: Any, index_vars: Any) -> None:
    """The same. What Triton's loops over a reduction leave behind is known after them, without a buffer."""
    if not _is_skipped(V.kernel):
        type(op).codegen(op, index_vars)
        return
    _skip_body(op, index_vars)
    V.kernel.compute.writeline("")  # a loop with nothing in it would end unnoticed, and what it stored not be evicted
    if op.is_reduction() or not V.kernel.inside_reduction:
        V.kernel.outside_loop_vars.update(d.name for d in op.read_writes.writes)


def _kernel_name(source: Any, nodes: Sequence[Any], *args: Any, **kwargs: Any) -> str:
    return " ".join(dict.fromkeys(origin(n.node) for n in nodes if getattr(n, "node", None) is not None))


@contextlib.contextmanager
def _leaving_no_trace(inputs: Sequence[Any]) -> Iterator[None]:
    """Counters, metrics, random state and guards as they were."""
    metrics = {k: copy.copy(v) for k, v in vars(inductor_metrics).items() if isinstance(v, (int, list)) and k[0] != "_"}
    counters = {k: v.copy() for k, v in _torch.dynamo_counters.items()}
    shape_env = inductor_driver.shape_env_from_inputs(inputs)
    unguarded = shape_env.suppress_guards() if shape_env is not None else contextlib.nullcontext()
    token = _under_way.set(True)
    try:
        with _torch.preserve_rng_state(), _torch.without_modes(), V.set_debug_handler(_Silent()), unguarded:
            yield
    finally:
        _under_way.reset(token)
        vars(inductor_metrics).update(metrics)
        _torch.dynamo_counters.clear()
        _torch.dynamo_counters.update(counters)


class _Silent:
    """Inductor's debug handler, without the files."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def _inputs(module: fx.GraphModule) -> list[fx.Node]:
    return list(module.graph.find_nodes(op="placeholder"))


def _outputs(module: fx.GraphModule) -> list[Any]:
    return list(module.graph.find_nodes(op="output")[0].args[0])


def _strides(result: Any) -> tuple[int, ...] | None:
    """The strides that Inductor has chosen for an output; None where they are symbolic."""
    if not isinstance(result, inductor_ir.IRNode) or not result.has_tensor_output():
        return None
    strides = result.get_layout().stride
    return tuple(map(int, strides)) if all(getattr(s, "is_Integer", isinstance(s, int)) for s in strides) else None


def _restrided(value: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """``value`` in the strides that forward gives it (channels last, say), as AOTAutograd does."""
    return value if tuple(value.stride()) == strides else value.as_strided(value.size(), strides)
