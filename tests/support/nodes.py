"""Single fx nodes that call an op."""

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from rematpass.compiler import _torch

aten = torch.ops.aten


def called(target, *arguments, **keywords):
    """A node that calls ``target`` on real tensors; its value is the result."""
    graph = fx.Graph()

    def placeholder(tensor):
        node = graph.placeholder("x")
        node.meta["val"] = tensor
        return node

    args, kwargs = _torch.pytree.tree_map_only(torch.Tensor, placeholder, (arguments, keywords))
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = target(*arguments, **keywords)
    return node


def fake_call(target, *arguments, device="cuda:0"):
    """A node that calls ``target`` on fake tensors; a tuple of sizes among the arguments stands for a tensor."""
    graph = fx.Graph()
    with FakeTensorMode():
        nodes = []
        for argument in arguments:
            if isinstance(argument, tuple):
                placeholder = graph.placeholder(f"x{len(nodes)}")
                placeholder.meta["val"] = torch.empty(argument, device=device)
                argument = placeholder
            nodes.append(argument)
    node = graph.call_function(target, tuple(nodes))
    node.meta["val"] = None
    return node


def fake_convolution(device="cuda:0", channels=3):
    """A 3x3 convolution from ``channels`` to five times as many."""
    weight = (5 * channels, channels, 3, 3)
    options = [None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1]
    return fake_call(aten.convolution.default, (2, channels, 8, 8), weight, *options, device=device)


# ---- custom ops


@torch.library.custom_op("rematpass_tests::opaque", mutates_args=())
def opaque(x: torch.Tensor) -> torch.Tensor:
    return x + 1


opaque.register_fake(torch.empty_like)


@torch.library.custom_op("rematpass_tests::users_attention", mutates_args=(), tags=(torch.Tag.pointwise,))
def users_attention(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@torch.library.custom_op("rematpass_tests::of_a_list", mutates_args=())
def of_a_list(x: list[torch.Tensor]) -> torch.Tensor:
    return x[0] + 1


@torch.library.custom_op("rematpass_tests::overwrites", mutates_args={"x"})
def overwrites(x: torch.Tensor) -> None:
    x.add_(1)
