"""A dataset directory reads the same by its index, by webdataset and by Hugging Face datasets."""

import hashlib
import io
import json
import zlib
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import webdataset
from data_prep_corpus import caption, options, plain_corpus
from PIL import Image

from data_prep.build.pipeline import build_dataset
from data_prep.rejection import REASONS
from pretrain.dataset.manifest import INDEX_FILE, MEMBERS, Manifest, read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.tars import read_plain
from pretrain.tokens.tokenizer import open_tokenizer

DEMO_CORPUS = Path(__file__).parents[2] / "data_prep" / "demo_corpus" / "emoji.parquet"
CAPTIONS = ("label={caption}", "keywords={caption}, {keywords}")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("round_trip")
    source = plain_corpus(folder / "corpus.parquet", 40)
    build_dataset(
        options(
            source,
            folder / "out",
            captions=CAPTIONS,
            tiers="48:90,full:95",
            shard_samples=15,
            where="split = 'train'",
        )
    )
    return folder / "out"


def read_by_index(folder: Path, tier: str) -> list[dict[str, Any]]:
    """All samples by seeking to what the index says, each member checked by its crc32."""
    manifest = read_manifest(folder)
    samples = []
    for row in np.load(folder / tier / INDEX_FILE, allow_pickle=False):
        own, texts = (
            (folder / manifest.tiers[name].shards[row["shard"]].file).read_bytes()
            for name in (tier, manifest.text_tier)
        )
        sample: dict[str, Any] = {"key": row["key"].decode(), "tokens": row["tokens"].tolist()}
        for member in MEMBERS:
            offset, size, crc32 = row[member].item()
            sample[member] = (own if member == "jpg" else texts)[offset : offset + size]
            assert zlib.crc32(sample[member]) == crc32
        samples.append(sample)
    return samples


def shard_paths(folder: Path, tier: str) -> list[str]:
    return [str(folder / shard.file) for shard in read_manifest(folder).tiers[tier].shards]


