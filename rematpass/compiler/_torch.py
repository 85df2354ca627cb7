"""The only file that imports torch's private modules; the differences between torch versions end here.

Everything else in ``compiler/`` and ``lab/`` imports from this one. The supported range is checked on import.
"""

# ruff: noqa: E402  (the version is checked before anything private is imported)
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx

from rematpass.errors import TorchVersionError

OLDEST, BEYOND = (2, 11), (2, 16)
_LARGEST_BOUND = 1 << 40  # a bound of an unbacked size that is higher means "any"


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
from torch.fx.experimental._backward_state import BackwardState
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _disable_current_modes as without_modes
from torch.utils._sympy.symbol import SymT, symbol_is_type

__all__ = [
    "LETS_TANGENTS_GO",
    "BackwardState",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "HigherOrderOperator",
    "OpOverload",
    "OrderedSet",
    "SchedulerPass",
    "StarDep",
    "V",
    "WeakDep",
    "aot_autograd",
    "backward_is_traced",
    "boxed_nop",
    "cache_directory",
    "caches_are_disabled",
    "check_version",
    "compile_fx",
    "compile_id",
    "current_device",
    "default_partition",
    "device_name",
    "device_of_random_state",
    "dynamo_counters",
    "extract_fwd_bwd_modules",
    "fake_mode_of",
    "frame_id",
    "functorch_config",
    "get_dtype_size",
    "hint",
    "hint_in",
    "hooks_take_what_is_saved",
    "how_cudnn_chooses",
    "inductor_config",
    "inductor_driver",
    "inductor_graph",
    "inductor_ir",
    "inductor_memory",
    "inductor_metrics",
    "inductor_option_names",
    "inductor_scheduler",
    "insert_offloads",
    "is_impure",
    "is_opaque_node",
    "is_recompile",
    "is_sym_node",
    "lays_channels_last",
    "list_mode_options",
    "plain_settings",
    "prepare_joint",
    "preserve_rng_state",
    "pytree",
    "random_state_before",
    "region_budget_of",
    "region_calls",
    "register_lowering",
    "rounds_to_tf32",
    "run_and_save_rng_state",
    "run_with_rng_state",
    "running_modules",
    "storage_key",
    "symbols_with_hints",
    "thread_rng_states",
    "trace_structured",
    "without_modes",
    "wrapped_modules",
]

default_partition = min_cut_rematerialization_partition
# Whether a tangent is freed after its last use in backward, which empties the list that it is called with (seen on
# 2.13); on 2.11 autograd holds them all until backward has ended. 2.12 was not tried. Only the dry run knows this.
LETS_TANGENTS_GO = _release(torch.__version__) >= (2, 13)
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
    if "impure_random" in inspect.signature(fx.Node.is_impure).parameters:
        return node.is_impure(impure_random=False)
    return node.is_impure()


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


def inductor_option_names() -> list[str]:
    """The names that Inductor's ``options=`` accepts."""
    return list(inductor_config.get_config_copy())


