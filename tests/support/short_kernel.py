"""A process of its own for the short attention kernel, since Triton's interpreter is chosen at
import: `values` compares it with float64 in the interpreter, `resources` compiles it for sm_90."""

import itertools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
import triton

from pretrain.models import short_attention as short

# N, H, D
SHAPES = (
    (1, 2, 32),
    (8, 2, 64),
    (16, 1, 128),
    (17, 2, 80),
    (37, 2, 80),
    (50, 1, 64),
    (64, 2, 32),
    (64, 1, 128),
)
LAUNCHED = (
    (8, 12, 64),
    (16, 8, 128),
    (17, 16, 64),
    (37, 16, 80),
    (50, 12, 64),
    (64, 12, 32),
    (64, 16, 128),
)


def values() -> None:
    """Relative differences of the output and the gradient, one line a case."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3, 2, 32, requires_grad=True)
    for valid in (None, torch.ones(2, 5, dtype=torch.bool)):  # what torch.compile relies on
        torch.library.opcheck(short.short_attention, (qkv, valid, True))
    for dtype, (n, heads, size), causal, padded in itertools.product(
        (torch.float32, torch.float16), SHAPES, (False, True), (False, True)
    ):
        qkv = torch.randn(2, n, 3, heads, size, dtype=dtype, requires_grad=True)
        grad = torch.randn(2, n, heads * size, dtype=dtype)
        valid = torch.arange(n) < torch.tensor([[n], [max(1, n // 3)]]) if padded else None
        exact = qkv.detach().double().requires_grad_()
        q, k, v = exact.permute(2, 0, 3, 1, 4)
        seen = torch.ones(n, n, dtype=torch.bool).tril(0 if causal else n)
        if valid is not None:
            seen = seen & valid[:, None, None]
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)
        out = short.short_attention(qkv, valid, causal)
        pairs = [(out, expected.flatten(2))]
        pairs += zip(
            torch.autograd.grad(out, qkv, grad),
            torch.autograd.grad(pairs[0][1], exact, grad.double()),
            strict=True,
        )
        # With one token the gradient of q and k is zero: the difference is of the whole packed one.
        found = [float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in pairs]
        print(str(dtype).removeprefix("torch."), n, heads, size, causal, padded, *found)


def resources() -> None:
    """Stack bytes, loads of 16 bytes and narrower ones of qkv and grad, one line a kernel."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for (n, heads, size), kernel in itertools.product(
        LAUNCHED, (short.forward_kernel, short.backward_kernel)
    ):
        constants = short.constants(n, heads, size, False, False)
        warps = constants.pop("num_warps")
        names = kernel.arg_names
        aligned = [place for place, name in enumerate(names) if name not in constants]
        compiled = triton.compile(
            ASTSource(
                fn=kernel,
                signature={name: "constexpr" if name in constants else "*bf16" for name in names},
                constexprs=constants,
                attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
            ),
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": warps},
        )
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            usage = subprocess.run(
                [tool, "--dump-resource-usage", file.name], capture_output=True, text=True
            ).stdout
        (stack,) = re.findall(r"STACK:(\d+)", usage)
        loads = re.findall(r"ld\.global[.\w:]*", compiled.asm["ptx"])
        wide = sum(".v4" in load for load in loads)
        print(kernel.__name__, n, heads, size, stack, wide, len(loads) - wide)


if __name__ == "__main__":
    {"values": values, "resources": resources}[sys.argv[1]]()