def test_manifest_states_counts_and_checksums(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.samples == 32 and manifest.captions == ["label", "keywords"]
    assert manifest.rejected == dict.fromkeys(REASONS, 0)
    model = dataset / manifest.tokenizer.file
    assert manifest.tokenizer.sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    for name, tier in manifest.tiers.items():
        assert [shard.samples for shard in tier.shards] == [15, 15, 2]
        for shard in tier.shards:
            content = (dataset / shard.file).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (
                shard.bytes,
                shard.sha256,
            )
        index = (dataset / name / INDEX_FILE).read_bytes()
        assert hashlib.sha256(index).hexdigest() == tier.index_sha256


def test_every_token_and_caption_survives(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    tokenizer = open_tokenizer(dataset / manifest.tokenizer.file)
    samples = read_by_index(dataset, "full")
    rows = [i for i in range(40) if i % 5]
    for i, sample in zip(rows, samples, strict=True):
        details = json.loads(sample["json"])
        wanted = {"label": caption(i)}
        if i % 3:
            wanted["keywords"] = f"{caption(i)}, key, word {i % 4}"
        assert details["captions"] == wanted
        assert sample["txt"].decode() == caption(i)
        assert details["meta"]["number"] == i and details["meta"]["split"] == "train"
        assert (details["width"], details["height"]) == (60 + 10 * (i % 5), 72)
        encoded = [
            tokenizer.encode(wanted[name]) if name in wanted else [] for name in manifest.captions
        ]
        assert sample["tokens"] == [len(ids) for ids in encoded]
        assert np.frombuffer(sample["ids"], manifest.token_dtype).tolist() == list(chain(*encoded))
        assert len(sample["pos"]) == sum(sample["tokens"])
        assert {byte & 0x7F for byte in sample["pos"]} <= {1, 2, 3, 4} and sample["pos"][0] & 0x80


def test_texts_stand_once_in_the_smallest_tier_whatever_the_order(
    dataset: Path, tmp_path: Path
) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 40)
    again = tmp_path / "out"
    limits = {"shard_samples": 15, "where": "split = 'train'"}
    build_dataset(options(source, again, captions=CAPTIONS, tiers="full:95,48:90", **limits))
    manifest = read_manifest(dataset)
    assert manifest.text_tier == "48"
    for tier, members in (("48", MEMBERS), ("full", ("jpg",))):
        files = {path: (again / path).read_bytes() for path in files_of(dataset, tier)}
        assert files == {path: (dataset / path).read_bytes() for path in files}
        index = np.load(dataset / tier / INDEX_FILE)
        found = [
            (name, offset, len(content))
            for shard in manifest.tiers[tier].shards
            for name, offset, content in read_plain(dataset / shard.file)
        ]
        wanted = [
            (f"{row['key'].decode()}.{member}", *row[member].item()[:2])
            for row in index
            for member in members
        ]
        assert found == wanted
    # Beside its pictures, a sample costs another tier a header, its padding and an index row.
    pictures = int(index["jpg"]["size"].sum(dtype=np.int64))
    ends = 10_240 * len(manifest.tiers["full"].shards)  # at most, of archives
    stored = sum(map(len, files.values())) - ends
    assert stored - pictures < 1_200 * len(index), (stored - pictures) / len(index)


def files_of(folder: Path, tier: str) -> list[str]:
    """All files of a tier, relative to the dataset."""
    return sorted(str(path.relative_to(folder)) for path in (folder / tier).iterdir())


def test_tiers_hold_the_same_samples(dataset: Path) -> None:
    small, full = (read_by_index(dataset, tier) for tier in ("48", "full"))
    for one, other in zip(small, full, strict=True):
        assert {**one, "jpg": b""} == {**other, "jpg": b""}
        shrunk, whole = (Image.open(io.BytesIO(sample["jpg"])).size for sample in (one, other))
        assert min(shrunk) == 48 and min(whole) > 48
        assert abs(shrunk[0] / shrunk[1] - whole[0] / whole[1]) < 0.03


def test_webdataset_reads_the_same_samples(dataset: Path) -> None:
    wanted = read_by_index(dataset, "48")
    stream = webdataset.WebDataset(shard_paths(dataset, "48"), shardshuffle=False)
    found = list(stream.decode("pil", only=["jpg", "txt", "json"]))
    assert [sample["__key__"] for sample in found] == [sample["key"] for sample in wanted]
    for ours, theirs in zip(wanted, found, strict=True):
        assert theirs["txt"] == ours["txt"].decode()
        assert theirs["json"] == json.loads(ours["json"])
        assert (theirs["ids"], theirs["pos"]) == (ours["ids"], ours["pos"])
        assert np.array_equal(theirs["jpg"], Image.open(io.BytesIO(ours["jpg"])))
    pictures = list(webdataset.WebDataset(shard_paths(dataset, "full"), shardshuffle=False))
    for ours, theirs in zip(read_by_index(dataset, "full"), pictures, strict=True):
        assert (theirs["__key__"], theirs["jpg"]) == (ours["key"], ours["jpg"])


def test_hugging_face_datasets_reads_the_same_samples(dataset: Path, tmp_path: Path) -> None:
    wanted = read_by_index(dataset, "48")
    found = datasets.load_dataset(
        "webdataset",
        data_files=shard_paths(dataset, "48"),
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    )
    for ours, theirs in zip(wanted, found, strict=True):
        assert theirs["__key__"] == ours["key"]
        assert theirs["txt"] == ours["txt"].decode()
        captions = {k: v for k, v in theirs["json"]["captions"].items() if v is not None}
        assert captions == json.loads(ours["json"])["captions"]
        assert np.array_equal(theirs["jpg"], Image.open(io.BytesIO(ours["jpg"])))


@pytest.mark.parametrize("tier", ["48", "full"])
def test_the_training_reader_reads_the_same_samples(dataset: Path, tier: str) -> None:
    wanted = read_by_index(dataset, tier)
    reader = Dataset(dataset, tier)
    assert reader.tokenizer().sha256 == reader.manifest.tokenizer.sha256
    for row, ours in enumerate(wanted):
        sample = reader.read(row)
        assert (reader.key(row), sample.jpeg) == (ours["key"], ours["jpg"])
        assert (sample.ids.tobytes(), sample.classes.tobytes()) == (ours["ids"], ours["pos"])
        assert reader.read_json(row) == json.loads(ours["json"])


@pytest.mark.skipif(not DEMO_CORPUS.exists(), reason=f"{DEMO_CORPUS} is not in this checkout")
def test_the_demo_corpus_builds_without_a_rejection(tmp_path: Path) -> None:
    manifest, tokens = build_dataset(
        options(
            DEMO_CORPUS,
            tmp_path / "out",
            where="artist = 'twemoji' AND split = 'held_out_concepts'",
            captions=(*CAPTIONS, "group=a drawing of {caption}, in the group {group}"),
        )
    )
    assert manifest.samples > 100 and sum(manifest.rejected.values()) == 0
    assert (tokens[:, [0, 2]] > 0).all()


def test_shards_roll_over_by_bytes_in_all_tiers_at_once(tmp_path: Path) -> None:
    source = plain_corpus(tmp_path / "corpus.parquet", 12)
    out = tmp_path / "out"
    build_dataset(options(source, out, tiers="32:90,full:95", shard_bytes=20_000))
    small, full = (np.load(out / tier / INDEX_FILE)["shard"] for tier in ("32", "full"))
    assert small.tolist() == full.tolist() and full.max() >= 2


def test_reads_a_hugging_face_image_column_and_a_folder_of_files(tmp_path: Path) -> None:
    plain = plain_corpus(tmp_path / "plain.parquet", 8)
    build_dataset(options(plain, tmp_path / "a"))
    table = datasets.Dataset.from_parquet(str(plain), cache_dir=str(tmp_path / "cache"))
    table = table.cast_column("image", datasets.Image())
    for part in range(2):
        table.shard(2, part, contiguous=True).to_parquet(tmp_path / "parts" / f"{part}.parquet")
    build_dataset(options(tmp_path / "parts", tmp_path / "b"))
    assert read_by_index(tmp_path / "a", "full") == read_by_index(tmp_path / "b", "full")
