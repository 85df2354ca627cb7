"""Attention of many kinds, for ``fuzz_models``."""

from __future__ import annotations

import torch
from support.fuzz_blocks import Norm, Shape, rows, width_of
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention.

    ``kind``: "sdpa", "eager" (a softmax written out). ``groups``: heads that share a key and a value. ``mask``: "none",
    "causal", "bias" (learned), "keep" (a mask of booleans). ``cap``: the soft cap of the scores, 0 for none.
    ``rotary``: positions rotate queries and keys. ``wide``: the softmax runs in float32.
    """

    def __init__(
        self, shape: Shape, *, kind: str, heads: int, size: int, groups: int, mask: str, cap: float, dropout: float,
        rotary: bool, norm: str, fused: bool, wide: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        width = width_of(shape)
        self.kind, self.mask, self.cap, self.dropout, self.rotary, self.wide = kind, mask, cap, dropout, rotary, wide
        self.heads, self.kv_heads, self.size = heads * groups, heads, size
        self.norm = Norm(width, norm)
        parts = [self.heads * size, heads * size, heads * size]
        self.fused = nn.Linear(width, sum(parts)) if fused else None
        self.parts = parts
        self.projections = nn.ModuleList([] if fused else [nn.Linear(width, p, bias=False) for p in parts])
        self.out = nn.Linear(self.heads * size, width)
        if mask == "bias":
            self.bias = nn.Parameter(torch.zeros(self.heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = rows(x)
        h = self.norm(x)
        parts = self.fused(h).split(self.parts, -1) if self.fused is not None else [p(h) for p in self.projections]
        q, k, v = (p.unflatten(-1, (-1, self.size)).transpose(1, 2) for p in parts)
        if self.rotary:
            q, k = self._rotated(q), self._rotated(k)
        return x + self.out(self._attend(q, k, v).transpose(1, 2).flatten(2))

    def _rotated(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        angle = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * 0.1 ** torch.arange(half, dtype=torch.float32)
        cos, sin = torch.cat([angle, angle], -1).cos().to(x.dtype), torch.cat([angle, angle], -1).sin().to(x.dtype)
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * cos + turned * sin

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        keep = torch.ones(length, length, dtype=torch.bool).tril() if self.mask in ("causal", "keep") else None
        if self.heads != self.kv_heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        if self.kind == "sdpa":
            mask = (
                keep if self.mask == "keep" else self.bias.expand(-1, length, length) if self.mask == "bias" else None
            )
            mask = mask.to(q.dtype) if mask is not None and mask.is_floating_point() else mask
            return F.scaled_dot_product_attention(q, k, v, mask, self.dropout, is_causal=self.mask == "causal")
        scores = q @ k.transpose(-1, -2) * self.size**-0.5
        if self.cap:
            scores = torch.tanh(scores / self.cap) * self.cap
        if self.mask == "bias":
            scores = scores + self.bias.to(scores.dtype)
        elif keep is not None:
            scores = scores.masked_fill(~keep, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores.float(), -1).to(v.dtype) if self.wide else torch.softmax(scores, -1)
        return (F.dropout(weights, self.dropout) if self.dropout else weights).to(v.dtype) @ v
