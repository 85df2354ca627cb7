"""Tensor subclasses: a quantized weight, a distributed tensor on a group of one rank, a nested tensor."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support.programs import afresh, differences
from torch import nn
from torch.utils._python_dispatch import return_and_correct_aliasing

from rematpass import plans

aten = torch.ops.aten
afresh = pytest.fixture(autouse=True)(afresh)
BUDGETS = 1, 0.5, 0.2, 0


class Scaled(torch.Tensor):
    """A weight as int8 with a scale per row and a float gradient, as torchao's wrappers have it."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=scale.dtype, device=data.device)

    def __init__(self, data, scale):
        self.data_, self.scale_ = data, scale

    def __repr__(self):
        return f"Scaled({list(self.shape)})"

    def __tensor_flatten__(self):
        return ["data_", "scale_"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, meta, outer_size, outer_stride):
        return cls(inner["data_"], inner["scale_"])

    @classmethod
    def of(cls, weight):
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        return cls(torch.round(weight.detach() / scale).to(torch.int8), scale)

    def dequantized(self):
        return self.data_.to(self.scale_.dtype) * self.scale_

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            return _Linear.apply(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function in (aten.detach.default, aten.clone.default, aten.alias.default):
            inner = [function(args[0].data_), function(args[0].scale_)]
            return return_and_correct_aliasing(function, args, kwargs or {}, cls(*inner))
        if function in (aten.view.default, aten.view_as.default):  # AOTAutograd views each parameter in its own shape
            return return_and_correct_aliasing(function, args, kwargs or {}, cls(args[0].data_, args[0].scale_))
        raise NotImplementedError(f"{function} of a quantized weight")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias=None):
        ctx.save_for_backward(x, weight)
        out = x @ weight.dequantized().t()
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.dequantized(), grad.t() @ x, grad.sum(0)


def quantized():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Dropout(0.3), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))
    for layer in (model[3], model[5]):
        layer.weight = nn.Parameter(Scaled.of(layer.weight))
    return model


def seen(model, step, x):
    torch.manual_seed(1)
    found = {}
    for number in range(2):
        out = step(x)
        out.square().sum().backward()
        found[f"output {number}"] = _local(out).detach().clone()
    found |= {f"gradient of {name}": _local(p.grad).clone() for name, p in model.named_parameters()}
    return found | {"gradient of x": _local(x.grad).clone(), "random state": torch.get_rng_state()}


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@pytest.mark.parametrize("options", [*({"memory_budget": b} for b in BUDGETS), {"solver": "recompute_all"}])
def test_quantized_weights(options):
    results = []
    for backend in ("eager", "remat_aot_eager"):
        model = quantized()
        given = {"options": {"strict": 1, **options}} if backend != "eager" else {}
        step = torch.compile(model, backend=backend, fullgraph=True, **given)
        results.append(
            seen(model, step, torch.randn(11, 5, generator=torch.Generator().manual_seed(2)).requires_grad_())
        )
    assert plans()
    assert not differences(*reversed(results))


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    if not dist.is_available():
        pytest.skip("this torch is built without torch.distributed")
    from torch.distributed.device_mesh import init_device_mesh

    store = tmp_path_factory.mktemp("store") / "ranks"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distributed(mesh):
    """Tensor parallelism on one rank, by rows and columns, with the collectives between them."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 7), nn.SiLU(), nn.Linear(7, 3)
    )
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": ColwiseParallel(), "6": RowwiseParallel()}
    return parallelize_module(model, mesh, plan)


@pytest.mark.parametrize("options", [*({"memory_budget": b} for b in BUDGETS), {"solver": "recompute_all"}])
def test_distributed_tensors(mesh, options):
    results = []
    for backend in ("eager", "remat_aot_eager"):
        model = distributed(mesh)
        given = {"options": {"strict": 1, **options}} if backend != "eager" else {}
        step = torch.compile(model, backend=backend, fullgraph=True, **given)
        results.append(
            seen(model, step, torch.randn(11, 5, generator=torch.Generator().manual_seed(2)).requires_grad_())
        )
    assert plans()
    assert not differences(*reversed(results))


def test_a_distributed_tensor_as_argument_and_result(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    def forward(x, w):
        return torch.tanh(torch.tanh(x @ w).exp() @ w.t()).sin()

    results = []
    for function in (
        forward,
        torch.compile(forward, backend="remat_aot_eager", options={"memory_budget": 0, "strict": 1}),
    ):
        torch.manual_seed(0)
        x = distribute_tensor(torch.randn(7, 5), mesh, [Shard(0)]).requires_grad_()
        w = distribute_tensor(torch.randn(5, 3), mesh, [Shard(1)]).requires_grad_()
        out = function(x, w)
        out.sum().backward()
        results.append([t.to_local() for t in (out.detach(), x.grad, w.grad)])
    assert plans()
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("backend", ["remat_aot_eager", "remat"])
def test_nested_tensors_of_ragged_rows_are_planned(backend, budget):
    """The value of their ragged size, a symbol, is itself a symbol."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5))
    rows = [torch.randn(n, 5) for n in (3, 11, 2)]
    eager = torch.autograd.grad(sum(model(row).sin().sum() for row in rows), [*model.parameters()])
    compiled = torch.compile(model, backend=backend, options={"memory_budget": budget, "strict": 1})
    found = compiled(torch.nested.nested_tensor(rows, layout=torch.jagged)).values().sin().sum()
    gradients = torch.autograd.grad(found, [*model.parameters()])
    assert plans()
    for gradient, expected in zip(gradients, eager, strict=True):
        torch.testing.assert_close(gradient, expected)
