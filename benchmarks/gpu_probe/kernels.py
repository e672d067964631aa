"""A and B: matrix products, copies and attention at the real shapes, and E's loss."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_probe.plan import Plan
from benchmarks.gpu_probe.rows import Row, Rows
from benchmarks.towers import Shape, seconds
from pretrain.losses.pairs import CHUNK_SAMPLES, Layout
from pretrain.losses.softmax import _CrossEntropies
from pretrain.models.attention import attention, register_short_attention

REPEATS, JUDGED = 10, 4
Attention = Callable[[Tensor], Tensor]


def products(shape: Shape) -> dict[str, tuple[int, int, int]]:
    """(M, K, N) of the towers' matrix products, by name."""
    patch = 3 * shape.image["patch_px"] ** 2
    found = {"patches": (shape.batch * shape.kept, patch, shape.image["width"])}
    for name, tower, tokens in (
        ("image", shape.image, shape.model.image.seq_len(shape.kept)),
        ("text", shape.text, shape.text_tokens),
    ):
        rows, width = shape.batch * tokens, tower["width"]
        hidden = int(width * tower["mlp_ratio"])
        found[f"{name} qkv"] = (rows, width, 3 * width)
        found[f"{name} output"] = (rows, width, width)
        found[f"{name} up"] = (rows, width, hidden)
        found[f"{name} down"] = (rows, hidden, width)
    return found


def ceilings(plan: Plan, rows: Rows, device: torch.device) -> None:
    """A: TFLOP/s of each product and of its two gradients; GB/s of a copy, read and written."""
    source = torch.empty(plan.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = partial(timed, partial(target.copy_, source), device)
    rows.measure("copy", lambda: {"gb_per_s": 2e-6 * plan.copy_bytes / copied()})
    del source, target
    done: set[tuple[int, int, int]] = set()
    for shape_name, shape in plan.shapes.items():
        for name, sizes in products(shape).items():
            if sizes not in done:
                rows.measure(f"{shape_name} {name}", partial(product_rates, sizes, device))
            done.add(sizes)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of a call."""

    def step() -> None:
        call()

    seconds(step, 3, device)
    return 1e3 * seconds(step, REPEATS, device)


def product_rates(sizes: tuple[int, int, int], device: torch.device) -> Row:
    m, k, n = sizes
    x = torch.randn(m, k, device=device).bfloat16()
    weight = torch.randn(n, k, device=device).bfloat16()
    grad = torch.randn(m, n, device=device).bfloat16()
    calls = {
        "forward": lambda: F.linear(x, weight),
        "input gradient": lambda: grad @ weight,
        "weight gradient": lambda: grad.T @ x,
    }
    tflops = {name: 2e-9 * m * k * n / timed(call, device) for name, call in calls.items()}
    return {"m_k_n": sizes, "tflops": tflops}


def attentions(plan: Plan, rows: Rows, device: torch.device) -> None:
    """B: every kernel on packed q, k and v of each tower of each shape."""
    if device.type == "cuda":
        register_short_attention()
    done: set[tuple[int, ...]] = set()
    for shape in plan.shapes.values():
        seq_len = shape.model.image.seq_len(shape.kept)
        for tower, tokens in ((shape.image, seq_len), (shape.text, shape.text_tokens)):
            heads = tower["heads"]
            sizes = (shape.batch, tokens, 3, heads, tower["width"] // heads)
            if sizes in done:
                continue
            done.add(sizes)
            for name, kernel in kernels().items():
                title = f"{shape.batch}x{heads} heads of {sizes[-1]}, {tokens} tokens, {name}"
                rows.measure(title, partial(attention_row, sizes, kernel, device))


def kernels() -> dict[str, Attention]:
    """(B, N, H·D) of packed (B, N, 3, H, D), by name. What a device lacks raises."""

    def fused(backend: SDPBackend, qkv: Tensor) -> Tensor:
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        with sdpa_kernel([backend]):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def short(qkv: Tensor) -> Tensor:
        found: Tensor = torch.ops.clipa.short_attention(qkv, None, False)
        return found

    return {
        "flash": partial(fused, SDPBackend.FLASH_ATTENTION),
        "efficient": partial(fused, SDPBackend.EFFICIENT_ATTENTION),
        "cudnn": partial(fused, SDPBackend.CUDNN_ATTENTION),
        "math": partial(fused, SDPBackend.MATH),
        "products": explicit,
        "short": short,
    }


def explicit(qkv: Tensor) -> Tensor:
    return attention(qkv, causal=False, valid=None, explicit=True)


def attention_row(sizes: tuple[int, ...], kernel: Attention, device: torch.device) -> Row:
    """Milliseconds, and how far from float64: largest difference over the largest number."""
    torch.manual_seed(0)
    qkv = torch.randn(*sizes, device=device).bfloat16().requires_grad_()
    out = kernel(qkv)
    slope = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, qkv, slope)
    exact = qkv.detach()[:JUDGED].double().requires_grad_()
    judge = explicit(exact)
    (judged,) = torch.autograd.grad(judge, exact, slope[:JUDGED].double())

    @torch.no_grad()
    def apart(ours: Tensor, theirs: Tensor) -> float:
        return float((ours[:JUDGED] - theirs).abs().max() / theirs.abs().max())

    errors = {"output_apart": apart(out, judge), "gradient_apart": apart(found, judged)}
    del out, found

    def both() -> None:
        torch.autograd.grad(kernel(qkv), qkv, slope)

    with torch.no_grad():
        forward = timed(lambda: kernel(qkv), device)
    return {"forward_ms": forward, "both_ms": timed(both, device), **errors}


def losses(plan: Plan, rows: Rows, device: torch.device) -> None:
    """E: the loss of some rows against all columns, forward and backward."""
    for sizes in plan.losses:
        for tf32 in (False, True):
            title = f"loss {' x '.join(map(str, sizes))}, {'TF32' if tf32 else 'fp32'}"
            rows.measure(title, partial(loss_row, sizes, tf32, device))


def loss_row(sizes: tuple[int, int, int], tf32: bool, device: torch.device) -> Row:
    many, columns, width = sizes
    torch.manual_seed(0)
    images = 14 * F.normalize(torch.randn(many, width, device=device), dim=1)
    texts = F.normalize(torch.randn(columns, width, device=device), dim=1)
    images.requires_grad_()
    texts.requires_grad_()
    layout = Layout(first_own=0, chunk_samples=CHUNK_SAMPLES, tf32=tf32)

    def both() -> None:
        loss, _ = _CrossEntropies.apply(images, texts, layout)
        torch.autograd.grad(loss, (images, texts))

    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    spent = timed(both, device)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 2**30 if cuda else None
    return {"both_ms": spent, "peak_gib": peak}
