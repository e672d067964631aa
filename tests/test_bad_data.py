"""Damaged data is named at the start, or replaced deterministically, counted and bounded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.collate import Collator, FailureOptions
from pretrain.data.dataset import Dataset
from pretrain.data.images import CropOptions, decode
from pretrain.shard_format import INDEX_FILE, MANIFEST_FILE
from pretrain.tokens.options import TokenOptions


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_dataset, tmp_path / "copy")
    return tmp_path / "copy"


def damage(dataset: Path, rows: list[int], member: str = "jpg") -> None:
    """Flip a byte in the middle of a member of some samples."""
    index = np.load(dataset / "full" / INDEX_FILE)
    for row in rows:
        path = dataset / "full" / f"{index[row]['shard']:05d}.tar"
        content = bytearray(path.read_bytes())
        content[int(index[row][member]["offset"]) + int(index[row][member]["size"]) // 2] ^= 0xFF
        path.write_bytes(content)


def collator(
    dataset: Path,
    failures: FailureOptions | None = None,
    caption_weights: dict[str, float] | None = None,
) -> Collator:
    return Collator(
        dataset=Dataset(dataset, "full"),
        tokens=TokenOptions(image_px=32, text_tokens=6),
        patch_px=8,
        specials="bos",
        crop=CropOptions(),
        caption_weights=caption_weights or {},
        seed=0,
        failures=failures or FailureOptions(),
    )


@pytest.mark.parametrize("member", ["jpg", "ids", "pos"])
def test_a_damaged_sample_is_replaced_alike_everywhere_and_counted(copy, tiny_dataset, member):
    damage(copy, [3, 5], member)
    rows = np.arange(8)
    batch, again = (collator(copy)(np.arange(100, 108), rows) for _ in range(2))
    assert batch["replaced"] == {"crc_mismatch": 2}
    assert (batch["rows"] == again["rows"]).all()
    assert ((batch["rows"] != rows) == np.isin(rows, [3, 5])).all()
    whole = collator(tiny_dataset)(np.arange(100, 108), batch["rows"])
    for name in ("images", "text_ids"):
        assert np.array_equal(batch[name], whole[name]), name  # the substitutes, and none else


def test_too_many_damaged_samples_stop_the_run_and_name_the_options(copy):
    damage(copy, list(range(20)))
    bounded = collator(copy, FailureOptions(max_in_a_row=2))
    with pytest.raises(RuntimeError, match=r"data\.failures"):
        for start in range(0, 200, 20):
            bounded(np.arange(start, start + 20), np.arange(20))


def test_a_truncated_or_missing_shard_is_named_at_the_start(copy):
    shard = copy / "full" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"00001\.tar"):
        Dataset(copy, "full")
    shard.unlink()
    with pytest.raises(ValueError, match=r"00001\.tar"):
        Dataset(copy, "full")


def test_another_tier_index_or_tokenizer_is_refused(copy):
    with pytest.raises(ValueError, match=r"'160'.*data\.tier"):
        Dataset(copy, "160")
    (copy / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(ValueError, match="tokenizer"):
        Dataset(copy, "full").tokenizer()
    index = np.load(copy / "full" / INDEX_FILE)
    np.save(copy / "full" / INDEX_FILE, index[:-1])
    with pytest.raises(ValueError, match="index"):
        Dataset(copy, "full")


def test_no_dataset_and_another_format_name_the_remedy(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="data_prep build"):
        Dataset(tmp_path / "nothing", "full")
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    (copy / MANIFEST_FILE).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ValueError, match="99"):
        Dataset(copy, "full")


def test_a_picture_that_claims_to_be_huge_is_never_allocated(tiny_dataset):
    jpeg = bytearray(Dataset(tiny_dataset, "full").read(0).jpeg)
    frame = jpeg.index(b"\xff\xc0")  # baseline frame header: height and width at offset 5
    jpeg[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match="60000x60000"):
        decode(bytes(jpeg))
    with pytest.raises(ValueError):
        decode(bytes(jpeg[:200]))


def test_unknown_caption_weights_name_the_captions(tiny_dataset):
    with pytest.raises(ValueError, match=r"\['label', 'keywords', 'phrase'\]"):
        collator(tiny_dataset, caption_weights={"titel": 1.0})


def test_captions_are_drawn_by_weight(tiny_dataset):
    one = collator(tiny_dataset, caption_weights={"phrase": 1.0})
    phrases = one(np.arange(16), np.arange(16))["text_ids"]
    tokenizer = one.dataset.tokenizer()
    assert all(row[1:4].tolist() == tokenizer.encode("a drawing of")[:3] for row in phrases)
