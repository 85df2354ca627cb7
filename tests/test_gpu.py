"""Tests that need a GPU: users' Triton kernels, products in float8, workspaces of libraries, the peak of a step.

flex_attention is tested in test_never_wrong.py.
"""

import pytest
import torch
import torch.nn.functional as F
from support.programs import afresh
from torch.utils.checkpoint import checkpoint

from rematpass import plans
from rematpass.compiler.ops.sample_call import sample_call_of
from rematpass.compiler.ops.workspace import measured_workspace
from rematpass.compiler.planned import records
from rematpass.core.op import Kind
from rematpass.lab.measure.memory_and_time import gradient_error, measure_memory, run_step
from rematpass.lab.models.build import build

pytestmark = pytest.mark.gpu
afresh = pytest.fixture(autouse=True)(afresh)
MIB = 2**20
OPTIONS = [{"memory_budget": 1}, {"memory_budget": 0.3}, {"memory_budget": 0}, {"solver": "recompute_all"}]


def gradients(function, arguments):
    return torch.autograd.grad(function(*arguments).float().square().sum(), arguments)


def relative_error(actual, expected):
    """The largest distance of two gradients, relative to the norm of the expected one."""
    return max(((a - b).float().norm() / b.float().norm()).item() for a, b in zip(actual, expected, strict=True))


def compiled(function, options):
    return torch.compile(function, backend="remat", options={"strict": 1, **options}, fullgraph=True)


def recomputed(kind):
    """How many ops of this kind the only planned graph recomputes."""
    (record,) = records()
    return sum(record.graph.ops[run.op].kind is kind for run in record.plan.recomputed())


def kernels():
    pytest.importorskip("triton")
    from support.triton_kernels import Launched, doubled_sine

    return {"launched": Launched.apply, "triton_op": doubled_sine}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", ["launched", "triton_op"])
def test_a_users_triton_kernel_is_never_recomputed(how, options):
    kernel = kernels()[how]

    def forward(x, y):
        return (kernel(torch.tanh(x)).exp() * kernel(y.sin())).cos()

    torch.manual_seed(0)
    arguments = [torch.randn(61, 67, device="cuda", requires_grad=True) for _ in range(2)]
    actual = gradients(compiled(forward, options), arguments)
    assert relative_error(actual, gradients(forward, arguments)) < 1e-5
    assert recomputed(Kind.OPAQUE) == 0


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("how", ["launched", "triton_op"])
def test_a_users_triton_kernel_is_recomputed_in_a_checkpoint_region(how, options):
    kernel = kernels()[how]

    def forward(x, y):
        return checkpoint(lambda t: kernel(torch.tanh(t)).exp() * kernel(t.sin()), x * y, use_reentrant=False).cos()

    torch.manual_seed(0)
    arguments = [torch.randn(61, 67, device="cuda", requires_grad=True) for _ in range(2)]
    actual = gradients(compiled(forward, options), arguments)
    assert relative_error(actual, gradients(forward, arguments)) < 1e-5
    assert recomputed(Kind.OPAQUE) == (2 if how == "triton_op" else 0)  # torch marks no ops inside an autograd.Function


# ---- float8


def to_float8(tensor, dtype):
    """The tensor in float8, scaled to the range of the dtype, and the factor that scales it back."""
    factor = tensor.abs().amax().float().clamp(min=1e-12) / torch.finfo(dtype).max
    return (tensor.float() / factor).to(dtype), factor


def product(a, b, a_dtype=torch.float8_e4m3fn):
    """``a @ b`` in float8: ``a`` row-major and ``b`` column-major, as the hardware requires."""
    (a8, scale_a), (b8, scale_b) = to_float8(a, a_dtype), to_float8(b, torch.float8_e4m3fn)
    b8 = b8.t().contiguous().t()
    return torch._scaled_mm(a8.contiguous(), b8, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16)


class Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return product(x, weight.t())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return product(grad, weight, torch.float8_e5m2), product(grad.t(), x, torch.float8_e5m2)


