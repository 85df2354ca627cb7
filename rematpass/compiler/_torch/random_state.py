"""Running an op again from the random state that its first run started from."""

from __future__ import annotations

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


def random_state_before(node: fx.Node) -> torch.Tensor:
    """A fake of the state that ``run_and_save_rng_state`` returns for this call."""
    device = device_of_random_state(node)
    state = torch.get_rng_state() if device == "cpu" else getattr(torch, device).get_rng_state()
    arguments = [n.meta.get("val") for n in node.all_input_nodes]
    mode = next(v.fake_mode for v in arguments if isinstance(v, FakeTensor))
    return mode.from_tensor(state, static_shapes=True)
