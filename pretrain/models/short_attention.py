"""Attention over at most 64 tokens in Triton, as torch's operator clipa::short_attention.

One program a head of a sample, the whole head in registers: q, k and v are read once, packed, and
so is their gradient written. The softmax is in fp32; the backward pass computes it again. Importing
this module registers the operator; where Triton is absent it raises ImportError.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _load(qkv, keys, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
          BD: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """q, k, v, the softmax in fp32, where they lie and which of the padded places do."""
    sample = tl.program_id(0).to(tl.int64)
    n, d = tl.arange(0, P), tl.arange(0, BD)
    inside = (n[:, None] < N) & (d[None, :] < D)
    at = sample * N * 3 * H * D + tl.program_id(1) * D + n[:, None] * (3 * H * D) + d[None, :]
    q = tl.load(qkv + at, mask=inside, other=0.0)
    k = tl.load(qkv + at + H * D, mask=inside, other=0.0)
    v = tl.load(qkv + at + 2 * H * D, mask=inside, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * (D**-0.5)
    seen = n[None, :] < N
    if CAUSAL:
        seen = seen & (n[None, :] <= n[:, None])
    if MASKED:
        seen = seen & (tl.load(keys + sample * N + n, mask=n < N, other=0) != 0)[None, :]
    scores = tl.where(seen, scores, -1e30)  # finite: a row without a key is no NaN, but zero
    e = tl.where(seen, tl.exp(scores - tl.max(scores, 1)[:, None]), 0.0)
    return q, k, v, e / tl.maximum(tl.sum(e, 1), 1e-30)[:, None], at, inside


@triton.jit
def _place(N: tl.constexpr, H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, BD: tl.constexpr):
    """Where this head's rows of (B, N, H, D) are."""
    n, d = tl.arange(0, P), tl.arange(0, BD)
    head = tl.program_id(0).to(tl.int64) * N * H * D + tl.program_id(1) * D
    return head + n[:, None] * (H * D) + d[None, :]


@triton.jit
def forward_kernel(qkv, keys, out, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
                   P: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr,
                   MASKED: tl.constexpr):  # fmt: skip
    _q, _k, v, p, _at, inside = _load(qkv, keys, N, H, D, P, BD, CAUSAL, MASKED)
    o = tl.dot(p.to(v.dtype), v, input_precision="ieee")
    tl.store(out + _place(N, H, D, P, BD), o.to(out.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(qkv, keys, grad, dqkv, N: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
                    P: tl.constexpr, BD: tl.constexpr, CAUSAL: tl.constexpr,
                    MASKED: tl.constexpr):  # fmt: skip
    q, k, v, p, at, inside = _load(qkv, keys, N, H, D, P, BD, CAUSAL, MASKED)
    do = tl.load(grad + _place(N, H, D, P, BD), mask=inside, other=0.0)
    dv = tl.dot(tl.trans(p.to(v.dtype)), do, input_precision="ieee")
    dp = tl.dot(do, tl.trans(v), input_precision="ieee")
    ds = (p * (dp - tl.sum(dp * p, 1)[:, None]) * (D**-0.5)).to(v.dtype)
    kind = dqkv.dtype.element_ty
    tl.store(dqkv + at, tl.dot(ds, k, input_precision="ieee").to(kind), mask=inside)
    dk = tl.dot(tl.trans(ds), q, input_precision="ieee")
    tl.store(dqkv + at + H * D, dk.to(kind), mask=inside)
    tl.store(dqkv + at + 2 * H * D, dv.to(kind), mask=inside)


def constants(n: int, heads: int, size: int, causal: bool, masked: bool) -> dict[str, Any]:
    """What a kernel is compiled for; of the warps the fewest whose registers leave room for several
    programs a multiprocessor on sm_90, by ptxas."""
    padded = max(16, triton.next_power_of_2(n))
    warps = 1 if padded == 16 else 4 if size <= 64 else 8
    return {"N": n, "H": heads, "D": size, "P": padded, "BD": triton.next_power_of_2(size),
            "CAUSAL": causal, "MASKED": masked, "num_warps": warps}  # fmt: skip


def launch(kernel: Any, qkv: Tensor, valid: Tensor | None, causal: bool, *others: Tensor) -> None:
    """Run a kernel on qkv (B, N, 3, H, D), valid (B, N) bool or None, and what else it takes, the
    last its result: all contiguous."""
    batch, n, _, heads, size = qkv.shape
    keys = qkv if valid is None else valid.contiguous().view(torch.uint8)
    chosen = constants(n, heads, size, causal, valid is not None)
    kernel[(batch, heads)](qkv, keys, *others, **chosen)


@torch.library.custom_op("clipa::short_attention", mutates_args=())
def short_attention(qkv: Tensor, valid: Tensor | None, causal: bool) -> Tensor:
    """(B, N, H·D) of packed qkv (B, N, 3, H, D); valid (B, N) bool: the keys that are seen."""
    qkv = qkv.contiguous()
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])
    launch(forward_kernel, qkv, valid, causal, out)
    return out


@torch.library.custom_op("clipa::short_attention_backward", mutates_args=())
def _backward(qkv: Tensor, valid: Tensor | None, causal: bool, grad: Tensor) -> Tensor:
    qkv = qkv.contiguous()
    packed = torch.empty_like(qkv)
    launch(backward_kernel, qkv, valid, causal, grad.contiguous(), packed)
    return packed


@short_attention.register_fake
def _(qkv: Tensor, valid: Tensor | None, causal: bool) -> Tensor:
    return qkv.new_empty(*qkv.shape[:2], qkv.shape[3] * qkv.shape[4])


@_backward.register_fake
def _(qkv: Tensor, valid: Tensor | None, causal: bool, grad: Tensor) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor | None, bool], output: Tensor) -> None:
    qkv, valid, ctx.causal = inputs
    ctx.save_for_backward(qkv, valid)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    qkv, valid = ctx.saved_tensors
    return _backward(qkv, valid, ctx.causal, grad), None, None


short_attention.register_autograd(_differentiate, setup_context=_keep)
