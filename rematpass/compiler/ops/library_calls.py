"""Which calls the compiler hands to a library, so that they are kernels by themselves and may take workspace.

Inductor writes loops for most ops. It calls torch for the others: those without a lowering, those whose lowering covers
some devices, sizes or dtypes only (a sort, a cumulative sum, a scatter of floats on the CPU), and everything that reads
or writes complex numbers, fp8 aside. Which ones differs between versions and settings, so no list here says it: where
the op alone does not decide, the call is lowered by itself, on fake tensors, once per process.
"""

from __future__ import annotations

import contextlib
import logging
import operator

import torch
from torch import fx

from rematpass.compiler import _torch
from rematpass.compiler._torch import OpOverload, V, inductor_lowering, pytree
from rematpass.compiler.ops.kinds import kind_by_name
from rematpass.compiler.ops.sample_call import SampleCall, TensorSpec, sample_call_of
from rematpass.core.op import LIBRARY_KINDS, Kind

log = logging.getLogger("rematpass")

# Kinds of which Inductor writes loops for some calls and hands others to torch.
_EITHER = frozenset({Kind.SCATTER, Kind.KERNEL})
# Kinds of which torch's own kernels take workspace. The others write what they read, element by element.
_MAY_TAKE_WORKSPACE = LIBRARY_KINDS | _EITHER | {Kind.REDUCTION, Kind.INDEXING}

_known: dict[tuple[str, str], bool] = {}


def is_library_call(node: fx.Node, *, fuse: bool = True) -> bool:
    """Whether a library runs the call and may take workspace. ``fuse``: whether Inductor compiles the graph.

    False for ops that are not torch's own: nobody knows what else they do.
    """
    target, _ = _torch.replayed_call(node)
    if target is not node.target:
        return True  # torch runs it from a random state of its own
    if not isinstance(target, OpOverload) or kind_by_name(target) is Kind.OPAQUE or _torch.is_impure(node):
        return False
    kind = kind_by_name(target)
    if kind in LIBRARY_KINDS or _has_complex_numbers(node):
        return True
    if not fuse:
        return kind in _MAY_TAKE_WORKSPACE
    if target not in inductor_lowering.lowerings:
        return target not in _torch.inductor_driver.select_decomp_table()  # a later pass decomposes it
    either = kind in _EITHER or (kind is Kind.REDUCTION and torch.Tag.reduction not in target.tags)
    if not either and target not in inductor_lowering.fallbacks:
        return False
    return _lowers_to_a_call(node, default=kind in _EITHER)


def _has_complex_numbers(node: fx.Node) -> bool:
    values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
    return any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)


def _lowers_to_a_call(node: fx.Node, *, default: bool) -> bool:
    """Whether Inductor's lowering of this call hands it to torch; ``default`` if that cannot be found out."""
    call = sample_call_of(node)
    if call is None:
        return default
    key = (call.key, str(call.device))
    if key not in _known:
        try:
            _known[key] = _is_extern(call)
        except Exception as error:  # any exception of a lowering; a real error is raised again by the compilation
            log.debug("%s could not be lowered by itself: %s", call.target, error)
            _known[key] = default
    return _known[key]


def _is_extern(call: SampleCall) -> bool:
    with _torch.without_modes(), _torch.FakeTensorMode(shape_env=_torch.ShapeEnv()) as mode:
        module, inputs = _graph_of(call)
        with contextlib.ExitStack() as stack:
            stack.enter_context(V.set_fake_mode(mode))
            graph = _torch.inductor_graph.GraphLowering(
                module, example_inputs=inputs, shape_env=mode.shape_env, is_inference=False
            )
            stack.enter_context(V.set_graph_handler(graph))
            stack.enter_context(V.set_extern_kernel_nodes([]))
            graph.run(*inputs)
    return any(isinstance(op, _torch.inductor_ir.ExternKernel) for op in graph.operations)


def _graph_of(call: SampleCall) -> tuple[fx.GraphModule, list[torch.Tensor]]:
    """A graph that makes the call only, and its inputs; under a fake mode."""
    graph = fx.Graph()
    inputs: list[torch.Tensor] = []

    def placeholder(spec: TensorSpec) -> fx.Node:
        node = graph.placeholder(f"input_{len(inputs)}")
        node.meta["val"] = spec.make()
        inputs.append(node.meta["val"])
        return node

    args, kwargs = pytree.tree_map_only(TensorSpec, placeholder, (call.args, call.kwargs))
    node = graph.call_function(call.target, args, kwargs)
    given, named = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (args, kwargs))
    node.meta["val"] = results = call.target(*given, **named)
    outputs = [node]
    if not isinstance(results, torch.Tensor):
        outputs = [graph.call_function(operator.getitem, (node, i)) for i in range(len(results))]
        for output, result in zip(outputs, results, strict=True):
            output.meta["val"] = result
    graph.output(tuple(outputs))
    return fx.GraphModule({}, graph), inputs