def fake_mode_of(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """The fake mode that a joint graph's example values live in, to make one more of them."""
    mode = getattr(tensor, "fake_mode", None)
    return mode if mode is not None else nullcontext()


def device_name(device: torch.device) -> str:
    """How the device calls itself ("NVIDIA H200"), or its type where it has no name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rounds_to_tf32(*, convolution: bool) -> bool:
    """Whether products of float32 run as TF32 on GPUs that have it: cuDNN's do by default, cuBLAS' when asked to."""
    place: Any = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul  # type: ignore[attr-defined]
    return bool(place.fp32_precision == "tf32")


def lays_channels_last(module: fx.GraphModule) -> bool:
    """Whether Inductor is going to lay this module's convolutions out with channels last, as far as can be told."""
    return bool(inductor_graph.GraphLowering.decide_layout_opt(module, is_inference=False))


def how_cudnn_chooses() -> tuple[str, ...]:
    """The settings by which cuDNN chooses among its algorithms, whose workspaces differ."""
    cudnn: Any = torch.backends.cudnn
    return tuple(map(str, (cudnn.version(), cudnn.benchmark, cudnn.deterministic, cudnn.conv.fp32_precision)))


def caches_are_disabled() -> bool:
    """Whether nothing compiled is kept for other processes."""
    return bool(inductor_config.force_disable_caches) or not inductor_config.fx_graph_cache


def plain_settings() -> list[tuple[str, str, Any]]:
    """All of Inductor's and functorch's settings that are numbers or texts: what a joint graph may depend on."""
    return [
        (config.__name__, name, value)
        for config in (inductor_config, functorch_config)
        for name, value in sorted(config.get_config_copy().items())  # type: ignore[attr-defined]
        if isinstance(value, (bool, int, float, str))
    ]


def current_device() -> torch.device:
    """The GPU that this process works on, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compile_id() -> str:
    """Dynamo's name for the compilation under way, "frame/recompile", or "" outside of one."""
    return str(CompileContext.current_compile_id() or "")


_CALLS_OF_MODULES = (torch.nn.Module._call_impl.__code__, torch.nn.Module._wrapped_call_impl.__code__)


def running_modules() -> list[torch.nn.Module]:
    """The modules that are being called on this thread, from the innermost out; none of those that fx has made, nor
    those outside of a ``torch.utils.checkpoint``, which saves nothing of what runs inside it.

    Only the locals of ``Module.__call__`` are looked at: to look at a frame's would keep them alive until it ends.
    """
    found: list[torch.nn.Module] = []
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        its = frame.f_locals["self"] if frame.f_code in _CALLS_OF_MODULES else None
        if its is not None and not isinstance(its, fx.GraphModule):
            found.append(its)
        frame = frame.f_back
    return found


def region_calls() -> list[fx.Node]:
    """The calls, in the joint graph around it, of the region compiled once whose joint graph is being partitioned.

    Nothing that the partition function is given tells of them, so they are read where torch holds them
    (``run_joint_graph_passes_on_hops``); none outside of it.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "run_joint_graph_passes_on_hops":
        frame = frame.f_back
    held = {} if frame is None else frame.f_locals
    this, calls = held.get("fw_hop_node"), held.get("fw_hop_nodes", ())  # so named in torch 2.11 and 2.13
    return [call for call in calls if this is not None and call.args[1] == this.args[1]]


def hooks_take_what_is_saved() -> bool:
    """Whether somebody has put hooks around what autograd saves now, as a checkpoint does, or offloading."""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def backward_is_traced() -> bool:
    """Whether compiled autograd traces backwards now, and hooks with them."""
    return bool(compiled_autograd.compiled_autograd_enabled)


def wrapped_modules(root: torch.nn.Module) -> list[torch.nn.Module]:
    """Those in ``root`` that ``torch.compile`` has put a wrapper around."""
    return [m._orig_mod for m in root.modules() if isinstance(m, OptimizedModule)]


def frame_id() -> int | None:
    """Which of the program's frames is being compiled; None outside of Dynamo."""
    return getattr(CompileContext.current_compile_id(), "frame_id", None)


def is_recompile() -> bool:
    """Whether the frame has been compiled before, for other shapes, say."""
    return bool(getattr(CompileContext.current_compile_id(), "frame_compile_id", 0))


def hint(size: Any) -> int:
    """The number behind a size: itself, a symbol's value at compile time, or what is assumed of an unbacked one."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.has_hint():
        return int(size.node.hint)
    assumed = {s: _assumed(size.node.shape_env, s) for s in size.node.expr.free_symbols}
    return int(size.node.expr.subs(assumed))


def hint_in(graph: Any, size: Any) -> int:
    """The same of a size in one of Inductor's graphs."""
    if getattr(size, "free_symbols", ()):
        size = graph.sizevars.simplify(size)
        unbacked = [s for s in size.free_symbols if symbol_is_type(s, SymT.UNBACKED_INT)]
        size = size.subs({s: _assumed(graph.sizevars.shape_env, s) for s in unbacked})
    return int(graph.sizevars.optimization_hint(size, fallback=0))


def symbols_with_hints(value: Any) -> dict[str, int]:
    """The free symbols of a size or tensor, each with the number assumed for it."""
    return {str(s): _assumed(_shape_env(value), s) for s in free_symbols(value)}


def _assumed(shape_env: Any, symbol: Any) -> int:
    """What a symbol was when compiling; of an unbacked one the most it can be, so that a peak is not too low.

    ``nonzero`` of 512 tokens, say, finds 512 at most. Without such a bound it is what Inductor assumes.
    """
    known = shape_env.backed_var_to_val if hasattr(shape_env, "backed_var_to_val") else shape_env.var_to_val
    if symbol in known:
        return int(known[symbol])
    bounds = getattr(shape_env, "var_to_range", {}).get(symbol)
    if bounds is not None and bounds.upper.is_Integer and bounds.upper < _LARGEST_BOUND:
        return int(bounds.upper)
    return int(getattr(inductor_config, "unbacked_symint_fallback", 8192))


def _shape_env(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value.node.shape_env
    return getattr(getattr(value, "fake_mode", None), "shape_env", None)