@pytest.mark.parametrize("options", OPTIONS)
def test_products_in_float8(options):
    """Compared with Inductor and torch's own partitioner; a float8 that is rounded differently is off by 1/16."""
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no float8 products (compute capability 8.9 and above have)")

    def forward(x, *weights):
        for weight in weights:
            x = torch.nn.functional.gelu(Float8Linear.apply(x, weight))
        return x

    torch.manual_seed(0)
    shapes = [(128, 64), (96, 64), (64, 96), (32, 64)]  # multiples of 16
    arguments = [torch.randn(*s, device="cuda", dtype=torch.bfloat16, requires_grad=True) for s in shapes]
    expected = gradients(torch.compile(forward, backend="inductor", fullgraph=True), arguments)
    torch._dynamo.reset()
    actual = gradients(compiled(forward, options), arguments)
    assert relative_error(actual, expected) < 0.03
    (summary,) = plans()
    assert summary.recomputed_ops or options == {"memory_budget": 1}
    if "solver" in options:
        assert recomputed(Kind.MATMUL) >= 1  # each product is read by gelu's backward


# ---- bytes


def node_of(function, *arguments):
    """The last call in the graph of a function, on the GPU."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*arguments).graph
    return [n for n in graph.nodes if n.op == "call_function"][-1]


def test_measured_workspace_agrees_with_the_allocator():
    x = torch.randn(8, 64, 56, 56, device="cuda")
    weight = torch.randn(64, 64, 3, 3, device="cuda")
    node = node_of(lambda a, w: F.conv2d(a, w, padding=1), x, weight)
    state = torch.cuda.get_rng_state()
    found = measured_workspace(node)
    assert torch.equal(state, torch.cuda.get_rng_state())
    F.conv2d(x, weight, padding=1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    result = F.conv2d(x, weight, padding=1)
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    assert found == peak - before - result.nbytes


def test_a_sample_call_has_the_strides_of_the_compiler():
    x = torch.randn(2, 8, 4, 4, device="cuda")
    weight = torch.randn(8, 8, 3, 3, device="cuda")
    node = node_of(lambda a, w: F.conv2d(a, w), x, weight)
    last = x.to(memory_format=torch.channels_last)
    call = sample_call_of(node, [(tuple(x.shape), last.stride())])
    assert call.args[0].strides == last.stride()
    assert call.args[1].strides == weight.stride()


@pytest.mark.slow
@pytest.mark.parametrize("part", [0, 0.5])
@pytest.mark.parametrize("name", ["llama-small", "gpt2", "mlp", "resnet50", "unet", "t5"])
def test_a_budget_is_held_as_planned(name, part):
    """To one part in a thousand of the bytes requested; blocks of the allocator may be larger by 1 MiB each.

    The model decides whether forward's outputs are still alive when backward starts.
    """
    sizes = {"dropout": 0.0} if name in ("gpt2", "t5") else {}
    # In float32 the algorithms of cuDNN differ by more than a wrong gradient might: by 0.0015 for the U-Net, and for
    # ResNet-50 plain Inductor differs from eager mode by 0.2.
    dtype, tolerance = (torch.float64, 1e-6) if name in ("resnet50", "unet") else (None, 1e-3)
    plain, model = (build(name, device="cuda", dtype=dtype, **sizes) for _ in range(2))
    run_step(plain.step, plain.parameters)
    expected = {n: p.grad for n, p in plain.module.named_parameters()}
    model.module.compile(backend="remat", options={"memory_budget": part, "strict": 1})
    run_step(model.step, model.parameters)
    assert gradient_error({n: p.grad for n, p in model.module.named_parameters()}, expected) < tolerance
    del plain, expected
    measured = measure_memory(model.step, model.parameters, device="cuda").requested
    (summary,) = plans()
    assert summary.exact
    assert summary.recomputed_ops
    assert 0.999 * summary.peak_without_outputs <= measured <= 1.001 * summary.planned_peak
