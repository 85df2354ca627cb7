"""The only directory that imports torch's private modules; the differences between torch versions end here.

All other modules take them from here. The supported range of versions is checked on import. Unless a line says
otherwise, a name exists in torch 2.11 to 2.15.

    version.py          the supported range
    partitioning.py     around the decision of torch's own partitioner
    random_state.py     running an op again from the random state of its first run
    call_stack.py       what torch is doing now
    compiled_modules.py how torch.compile changes modules
"""

# ruff: noqa: E402  (the version is checked before anything private is imported)
from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from rematpass.compiler._torch.version import check_version, release

check_version(torch.__version__)

from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters as dynamo_counters
from torch._dynamo.utils import (
    preserve_rng_state,
    warn_once_cache,  # torch._dynamo.reset() clears it
)
from torch._functorch import config as functorch_config
from torch._functorch.compile_utils import fx_graph_cse
from torch._functorch.partitioners import (
    cleanup_recompute_tags,
    force_save_bw_mutation_src,
    force_save_collectives,
    force_save_effectful_ops,
    has_recomputable_ops,
    is_sym_node,
    min_cut_rematerialization_partition,
)
from torch._functorch.partitioners import default_partition as save_all_partition
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
from torch._inductor import lowering as inductor_lowering
from torch._inductor import memory as inductor_memory
from torch._inductor import metrics as inductor_metrics
from torch._inductor import scheduler as inductor_scheduler
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.dependencies import StarDep, WeakDep
from torch._inductor.lowering import register_lowering
from torch._inductor.runtime.cache_dir_utils import cache_dir as cache_directory
from torch._inductor.utils import get_dtype_size
from torch._inductor.virtualized import V
from torch._logging import trace_structured
from torch._logging._internal import trace_log as _trace_log
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _make_graph_module as graph_module  # its code is made when it is asked for
from torch.fx.experimental._backward_state import BackwardState
from torch.fx.experimental.symbolic_shapes import ShapeEnv, free_symbols
from torch.utils import _pytree as pytree
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._sympy.symbol import SymT, symbol_is_type

from rematpass.compiler._torch.call_stack import (
    backward_is_traced,
    modules_being_called,
    region_being_partitioned,
    saved_tensor_hooks_are_active,
)
from rematpass.compiler._torch.compiled_modules import called_through, is_compiled_in_place, wrapped_modules
from rematpass.compiler._torch.partitioning import (
    extract_fwd_bwd_modules,
    insert_offloads,
    is_opaque_node,
    region_budget_of,
    thread_rng_states,
)
from rematpass.compiler._torch.random_state import (
    bytes_of_kept_state,
    device_of_random_state,
    random_state_before,
    replayed_call,
    run_and_save_rng_state,
    run_with_rng_state,
)

__all__ = [
    "FREES_TANGENTS",
    "BackendCompilerFailed",
    "BackwardState",
    "CompileContext",
    "CppPythonBindingsCodeCache",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "FakeTensorMode",
    "HigherOrderOperator",
    "OpOverload",
    "OrderedSet",
    "SchedulerPass",
    "ShapeEnv",
    "StarDep",
    "SymT",
    "V",
    "WeakDep",
    "aot_autograd",
    "backward_is_traced",
    "boxed_nop",
    "bytes_of_kept_state",
    "cache_directory",
    "called_through",
    "check_version",
    "cleanup_recompute_tags",
    "compile_fx",
    "compile_threads",
    "default_partition",
    "device_of_random_state",
    "dynamo_counters",
    "extract_fwd_bwd_modules",
    "fake_mode_of",
    "force_save_bw_mutation_src",
    "force_save_collectives",
    "force_save_effectful_ops",
    "free_symbols",
    "functorch_config",
    "fx_graph_cse",
    "get_dtype_size",
    "graph_module",
    "has_recomputable_ops",
    "inductor_config",
    "inductor_driver",
    "inductor_graph",
    "inductor_ir",
    "inductor_lowering",
    "inductor_memory",
    "inductor_metrics",
    "inductor_scheduler",
    "insert_offloads",
    "is_compiled_in_place",
    "is_impure",
    "is_opaque_node",
    "is_sym_node",
    "lays_channels_last",
    "list_mode_options",
    "modules_being_called",
    "preserve_rng_state",
    "pytree",
    "random_state_before",
    "region_being_partitioned",
    "region_budget_of",
    "register_lowering",
    "replayed_call",
    "run_and_save_rng_state",
    "run_with_rng_state",
    "save_all_partition",
    "saved_tensor_hooks_are_active",
    "storage_key",
    "symbol_is_type",
    "thread_rng_states",
    "trace_structured",
    "traces_structured",
    "warn_once_cache",
    "without_modes",
    "wrapped_modules",
]

default_partition = min_cut_rematerialization_partition
# Whether a tangent is freed after its last use in backward, which empties the list that it is called with: seen in
# torch 2.13, while in 2.11 autograd holds all tangents until backward ends. Only the dry run depends on it.
FREES_TANGENTS = release(torch.__version__) >= (2, 13)
# Functions that Inductor does not compute again on a CPU in each of several readers, in should_realize_on_reuse of
# torch/_inductor/ir.py: seen in torch 2.11, 2.13 and 2.14.
_SINCE_2_12 = (
    frozenset({"log", "log10", "log1p", "log2", "tanh"}) if release(torch.__version__) >= (2, 12) else frozenset()
)
SLOW_TO_REPEAT = frozenset({"exp", "sigmoid"}) | _SINCE_2_12
# The class of scheduler passes that compile caches accept; torch 2.11 has one class for all passes.
SchedulerPass = getattr(_custom_graph_pass, "CustomSchedulerPass", CustomGraphPass)


def is_impure(node: fx.Node) -> bool:
    """Whether the call has an effect besides its results; drawing random numbers does not count."""
    return node.is_impure(impure_random=False)


def compile_threads() -> int:
    """How many kernels Inductor compiles at a time."""
    # Only generated modules ask, which have loaded this module; loading it starts Inductor's worker processes.
    from torch._inductor.async_compile import get_compile_threads

    return max(1, get_compile_threads())


def lays_channels_last(module: fx.GraphModule) -> bool:
    """Whether Inductor will lay out the convolutions of this module with channels last."""
    return bool(inductor_graph.GraphLowering.decide_layout_opt(module, is_inference=False))


def traces_structured() -> bool:
    """Whether somebody reads what ``trace_structured`` writes. The handler removes itself if there is no file."""
    return bool(_trace_log.handlers)


def storage_key(tensor: torch.Tensor) -> int | None:
    """The same number for all tensors of one storage; None for a tensor without a storage, such as a sparse one."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return None


def fake_mode_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """The fake mode of a joint graph's example values, under which more of them are made."""
    mode = getattr(tensor, "fake_mode", None)
    return mode if mode is not None else nullcontext()
