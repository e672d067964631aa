"""The bytes of a dataset depend on the corpus and the options alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from data_prep_corpus import options, plain_corpus

from data_prep.build.pipeline import build_dataset
from data_prep.text.vocabulary import VocabularyOptions, sample_texts, train_tokenizer

REPOSITORY = Path(__file__).parents[2]


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.soak
def test_two_builds_are_equal_byte_for_byte(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 30)
    build_dataset(options(source, tmp_path / "a", tiers="48:90,full:95", shard_samples=13))
    # Another process, hash seed, time zone, folder and spelling of the options.
    subprocess.run(
        [
            *(sys.executable, "-m", "data_prep", "build", "--source", str(source)),
            *("--out", str(tmp_path / "elsewhere" / "b"), "--tiers", "48:90,full:95"),
            *("--shard-samples", "13", "--vocab_size=600"),
        ],
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"},
    )
    first, second = content(tmp_path / "a"), content(tmp_path / "elsewhere" / "b")
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []


@pytest.mark.soak
def test_overwriting_leaves_nothing_of_the_old_dataset(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 12)
    build_dataset(options(source, tmp_path / "a", tiers="full:95"))
    build_dataset(options(source, tmp_path / "b", tiers="32:90,full:95", shard_samples=3))
    (tmp_path / "b" / "notes.txt").write_text("mine")
    build_dataset(options(source, tmp_path / "b", tiers="full:95", overwrite=True))
    found = content(tmp_path / "b")
    assert found.pop("notes.txt") == b"mine"
    assert found == content(tmp_path / "a")


def test_a_dataset_s_own_tokenizer_can_be_used_again(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 12)
    build_dataset(options(source, tmp_path / "a"))
    model = (tmp_path / "a" / "tokenizer.model").read_bytes()
    own = tmp_path / "a" / "tokenizer.model"
    build_dataset(
        options(source, tmp_path / "a", where="split = 'test'", tokenizer=own, overwrite=True)
    )
    assert own.read_bytes() == model


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_a_tokenizer_twice_gives_the_same_model(kind: str) -> None:
    texts = [f"a {colour} dog number {i}" for i in range(50) for colour in ("red", "blue")]
    settings = VocabularyOptions(model_type=kind, vocab_size=400)  # type: ignore[arg-type]
    assert train_tokenizer(texts, settings) == train_tokenizer(texts, settings)


def test_a_large_corpus_is_sampled_evenly_and_always_alike() -> None:
    texts = [str(i) for i in range(10_000)]
    kept = sample_texts(texts, 1000)
    assert kept == sample_texts(iter(texts), 1000) and len(set(kept)) == 1000
    mean = sum(map(int, kept)) / 1000
    assert abs(mean - 5000) < 4 * 2887 / 1000**0.5, mean  # four standard errors of the mean
    assert sample_texts(texts[:5], 1000) == texts[:5]


def test_rows_that_are_dropped_leave_no_trace_in_the_samples(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 10)
    build_dataset(options(source, tmp_path / "a", where="number >= 5"))
    build_dataset(options(source, tmp_path / "b", where="NOT number < 5"))
    one, other = content(tmp_path / "a"), content(tmp_path / "b")
    assert [name for name in one if one[name] != other[name]] == ["manifest.json"]
