"""Batches on their way to a device that is busy: what arrives is what was sent."""

from collections.abc import Iterator

import numpy as np
import torch

from pretrain.batches.augment import AUGMENT_DRAWS
from pretrain.batches.collate import Batch
from pretrain.batches.feed import feed

COUNT, BATCH, SIDE = 12, 64, 96


def host_batches(*, pinned: bool, kept: bool = True) -> Iterator[Batch]:
    """Each made only when it is asked for, into memory that the ones before it may have left."""
    draws = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = torch.empty((BATCH, SIDE, SIDE, 3), dtype=torch.uint8, pin_memory=pinned).numpy()
        pixels[:] = draws.integers(0, 256, pixels.shape, np.uint8)
        yield Batch(
            positions=np.arange(BATCH) + number * BATCH,
            rows=np.arange(BATCH),
            images=pixels,
            text_ids=draws.integers(0, 999, (BATCH, 8)),
            keep_index=draws.integers(0, 36, (BATCH, 9)) if kept else None,
            augment=draws.random((BATCH, AUGMENT_DRAWS), np.float32),
            replaced={},
            replaced_first={},
            replaced_in_a_row=0,
        )


def check_feed(device: torch.device, *, pinned: bool) -> None:
    """AssertionError where a batch arrives damaged, late, or in another order."""
    busy = torch.ones(2048, 2048, device=device) if device.type == "cuda" else None
    received = 0
    expected = host_batches(pinned=False)
    for fed, sent in zip(feed(host_batches(pinned=pinned), device), expected, strict=True):
        # The device is given work that reads the batch long after the host has gone on.
        if busy is not None:
            for _ in range(20):
                busy = (busy @ busy).clamp_(-1, 1)
        sums = [fed.images.long().sum(), fed.text_ids.sum(), fed.augment.double().sum()]
        assert fed.images.device.type == device.type
        assert fed.keep_index is not None and sent["keep_index"] is not None
        sums.append(fed.keep_index.sum())
        names = ("images", "text_ids", "augment", "keep_index")
        whole = [np.asarray(sent[name], np.float64).sum() for name in names]  # type: ignore[literal-required]
        assert np.allclose([float(one) for one in sums], whole, rtol=1e-12), f"batch {received}"
        assert np.array_equal(fed.images.cpu().numpy(), sent["images"])
        assert np.array_equal(fed.host["positions"], sent["positions"])
        received += 1
    assert received == COUNT
