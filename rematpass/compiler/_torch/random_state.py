"""Running an op again from the random state that its first run started from."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._prims import rng_prims
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

run_and_save_rng_state = rng_prims.run_and_save_rng_state  # (op, *args) -> (state before, result)
run_with_rng_state = rng_prims.run_with_rng_state  # (state, op, *args) -> result; the current state is not changed


def device_of_random_state(node: fx.Node) -> str:
    """The device whose random state these two ops use for this call; "" where they find none."""
    args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta.get("val"), (node.args, node.kwargs))
    device = rng_prims.get_device(args, kwargs)
    return device if device in ("cpu", "cuda", "xpu") else ""


def replayed_call(node: fx.Node) -> tuple[Any, tuple[Any, ...]]:
    """The op that a call runs and its arguments, without the random state that it may be wrapped in."""
    if node.target is run_and_save_rng_state:
        return node.args[0], node.args[1:]
    if node.target is run_with_rng_state:
        return node.args[1], node.args[2:]
    return node.target, node.args


def bytes_of_kept_state(node: fx.Node) -> int:
    """The bytes of the current state, which ``run_with_rng_state`` keeps while its op runs; a GPU's are on the host."""
    if node.target is not run_with_rng_state:
        return 0
    results = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor)]
    return torch.get_rng_state().nbytes if any(t.device.type == "cpu" for t in results) else 0


def random_state_before(node: fx.Node) -> torch.Tensor:
    """A fake of the state that ``run_and_save_rng_state`` returns for this call."""
    device = device_of_random_state(node)
    state = torch.get_rng_state() if device == "cpu" else getattr(torch, device).get_rng_state()
    values = pytree.tree_leaves([n.meta.get("val") for n in (node, *node.all_input_nodes)])
    mode = next(v.fake_mode for v in values if isinstance(v, FakeTensor))
    return mode.from_tensor(state, static_shapes=True)
