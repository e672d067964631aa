"""Self-attention on packed q, k and v: the short kernel, torch's own or explicit products."""

import functools
import importlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def attention(qkv: Tensor, *, causal: bool, valid: Tensor | None, explicit: bool) -> Tensor:
    """(B, N, H·D) of packed qkv (B, N, 3, H, D).

    valid (B, N) bool: the keys that are no padding; None: all. explicit: matmul-softmax. Otherwise
    the short kernel where it is registered and covers the case, and torch's own attention.
    """
    _, tokens, _, _, size = qkv.shape
    if qkv.is_cuda and not explicit and _is_covered(tokens, size, qkv.dtype):
        out: Tensor = torch.ops.clipa.short_attention(qkv, valid, causal)
        return out
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    seen = None if valid is None else valid[:, None, None]
    if causal and (explicit or seen is not None):
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=qkv.device).tril()
        seen = past if seen is None else seen & past
    if explicit:
        scores = (q * size**-0.5) @ k.transpose(2, 3)
        if seen is not None:
            hidden = torch.zeros_like(seen, dtype=scores.dtype)
            scores = scores + hidden.masked_fill(~seen, torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        if valid is not None and seen is not None:  # nothing to see without a key, as in torch's
            weights = weights * seen.any(-1, keepdim=True)
        out = weights @ v
    else:
        is_causal = causal and seen is None
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=is_causal)
    return out.transpose(1, 2).flatten(2)


@torch.compiler.assume_constant_result  # a compiled graph cannot print
def _is_covered(tokens: int, size: int, dtype: torch.dtype) -> bool:
    return _covers(tokens, size, dtype)


@functools.cache
def _covers(tokens: int, size: int, dtype: torch.dtype) -> bool:
    """Whether the short kernel takes it. In fp32 its backward pass outgrows the registers."""
    if not register_short_attention():
        return False
    if tokens <= 64 and 32 <= size <= 128 and dtype in (torch.bfloat16, torch.float16):
        return True
    _note(
        f"attention over {tokens} tokens with heads of {size} in {dtype} is torch's own: the short "
        "kernel takes at most 64 tokens, heads of 32 to 128, bf16 or fp16"
    )
    return False


@functools.cache
def register_short_attention() -> bool:
    """Whether CUDA tensors can take the short kernel; a line says why where they cannot.

    Triton builds what launches a kernel at its first launch, for which it needs a C compiler: one
    kernel each way is launched here, before training begins.
    """
    try:
        importlib.import_module("pretrain.models.short_attention")
        qkv = torch.zeros(1, 16, 3, 1, 32, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        torch.ops.clipa.short_attention(qkv, None, False).sum().backward()
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        _note(f"attention is torch's own: the short kernel needs Triton and a compiler ({told})")
        return False
    return True


def _note(text: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"note: {text}", flush=True)
