"""The only file that imports torch's private modules; the differences between torch versions end here.

Everything else in ``compiler/`` and ``lab/`` imports from this one. The supported range is checked on import.
"""

# ruff: noqa: E402  (the version is checked before anything private is imported)
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from rematpass.errors import TorchVersionError

OLDEST, BEYOND = (2, 11), (2, 16)


def check_version(version: str) -> None:
    """Refuse a torch whose private hooks have not been tried.

    Raises:
        TorchVersionError: ``version`` is outside the supported range.
    """
    if not OLDEST <= _release(version) < BEYOND:
        oldest, beyond = (".".join(map(str, v)) for v in (OLDEST, BEYOND))
        raise TorchVersionError(
            f"rematpass works with torch >= {oldest} and < {beyond}, and this is torch {version}; "
            f"install one of those, for example: pip install torch==2.13.0"
        )


def _release(version: str) -> tuple[int, ...]:
    """Major and minor."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


check_version(torch.__version__)

from torch._dynamo import compiled_autograd
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.eval_frame import OptimizedModule
from torch._dynamo.utils import counters as dynamo_counters
from torch._dynamo.utils import preserve_rng_state
from torch._functorch import config as functorch_config
from torch._functorch import partitioners as _partitioners
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import (
    cleanup_recompute_tags,
    force_save_bw_mutation_src,
    force_save_collectives,
    force_save_effectful_ops,
    has_recomputable_ops,
    is_sym_node,
    min_cut_rematerialization_partition,
    thread_graphsafe_rng_from_hops,
)
from torch._guards import CompileContext
from torch._inductor import compile_fx as inductor_driver
from torch._inductor import config as inductor_config
from torch._inductor import custom_graph_pass as _custom_graph_pass
from torch._inductor import graph as inductor_graph
from torch._inductor import (
    inductor_prims,  # noqa: F401  (registers prims.inductor_*)
    list_mode_options,
)
from torch._inductor import ir as inductor_ir
from torch._inductor import memory as inductor_memory
from torch._inductor import metrics as inductor_metrics
from torch._inductor import scheduler as inductor_scheduler
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.dependencies import StarDep, WeakDep
from torch._inductor.lowering import register_lowering
from torch._inductor.runtime.cache_dir_utils import cache_dir as cache_directory
from torch._inductor.utils import get_dtype_size
from torch._inductor.virtualized import V
from torch._logging import trace_structured
from torch._ops import HigherOrderOperator, OpOverload
from torch._prims import rng_prims as _rng_prims
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import traceback as fx_traceback
from torch.fx._lazy_graph_module import _make_graph_module as graph_module  # its code is made when it is asked for
from torch.fx.experimental._backward_state import BackwardState
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = [
    "CALLS_OF_MODULES",
    "LETS_TANGENTS_GO",
    "BackwardState",
    "CompileContext",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "HigherOrderOperator",
    "OpOverload",
    "OrderedSet",
    "SchedulerPass",
    "StarDep",
    "SymT",
    "V",
    "WeakDep",
    "aot_autograd",
    "backward_is_traced",
    "boxed_nop",
    "cache_directory",
    "check_version",
    "compile_fx",
    "default_partition",
    "device_of_random_state",
    "dynamo_counters",
    "extract_fwd_bwd_modules",
    "fake_mode_of",
    "free_symbols",
    "functorch_config",
    "get_dtype_size",
    "graph_module",
    "hooks_take_what_is_saved",
    "inductor_config",
    "inductor_driver",
    "inductor_graph",
    "inductor_ir",
    "inductor_memory",
    "inductor_metrics",
    "inductor_scheduler",
    "insert_offloads",
    "is_impure",
    "is_opaque_node",
    "is_sym_node",
    "list_mode_options",
    "prepare_joint",
    "preserve_rng_state",
    "pytree",
    "random_state_before",
    "region_budget_of",
    "register_lowering",
    "run_and_save_rng_state",
    "run_with_rng_state",
    "storage_key",
    "symbol_is_type",
    "thread_rng_states",
    "trace_structured",
    "without_modes",
    "wrapped_modules",
]

default_partition = min_cut_rematerialization_partition
# Whether a tangent is freed after its last use in backward, which empties the list that it is called with (seen on
# 2.13); on 2.11 autograd holds them all until backward has ended. 2.12 was not tried. Only the dry run knows this.
LETS_TANGENTS_GO = _release(torch.__version__) >= (2, 13)
# The code of what runs while a module is being called.
CALLS_OF_MODULES = (torch.nn.Module._call_impl.__code__, torch.nn.Module._wrapped_call_impl.__code__)
# A scheduler pass is cached when it is one of these; torch 2.11 has one class for all passes.
SchedulerPass = getattr(_custom_graph_pass, "CustomSchedulerPass", CustomGraphPass)


def prepare_joint(module: fx.GraphModule, is_one_of_its_kind: Callable[[fx.Node], bool]) -> None:
    """What torch's own partitioner does before it decides: dead code, common subexpressions, and users' marks.

    Its elimination of common subexpressions knows a few random ops by name and would make one of any others: two calls
    of a custom op, or of ``uniform``, on the same tensor. An argument more makes them differ while it looks.
    """
    module.graph.eliminate_dead_code()
    if functorch_config.cse:
        for node in filter(is_one_of_its_kind, module.graph.nodes):
            node.kwargs = {**node.kwargs, _UNLIKE: node.name}
        module.graph = fx_graph_cse(module.graph)
        for node in module.graph.nodes:
            if _UNLIKE in node.kwargs:
                node.kwargs = {k: v for k, v in node.kwargs.items() if k != _UNLIKE}
    if has_recomputable_ops(module):
        cleanup_recompute_tags(module, is_default_partition=False)
    if not functorch_config.unsafe_allow_optimization_of_collectives:
        force_save_collectives(module)
    force_save_effectful_ops(module)
    force_save_bw_mutation_src(module)
    module.recompile()


_UNLIKE = "rematpass_unlike"
run_and_save_rng_state = _rng_prims.run_and_save_rng_state  # (op, *args) -> (state before, result)
run_with_rng_state = _rng_prims.run_with_rng_state  # (state, op, *args) -> result; the state stays as it was


def device_of_random_state(node: fx.Node) -> str:
    """The device whose random state those two take for this call; empty where they find none."""
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), (node.args, node.kwargs))
    device = _rng_prims.get_device(args, kwargs)
    return device if device in ("cpu", "cuda", "xpu") else ""


def random_state_before(node: fx.Node) -> torch.Tensor:
    """A fake of the state that ``run_and_save_rng_state`` returns for this call."""
    device = device_of_random_state(node)
    state = torch.get_rng_state() if device == "cpu" else getattr(torch, device).get_rng_state()
    arguments = [n.meta.get("val") for n in node.all_input_nodes]
    mode = next(v.fake_mode for v in arguments if isinstance(v, FakeTensor))
    return mode.from_tensor(state, static_shapes=True)


def extract_fwd_bwd_modules(
    module: fx.GraphModule,
    saved: Sequence[fx.Node],
    *,
    num_fwd_outputs: int,
    static_inputs: Sequence[fx.Node],
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a joint module at ``saved``, symbolic sizes and opaque objects told apart from tensors."""
    sizes = [n for n in saved if is_sym_node(n)]
    opaque = [n for n in saved if is_opaque_node(n)]
    tensors = [n for n in saved if not is_sym_node(n) and not is_opaque_node(n)]
    extract = _partitioners._extract_fwd_bwd_modules
    more: dict[str, Any] = {"saved_opaque_nodes": opaque} if opaque else {}
    return extract(  # type: ignore[no-any-return]
        module,
        tensors,
        saved_sym_nodes=sizes,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=OrderedSet(static_inputs),
        **more,
    )


