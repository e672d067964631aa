"""The short attention kernel against float64, and the towers' attention against the libraries'."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import clip
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.attention import attention

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# CLIP's text tower, and CLIPA's with padding.
TEXTS = ({"causal": True, "pool": "eos", "specials": "bos_eos"}, {"padding_mask": True})
IDS = torch.tensor([[1, 7, 8, 2, 0, 0, 0, 0], [1, 9, 10, 11, 12, 13, 14, 2]])


def short_kernel(asked: str, **variables: str) -> str:
    pytest.importorskip("triton", reason="the kernel needs Triton, which torch's CUDA wheels bring")
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "short_kernel.py"), asked],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernel_equals_float64_in_tritons_interpreter():
    rows = [line.split() for line in short_kernel("values", TRITON_INTERPRET="1").splitlines()]
    assert len(rows) == 64
    for dtype, *case, out, gradient in rows:
        worst = max(float(out), float(gradient))
        assert worst < {"float32": 2e-6, "float16": 1e-3}[dtype], (case, worst)


def test_the_kernel_keeps_a_head_in_registers_and_reads_16_bytes_at_a_time():
    rows = [line.split() for line in short_kernel("resources").splitlines()]
    assert len(rows) == 14
    for kernel, *case, stack, wide, narrow in rows:
        assert (int(stack), int(narrow)) == (0, 0), (kernel, case, stack, narrow)
        assert int(wide) > 0, (kernel, case)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_equals_a_softmax_written_out(explicit, causal, padded):
    torch.manual_seed(0)
    qkv = torch.randn(2, 9, 3, 2, 8, dtype=torch.float64, requires_grad=True)
    valid = torch.arange(9) < torch.tensor([[4], [9]]) if padded else None
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / 8**0.5
    for row in range(2):
        for query in range(9):
            seen = [(not causal or key <= query) and (key < 4 or row == 1 or not padded)
                    for key in range(9)]  # fmt: skip
            scores[row, :, query, ~torch.tensor(seen)] = -torch.inf
    expected = torch.einsum("bhnm,bhmd->bnhd", scores.softmax(-1), v).flatten(2)
    found = attention(qkv, causal=causal, valid=valid, explicit=explicit)
    direction = torch.randn_like(found)
    gradients = [torch.autograd.grad(each, qkv, direction)[0] for each in (found, expected)]
    worst = max(
        float((found - expected).abs().max().detach()),
        float((gradients[0] - gradients[1]).abs().max()),
    )
    assert worst < 1e-14, f"largest difference {worst}"


def worst_gradient(model, output, expected) -> float:
    """The largest difference of two outputs and of their gradients of a model's weights."""
    direction = torch.randn_like(output)
    weights = [p for p in model.parameters() if p.requires_grad]
    both = [
        torch.autograd.grad(each, weights, direction, allow_unused=True)
        for each in (output, expected)
    ]
    differences = [float((output - expected).abs().max().detach())]
    for ours, theirs in zip(*both, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            differences.append(float((ours - theirs).abs().max()))
    return max(differences)


@pytest.mark.parametrize("explicit", [False, True])
def test_the_image_tower_equals_timms(explicit):
    from timm.layers import Attention

    tower = clip(image={"pool": "cls"}, explicit=explicit).image.double().train()
    images, keep = torch.randn(2, 3, 48, 48).double(), torch.tensor([[0, 5, 35], [15, 2, 7]])
    tokens = tower.vit.patch_embed(images) + tower.positions  # timm's convolution
    tokens = torch.stack([row[index] for row, index in zip(tokens, keep, strict=True)])
    assert tower.vit.cls_token is not None
    tokens = torch.cat([tower.vit.cls_token.expand(2, -1, -1), tokens], 1)
    block: Any
    for block in tower.vit.blocks:
        theirs = Attention(64, num_heads=4, qkv_bias=True)
        theirs.qkv, theirs.proj = block.attn.qkv, block.attn.proj
        tokens = tokens + theirs(block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
    expected = tower.vit.norm(tokens)[:, 0]
    worst = worst_gradient(tower, tower(images, keep), expected)
    assert worst < 1e-12, f"largest difference {worst}"


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_text_tower_equals_transformers(text, explicit):
    tower = clip(text=text, explicit=explicit).text.double().train()
    theirs = type(tower.encoder)._from_config(tower.encoder.config).double().train()
    theirs.head = torch.nn.Identity()
    for name, parameter in tower.encoder.named_parameters():  # the same tensors
        place, _, leaf = name.rpartition(".")
        setattr(theirs.get_submodule(place), leaf, parameter)
    valid = IDS != 0
    mask = valid if tower.options.padding_mask else None
    expected = theirs(input_ids=IDS, attention_mask=mask).last_hidden_state
    worst = worst_gradient(tower, tower.hidden_states(IDS, mask), expected)
    assert worst < 1e-12, f"largest difference {worst}"


@pytest.mark.parametrize("text", TEXTS)
def test_each_tower_is_one_graph_whose_gradients_are_the_eager_ones(text):
    """With recomputed blocks too."""
    model = clip(text=text, explicit=False).double().train()
    images, keep = torch.randn(2, 3, 48, 48).double(), torch.tensor([[0, 5, 35], [15, 2, 7]])
    for recompute in (False, True):
        if recompute:
            model.image.checkpoint_blocks(2)
            model.text.checkpoint_blocks(2)
        for tower, inputs in ((model.image, (images, keep)), (model.text, (IDS,))):
            compiled = torch.compile(
                tower.forward, backend="aot_eager", dynamic=False, fullgraph=True
            )
            worst = worst_gradient(tower, compiled(*inputs), tower(*inputs))
            assert worst < 1e-12, f"{type(tower).__name__}, largest difference {worst}"


def test_patches_that_are_not_kept_are_not_embedded():
    tower = clip(image={"depth": 1}).image
    counts = []
    for kept in (36, 9):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            tower._embedded(torch.randn(2, 3, 48, 48), torch.arange(kept).expand(2, -1))
        counts.append(counter.get_total_flops())
    assert counts == [2 * 2 * kept * 192 * 64 for kept in (36, 9)]


def test_a_picture_of_another_size_is_refused():
    tower = clip().image
    for size in ((24, 96), (48, 56)):  # as many pixels, and more
        with pytest.raises(RuntimeError, match="unflatten"):
            tower(torch.zeros(1, 3, *size))
