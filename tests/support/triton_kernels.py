"""A Triton kernel, launched directly and through ``torch.library.triton_op``. Imported only if Triton is installed."""

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

BLOCK = 64


@triton.jit
def sine_kernel(x, out, n, BLOCK: tl.constexpr):  # noqa: N803
    """out = 2 sin(x), for n contiguous elements."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    tl.store(out + offsets, 2 * tl.sin(tl.load(x + offsets, mask=inside)), mask=inside)


class Launched(torch.autograd.Function):
    """The kernel, launched from an autograd.Function."""

    @staticmethod
    def forward(ctx, x):
        out = torch.empty_like(x)
        sine_kernel[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK)
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * grad * torch.cos(x)


@triton_op("rematpass_tests::doubled_sine", mutates_args={})
def doubled_sine(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    wrap_triton(sine_kernel)[(triton.cdiv(x.numel(), BLOCK),)](x, out, x.numel(), BLOCK=BLOCK)
    return out


doubled_sine.register_autograd(
    Launched.backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)
