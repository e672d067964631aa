"""Concepts beside a dataset: `weigh` keeps its groups; a run chooses its batches by them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from collators import collator
from dataset_copies import change_manifest
from forked_runs import train

from data_prep.__main__ import main as data_prep
from pretrain.batches.balance import Balance
from pretrain.batches.loader import batches
from pretrain.batches.options import LoaderOptions
from pretrain.batches.order import SampleOrder
from pretrain.dataset.concepts import read_concepts
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.rows import sample_metadata, text_tier
from pretrain.dataset.sample_weights import open_weights

OPTION = "data.balance.concepts"


def keep(dataset: Path, column: str) -> np.ndarray:
    """The concepts of a column, which come with its weights."""
    assert data_prep(["weigh", str(dataset), "--by", column, "--out", column]) == 0
    return read_concepts(dataset, column, read_manifest(dataset), OPTION)[0]


def test_the_groups_that_weights_are_made_of_are_kept_as_concepts(copy):
    concepts = keep(copy, "subgroup")
    manifest = read_manifest(copy)
    metadata = sample_metadata(text_tier(copy, manifest), 0, manifest.samples)
    values = [meta["subgroup"] for meta in metadata]
    assert len(set(zip(concepts.tolist(), values, strict=True))) == len(set(values)) > 3
    assert set(concepts.tolist()) == set(range(len(set(values))))
    assert data_prep(["verify", str(copy)]) == 0


def stream(dataset: Path, concepts: np.ndarray, *, ranks: int, workers: int, start: int = 0):
    """(rows, pictures) of the balanced batches from a sample on, of all ranks together."""
    collate = collator(dataset)
    weights = open_weights(dataset, "subgroup", collate.dataset.manifest)
    balance = Balance(concepts, candidates=4, weights=weights)
    order = SampleOrder(samples=len(concepts), seed=0, weights=weights, balance=balance)
    parts = [
        [
            (batch["rows"], batch["images"].copy())
            for batch in batches(
                collator=collate, order=order, start=start, end=96, global_batch_samples=16,
                rank=rank, world_size=ranks, options=LoaderOptions(workers=workers),
            )
        ]
        for rank in range(ranks)
    ]  # fmt: skip
    steps = [part for step in zip(*parts, strict=True) for part in step]
    return [np.concatenate(column) for column in zip(*steps, strict=True)]


def test_batches_are_the_same_for_any_ranks_workers_and_interruption(copy):
    concepts = keep(copy, "subgroup")
    rows, images = stream(copy, concepts, ranks=1, workers=0)
    counts = np.stack([np.bincount(concepts[one], minlength=8) for one in rows.reshape(-1, 16)])
    present = np.bincount(concepts, minlength=8) > 20  # these four candidates hold nearly always
    assert (counts[:, present] >= 1).all(), counts
    for ranks, workers in ((1, 2), (2, 0), (4, 1)):
        again = stream(copy, concepts, ranks=ranks, workers=workers)
        assert np.array_equal(again[0], rows) and np.array_equal(again[1], images), (ranks, workers)
    resumed = stream(copy, concepts, ranks=2, workers=1, start=48)
    assert np.array_equal(resumed[0], rows[48:]) and np.array_equal(resumed[1], images[48:])


def test_a_joined_dataset_is_balanced_over_its_sources(tiny_dataset, tiny_evaluation_set, tmp_path):
    sources = [str(one) for one in (tiny_dataset, tiny_evaluation_set)]
    both = [word for source in sources for word in ("--source", source)]
    assert data_prep(["join", str(tmp_path / "all"), *both]) == 0
    artists = keep(tmp_path / "all", "artist")
    assert artists.max() == 2  # two of the one source, one of the other
    order = SampleOrder(samples=len(artists), seed=0, balance=Balance(artists, candidates=5))
    for first in range(0, 2 * len(artists) // 5, 12):
        counts = np.bincount(artists[order.rows(order.share(first, 12, 0, 1))], minlength=3)
        assert counts.tolist() == [4, 4, 4]


def test_concepts_that_are_not_this_datasets_are_named_in_one_line(copy):
    concepts, manifest = keep(copy, "artist").copy(), read_manifest(copy)

    def fault(name: str = "artist") -> str:
        with pytest.raises((ValueError, OSError), match=rf"data\.balance\.concepts='{name}'") as it:
            read_concepts(copy, name, read_manifest(copy), OPTION)
        assert "\n" not in str(it.value)
        return str(it.value)

    assert "has concepts ['artist']" in fault("other")
    for wrong, named in (
        (concepts[1:], r"expected int32 of (230,)"),
        (concepts.astype(np.int64), "holds int64"),
        (concepts - 1, "has the concept -1"),
        (concepts + 1, "is not that of artist.json"),
    ):
        np.save(copy / "concepts/artist.npy", wrong)
        assert named in fault()
    assert data_prep(["verify", str(copy)]) == 1
    np.save(copy / "concepts/artist.npy", concepts)
    assert len(read_concepts(copy, "artist", manifest, OPTION)[0]) == 230
    change_manifest(copy, lambda m: m["provenance"].update(source="another"))
    assert "was made from another version of" in fault()


@pytest.mark.soak
def test_a_run_is_balanced_and_refuses_other_concepts_at_a_resume(copy, tmp_path):
    keep(copy, "subgroup")
    options = ("--data.balance.concepts", "subgroup", "--checkpoint.keep", "9")
    ended = train(tmp_path / "run", copy, *options)
    assert ended.code == 0, ended.output
    losses = (tmp_path / "run/metrics.jsonl").read_text().count('"loss"')
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000010")  # so it stands inside a stage
    again = train(tmp_path / "run", copy, *options, "--data.balance.candidates", "2")
    assert again.code == 2 and "data.balance.candidates=2 (was 5)" in again.output, again.output
    assert data_prep(["weigh", str(copy), "--by", "artist", "--out", "subgroup"]) == 0
    again = train(tmp_path / "run", copy, *options)
    assert again.code == 2 and "was trained with other concepts" in again.output, again.output
    keep(copy, "subgroup")
    again = train(tmp_path / "run", copy, *options, ranks=2)
    assert again.code == 0, again.output
    assert (tmp_path / "run/metrics.jsonl").read_text().count('"loss"') == losses
