"""The loss on several ranks is the loss and the gradient of one float64 process."""

import pytest
import torch
import torch.nn.functional as F
from engine_cases import GLOBAL_BATCH, float64_loss
from ranks import run_ranks

WIDTH = 24


def features(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(GLOBAL_BATCH, WIDTH, generator=generator)
    texts = images + 0.5 * torch.randn(GLOBAL_BATCH, WIDTH, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


def loss_on_a_rank(rank: int):
    from pretrain.losses.contrastive import ContrastiveLoss, LossOptions

    world = torch.distributed.get_world_size()
    local = GLOBAL_BATCH // world
    mine = slice(rank * local, (rank + 1) * local)
    images, texts = (t[mine].clone().requires_grad_() for t in features())
    loss = ContrastiveLoss(LossOptions())
    result = loss(images, texts)
    result.loss.backward()
    # What DeepSpeed does with every parameter's gradient: the mean over ranks. A feature has one
    # owner, so its gradient is divided by the number of ranks.
    scale = loss.log_scale.grad.clone()
    torch.distributed.all_reduce(scale)
    value = result.loss.detach().clone()
    torch.distributed.all_reduce(value)
    return value / world, images.grad / world, texts.grad / world, scale / world


@pytest.mark.parametrize("world_size", [2, 4])
def test_loss_and_gradients_equal_one_float64_process(world_size):
    images, texts = (t.double().requires_grad_() for t in features())
    from pretrain.losses.contrastive import LossOptions

    log_scale = torch.tensor([LossOptions().initial_scale], dtype=torch.float64).log()
    log_scale.requires_grad_()
    expected = float64_loss(images, texts, log_scale)
    expected.backward()
    parts = run_ranks(loss_on_a_rank, world_size)
    found = {
        "image gradient": (torch.cat([p[1] for p in parts]), images.grad),
        "text gradient": (torch.cat([p[2] for p in parts]), texts.grad),
        "log scale gradient": (parts[0][3], log_scale.grad),
        "loss": (parts[0][0], expected.detach()),
    }
    for name, (ours, theirs) in found.items():
        worst = float((ours.double() - theirs).abs().max() / theirs.abs().max())
        assert worst < 1e-5, f"{name}: largest relative difference {worst}"