def thread_rng_states(fwd: fx.GraphModule, bwd: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Hand the random states of higher-order ops' subgraphs through the two graphs' inputs."""
    return (
        thread_graphsafe_rng_from_hops(fwd, is_backward=False),
        thread_graphsafe_rng_from_hops(bwd, is_backward=True),
    )


def is_opaque_node(node: fx.Node) -> bool:
    """Whether the node holds a script object rather than a tensor or a size (unknown to torch 2.11)."""
    known = getattr(_partitioners, "is_opaque_node", None)
    return bool(known and known(node))


def is_impure(node: fx.Node) -> bool:
    """Whether the call has an effect besides its results; drawing random numbers does not count."""
    return node.is_impure(impure_random=False)


def storage_key(tensor: torch.Tensor) -> int | None:
    """What two tensors of one storage have in common; None for a tensor without storage (sparse, say)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def region_budget_of(node: fx.Node) -> float | None:
    """What ``torch.autograd.graph.region_activation_memory_budget`` says of a node (unknown to torch 2.11)."""
    key = getattr(fx_traceback, "MEMORY_BUDGET_ANNOTATION_KEY", None)
    found = (node.meta.get("custom") or {}).get(key) if key else None
    return None if found is None else float(found)


def insert_offloads(
    fwd: fx.GraphModule, bwd: fx.GraphModule, num_fwd_outputs: int, static_inputs: Sequence[fx.Node]
) -> None:
    """Move saved values that are marked ``should_offload`` to the CPU and back, where torch's setting asks for it."""
    if getattr(functorch_config, "enable_activation_offloading", False):
        from torch._functorch._activation_offloading.activation_offloading import enable_activation_offloading

        enable_activation_offloading(fwd, bwd, num_fwd_outputs, OrderedSet(static_inputs))


def fake_mode_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """The fake mode that a joint graph's example values live in, to make one more of them."""
    mode = getattr(tensor, "fake_mode", None)
    return mode if mode is not None else nullcontext()


def hooks_take_what_is_saved() -> bool:
    """Whether somebody has put hooks around what autograd saves now, as a checkpoint does, or offloading."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def backward_is_traced() -> bool:
    """Whether compiled autograd traces backwards now, and hooks with them."""
    return bool(compiled_autograd.compiled_autograd_enabled)


def wrapped_modules(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Those in ``root`` that ``torch.compile`` has put a wrapper around."""
    return [m._orig_mod for m in root.modules() if isinstance(m, OptimizedModule)]
