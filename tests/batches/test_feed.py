"""Batches on their way to the device, and pictures made a slice at a time."""

import pytest
import torch
from fed_batches import COUNT, check_feed, host_batches

from pretrain.batches.augment import AUGMENT_DRAWS, Pictures, prepare
from pretrain.batches.feed import feed
from pretrain.batches.options import AugmentOptions

CPU = torch.device("cpu")


def test_batches_arrive_as_they_were_sent():
    check_feed(CPU, pinned=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU; `make cuda-check` runs it too")
@pytest.mark.parametrize("pinned", [True, False])
def test_batches_arrive_on_a_busy_gpu_as_they_were_sent(pinned):
    check_feed(torch.device("cuda", 0), pinned=pinned)


def test_all_patch_tokens_need_no_index():
    assert all(fed.keep_index is None for fed in feed(host_batches(pinned=False, kept=False), CPU))


def test_a_fault_of_the_loader_reaches_the_step():
    def failing():
        stream = host_batches(pinned=False)
        yield next(stream)
        raise OSError("shard 7 is gone")

    fed = feed(failing(), CPU)
    next(fed)
    with pytest.raises(OSError, match="shard 7"):
        next(fed)


def test_nothing_is_built_that_is_not_asked_for():
    asked = []

    def counted():
        for number, batch in enumerate(host_batches(pinned=False)):
            asked.append(number)
            yield batch

    stream = feed(counted(), CPU)
    next(stream), next(stream)
    assert asked == [0, 1] and COUNT > 2


@pytest.mark.parametrize("normalisation", ["imagenet", "openai"])
def test_slices_of_pictures_are_the_whole_batch_prepared(normalisation):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12, 24, 24, 3), dtype=torch.uint8, generator=generator)
    draws = torch.rand(12, AUGMENT_DRAWS, generator=generator)
    options = AugmentOptions(rotate_rad=0.3, shift=0.1, brightness=0.4, contrast=0.4, grey=0.5)
    whole = prepare(images, draws, options, normalisation, torch.float32)
    pictures = Pictures(
        images=images,
        draws=draws,
        options=options,
        normalisation=normalisation,
        dtype=torch.float32,
    )
    assert len(pictures) == 12
    parts = torch.cat([pictures[at : at + 5] for at in range(0, 12, 5)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert torch.equal(pictures[3:7], pictures[3:7])
