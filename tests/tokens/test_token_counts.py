"""A dataset counts its token ids, the same however it was built, and training checks them."""

import io
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import WORDS, encoded, options, picture, plain_corpus, write_corpus
from dataset_copies import change_manifest

from data_prep.__main__ import main
from data_prep.build.pipeline import build_dataset
from data_prep.verify import dataset_faults
from pretrain.batches.collate import Collator, text_counts, text_edges
from pretrain.batches.options import CropOptions
from pretrain.dataset.manifest import TOKEN_COUNTS_FILE, read_manifest, read_token_counts
from pretrain.dataset.reader import Dataset
from pretrain.tokens.options import TokenOptions


def counted(directory: Path) -> np.ndarray:
    """An independent count, of the rows as they are read."""
    dataset = Dataset(directory, "full")
    counts = np.zeros(dataset.vocabulary.size, np.uint64)
    for row in range(len(dataset)):
        for token in dataset.read_ids(row):
            counts[token] += 1
    return counts


def test_counts_are_of_all_kept_captions_whoever_built_them(tmp_path: Path) -> None:
    # The second half repeats the first: parts that lose samples when they are joined.
    images = [encoded(picture(i % 20)) for i in range(40)]
    texts = [f"{WORDS[i % 20 % 11]} {i % 20}" for i in range(40)]
    source = write_corpus(
        tmp_path / "corpus.parquet",
        {"image": images, "caption": texts, "more": [None, "a red dog"] * 20},
    )
    captions = ("one={caption}", "two={more}")
    whole, _ = build_dataset(
        options(source, tmp_path / "whole", captions=captions, shard_samples=7)
    )
    assert whole.samples == 20 and whole.rejected["duplicate_key"] == 20
    counts = read_token_counts(tmp_path / "whole", whole)
    assert (counts == counted(tmp_path / "whole")).all() and counts.sum() > 100
    parts = [
        "build",
        "--source",
        str(source),
        "--out",
        str(tmp_path / "parts"),
        "--tiers",
        "full:95",
    ]
    parts += ["--caption", captions[0], "--caption", captions[1], "--shard-samples", "7"]
    parts += ["--vocab-size", "600", "--min-image-px", "16", "--task-count", "3"]
    parts += ["--tagger", "none", "--workers", "1"]
    for share in ("2", "0", "1"):
        assert main([*parts, "--task-index", share]) == 0
    assert main(["merge", str(tmp_path / "parts"), "--workers", "1"]) == 0
    one, other = (tmp_path / name / TOKEN_COUNTS_FILE for name in ("whole", "parts"))
    assert one.read_bytes() == other.read_bytes()
    assert read_manifest(tmp_path / "parts").token_counts == whole.token_counts


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    source = plain_corpus(tmp_path / "corpus.parquet")
    build_dataset(options(source, tmp_path / "out", tagger="none"))
    return tmp_path / "out"


def collator(dataset: Dataset, reduction, **more) -> Collator:
    return Collator(
        dataset=dataset,
        tokens=TokenOptions(image_px=32, text_tokens=5, text_reduction=reduction, **more),
        patch_px=8, specials="bos", crop=CropOptions(), caption_weights={}, seed=0,
    )  # fmt: skip


def test_the_collator_keeps_rare_tokens_rather(dataset: Path) -> None:
    opened = Dataset(dataset, "full")
    counts = counted(dataset)
    positions = np.arange(40, dtype=np.int64)
    mean = {}
    for reduction in ("random", "frequency", "sentence", "syntax"):
        batch = collator(opened, reduction)(positions, positions % len(opened))
        again = collator(opened, reduction)(positions[7:9], (positions % len(opened))[7:9])
        assert (batch["text_ids"][7:9] == again["text_ids"]).all()
        content = batch["text_ids"][:, 1:]
        mean[reduction] = counts[content[content != opened.vocabulary.pad_id]].mean()
    assert mean["frequency"] < 0.8 * mean["random"], mean


def test_the_collator_ranks_words_where_the_recipe_says_so(tmp_path: Path) -> None:
    dataset = tmp_path / "out"
    source = plain_corpus(tmp_path / "corpus.parquet")
    build_dataset(options(source, dataset, tagger="textblob"))
    opened, positions = Dataset(dataset, "full"), np.arange(40, dtype=np.int64)
    rows = positions % len(opened)
    by_token = collator(opened, "syntax")(positions, rows)["text_ids"]
    by_word = collator(opened, "syntax", syntax_unit="word")(positions, rows)["text_ids"]
    assert 0 < int((by_word != by_token).any(axis=1).sum()) < 40
    change = dict(image_px=32, text_tokens=5, text_reduction="syntax", syntax_unit="word")
    assert text_edges(opened, TokenOptions(**change)) is not None
    assert text_edges(opened, TokenOptions(**{**change, "text_reduction": "block"})) is None
    (dataset / "tokenizer.model").unlink()
    with pytest.raises(
        ValueError, match=r"^a\.syntax_unit=word: .*; or set a\.syntax_unit to token"
    ):
        text_edges(opened, TokenOptions(**change), "a.syntax_unit")


def test_counts_that_are_not_the_manifest_s_are_named(dataset: Path) -> None:
    assert not list(dataset_faults(dataset, 1))
    path = dataset / TOKEN_COUNTS_FILE
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    assert [fault for fault in dataset_faults(dataset, 1) if TOKEN_COUNTS_FILE in fault]
    with pytest.raises(ValueError, match=r"stages.a.tokens.text_reduction=frequency.*token_counts"):
        text_counts(Dataset(dataset, "full"), "frequency", "stages.a.tokens.text_reduction")
    path.unlink()
    assert [fault for fault in dataset_faults(dataset, 1) if TOKEN_COUNTS_FILE in fault]


def test_a_dataset_of_another_version_is_named_with_its_remedy(dataset: Path) -> None:
    for version in (2, 3, 5):
        change_manifest(dataset, lambda manifest, v=version: manifest.update(format_version=v))
        with pytest.raises(
            ValueError, match=rf"version {version} found.*data_prep build"
        ) as refusal:
            read_manifest(dataset)
        assert "\n" not in str(refusal.value)


def test_counts_are_one_plain_array(dataset: Path) -> None:
    content = (dataset / TOKEN_COUNTS_FILE).read_bytes()
    counts = np.load(io.BytesIO(content), allow_pickle=False)
    assert (
        counts.dtype == np.dtype("<u8") and len(counts) == Dataset(dataset, "full").vocabulary.size
    )
