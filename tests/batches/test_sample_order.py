"""The sample stream is arithmetic: a permutation per epoch, the same for any ranks or workers."""

import itertools
import statistics
from pathlib import Path

import numpy as np
import psutil
import pytest
from tiny_runs import ROOT

from pretrain.batches.collate import Collator
from pretrain.batches.loader import batches
from pretrain.batches.options import CropOptions, LoaderOptions
from pretrain.batches.order import CHUNK_SAMPLES, SampleOrder
from pretrain.dataset.reader import Dataset
from pretrain.recipe.parsing import parse
from pretrain.tokens.options import TokenOptions


@pytest.mark.parametrize("samples", [1, 7, CHUNK_SAMPLES, CHUNK_SAMPLES + 1, 150_001])
def test_every_epoch_is_a_permutation_unlike_the_last(samples):
    order = SampleOrder(samples=samples, seed=3)
    rows = order.rows(np.arange(2 * samples)).reshape(2, samples)
    for epoch in rows:
        assert (np.sort(epoch) == np.arange(samples)).all()
    if samples > 100:
        assert (rows[0] == rows[1]).mean() < 0.05


def test_any_piece_of_the_stream_equals_the_whole():
    order = SampleOrder(samples=3000, seed=0)
    whole = order.rows(np.arange(9000))
    for piece in (np.arange(2990, 3010), np.array([8999, 0, 4500]), np.arange(6)):
        assert (SampleOrder(samples=3000, seed=0).rows(piece) == whole[piece]).all()


def test_a_window_of_few_batches_is_refused():
    words = ["--config", str(ROOT / "pretrain/recipes/tiny.yaml")]
    with pytest.raises(ValueError, match=r"data\.shuffle_window_samples=255.*choose 256 or more"):
        parse([*words, "--data.shuffle_window_samples", "255"])


def collator(dataset: Path) -> Collator:
    return Collator(
        dataset=Dataset(dataset, "full"),
        tokens=TokenOptions(
            image_px=32,
            image_reduction="random",
            image_keep_tokens=5,
            text_tokens=6,
            text_reduction="random",
        ),
        patch_px=8,
        specials="bos",
        crop=CropOptions(),
        caption_weights={},
        seed=0,
    )


def stream(dataset: Path, *, world_size: int, workers: int, start: int = 0):
    """The global batches of positions start…96, put together from every rank's part."""
    ranks = [
        list(
            batches(
                collator=collator(dataset),
                order=SampleOrder(samples=len(Dataset(dataset, "full")), seed=0),
                start=start,
                end=96,
                global_batch_samples=16,
                rank=rank,
                world_size=world_size,
                options=LoaderOptions(workers=workers),
            )
        )
        for rank in range(world_size)
    ]
    names = ("positions", "rows", "images", "text_ids", "keep_index", "augment")
    return {
        name: np.concatenate([part[name] for step in zip(*ranks, strict=True) for part in step])
        for name in names
    }


def test_batches_do_not_depend_on_ranks_workers_or_interruption(tiny_dataset):
    whole = stream(tiny_dataset, world_size=1, workers=0)
    assert (whole["positions"] == np.arange(96)).all()
    for world_size, workers in ((1, 3), (2, 0), (2, 2), (4, 1), (8, 1)):
        other = stream(tiny_dataset, world_size=world_size, workers=workers)
        for name, values in whole.items():
            assert np.array_equal(values, other[name]), (world_size, workers, name)
    resumed = stream(tiny_dataset, world_size=2, workers=1, start=48)
    for name, values in whole.items():
        assert np.array_equal(values[48:], resumed[name]), name


def test_fifty_interruptions_of_changing_ranks_and_workers_change_no_sample(tiny_dataset):
    order = SampleOrder(samples=len(Dataset(tiny_dataset, "full")), seed=0)
    steps, batch = 400, 16
    undisturbed = order.rows(np.arange(steps * batch))
    draws = np.random.default_rng(0)
    cuts = [0, *sorted(draws.choice(np.arange(1, steps), 50, replace=False).tolist()), steps]
    one = collator(tiny_dataset)
    found = []
    for start, stop in itertools.pairwise(cuts):
        ranks = int(draws.choice([1, 2, 4, 8]))
        # Killed at `stop`: what the loader had built ahead is lost with it.
        streams = [
            batches(
                collator=one,
                order=SampleOrder(samples=order.epoch_samples, seed=0),
                start=start * batch,
                end=steps * batch,
                global_batch_samples=batch,
                rank=rank,
                world_size=ranks,
                options=LoaderOptions(workers=int(draws.integers(0, 5)), prefetch_batches=1),
            )
            for rank in range(ranks)
        ]
        parts = [list(itertools.islice(stream, stop - start)) for stream in streams]
        found += [part["rows"] for step in zip(*parts, strict=True) for part in step]
    assert (np.concatenate(found) == undisturbed).all()


@pytest.mark.soak
def test_memory_is_flat_over_many_epochs_and_nothing_is_left_in_shm(tiny_dataset):
    order = SampleOrder(samples=len(Dataset(tiny_dataset, "full")), seed=0)
    before = set(Path("/dev/shm").iterdir())
    stream = batches(
        collator=collator(tiny_dataset),
        order=order,
        start=0,
        end=16 * 4000,
        global_batch_samples=16,
        rank=0,
        world_size=1,
        options=LoaderOptions(workers=4),
    )
    process, sizes = psutil.Process(), []
    for step, _ in enumerate(stream):
        if step % 400 == 399:
            sizes.append(process.memory_info().rss / 2**20)
    assert len(sizes) == 10  # 278 epochs
    grown = statistics.mean(sizes[-3:]) - statistics.mean(sizes[2:5])
    assert grown < 5, f"{grown:.1f} MiB more after {sizes}"
    assert set(Path("/dev/shm").iterdir()) == before
