"""Damaged samples are replaced deterministically, counted by reason and bounded over all ranks."""

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from collators import collator
from dataset_copies import damage, record_index

from pretrain.base.faults import StoppedError
from pretrain.batches.options import FailureOptions
from pretrain.dataset.manifest import INDEX_FILE
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.run.health import check_failures


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


def test_replacing_alone_never_stops_a_rank_but_a_damaged_dataset_does(copy):
    damage(copy, list(range(20)))
    bounded = collator(copy)
    for start in range(0, 2000, 20):  # however many: the ranks decide together
        assert (
            bounded(np.arange(start, start + 20), np.arange(20))["replaced"]["crc_mismatch"] >= 20
        )
    damage(copy, list(range(20, len(bounded.dataset))))
    with pytest.raises(RuntimeError, match=r"position 7.*16 substitutes.*rebuild"):
        bounded(np.array([7]), np.array([0]))


def test_the_share_of_replaced_samples_is_judged_over_all_ranks_from_ten_thousand_on():
    options, directory = FailureOptions(max_share=0.001), Path("DIR")
    check_failures({"crc_mismatch": 9_999}, 9_999, 0, options, directory)
    check_failures({"crc_mismatch": 4, "undecodable": 6}, 10_000, 0, options, directory)
    check_failures({}, 10_000, 0, FailureOptions(max_share=0.0), directory)
    check_failures({"undecodable": 5_700}, 10_000, 0, FailureOptions(max_share=0.57), directory)
    with pytest.raises(StoppedError) as stopped:
        check_failures({"undecodable": 7, "crc_mismatch": 4}, 10_000, 0, options, directory)
    message = str(stopped.value)
    assert "\n" not in message
    for part in ("11 of 10,000", "0.11%", "crc_mismatch 4, undecodable 7", "0.001", "DIR"):
        assert part in message
    assert "data.failures.max_share" in message
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="max_share"):
            FailureOptions(max_share=share)


def test_samples_that_fail_in_a_row_are_counted_named_and_bounded(copy):
    damage(copy, [2, 3, 4, 9])
    whole = Dataset(copy, "full")
    batch = collator(copy)(np.arange(12), np.arange(12))
    assert batch["replaced_in_a_row"] == 3
    assert batch["replaced_first"] == {
        "crc_mismatch": f"sample {whole.key(2)}: crc_mismatch (member jpg)"
    }
    assert collator(copy)(np.arange(4), np.arange(10, 14))["replaced_in_a_row"] == 0
    options, directory = FailureOptions(), Path("DIR")
    check_failures({"crc_mismatch": 100}, 500, 100, options, directory)
    with pytest.raises(StoppedError, match=r"101 samples in a row.*max_in_a_row=100.*DIR.*raise"):
        check_failures({"crc_mismatch": 101}, 500, 101, options, directory)
    with pytest.raises(ValueError, match=r"data\.failures\.max_in_a_row=0"):
        FailureOptions(max_in_a_row=0)


def wrong_writer(dataset: Path, changes: dict[int, tuple[str, bytes]]) -> None:
    """Give members of some rows other bytes of the same length, with the crc32 that they have."""
    path = dataset / "full" / INDEX_FILE
    index = np.load(path)
    for row, (member, content) in changes.items():
        place = index[row][member]
        assert len(content) == place["size"]
        shard = dataset / "full" / f"{index[row]['shard']:05d}.tar"
        whole = bytearray(shard.read_bytes())
        whole[int(place["offset"]) : int(place["offset"] + place["size"])] = content
        shard.write_bytes(whole)
        place["crc32"] = zlib.crc32(content)
    np.save(path, index)
    record_index(dataset)


def test_ids_beyond_the_vocabulary_are_replaced_and_never_reach_the_model(copy, tiny_dataset):
    index = np.load(copy / "full" / INDEX_FILE)
    vocab_size = Dataset(copy, "full").manifest.tokenizer.vocab_size
    ids = np.frombuffer(Dataset(copy, "full").read(2).ids, "<u2").copy()
    ids[-1] = vocab_size  # the first id too many; its caption is drawn for no position below
    highest = np.full(index[4]["ids"]["size"] // 2, vocab_size - 1, "<u2")
    noise = b"\xff\xd8" + bytes(int(index[6]["jpg"]["size"]) - 2)
    wrong_writer(
        copy, {2: ("ids", ids.tobytes()), 4: ("ids", highest.tobytes()), 6: ("jpg", noise)}
    )
    rows = np.arange(8)
    label = {"label": 1.0}
    batch = collator(copy, label)(np.arange(100, 108), rows)
    assert batch["replaced"] == {"ids_invalid": 1, "undecodable": 1}
    assert ((batch["rows"] != rows) == np.isin(rows, [2, 6])).all()
    assert batch["text_ids"].max() == vocab_size - 1
    whole = collator(tiny_dataset, label)(np.arange(100, 108), batch["rows"])
    others = rows != 4
    for name in ("images", "text_ids"):
        assert np.array_equal(batch[name][others], whole[name][others]), name


def test_ids_that_disagree_with_the_index_are_replaced(copy):
    """In an index too large to be checked whole at the start: the mapped rows are changed."""
    told = collator(copy)
    index = np.load(copy / "full" / INDEX_FILE)
    index[1]["tokens"][0] += 1
    index[3]["tokens"][:] = 0
    told.dataset.index = index
    batch = told(np.arange(8), np.arange(8))
    assert batch["replaced"] == {"ids_invalid": 2}
    assert ((batch["rows"] != np.arange(8)) == np.isin(np.arange(8), [1, 3])).all()


def test_a_picture_that_claims_to_be_huge_is_never_allocated(tiny_dataset):
    jpeg = bytearray(Dataset(tiny_dataset, "full").read(0).jpeg)
    frame = jpeg.index(b"\xff\xc0")  # baseline frame header: height and width at offset 5
    jpeg[frame + 5 : frame + 9] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match="over the cap of 64,000,000 pixels"):
        decode(bytes(jpeg))
    with pytest.raises(ValueError):
        decode(bytes(jpeg[:200]))


def test_unusable_caption_weights_name_the_captions(tiny_dataset):
    for weights in (
        {"titel": 1.0},
        {"label": 0.0},
        {"label": -1.0, "phrase": 1.0},
        {"label": math.nan},
        {"label": math.inf},
    ):
        with pytest.raises(ValueError, match=r"data\.caption_weights.*\['label', 'keywords'") as no:
            collator(tiny_dataset, caption_weights=weights)
        assert "\n" not in str(no.value)


def test_captions_are_drawn_by_weight(tiny_dataset):
    one = collator(tiny_dataset, caption_weights={"phrase": 1.0})
    phrases = one(np.arange(16), np.arange(16))["text_ids"]
    tokenizer = one.dataset.tokenizer()
    assert all(row[1:4].tolist() == tokenizer.encode("a drawing of")[:3] for row in phrases)


def test_ids_of_another_vocabulary_are_found_at_the_start_by_shard(copy):
    dataset = Dataset(copy, "full")
    dataset.check_ids()
    too_many = np.full(
        int(dataset.index[0]["ids"]["size"]) // 2, dataset.manifest.tokenizer.vocab_size, "<u2"
    )
    wrong_writer(copy, {0: ("ids", too_many.tobytes())})
    with pytest.raises(ValueError, match=r"full/00000\.tar: sample .*ids_invalid"):
        Dataset(copy, "full").check_ids()
    damage(copy, [0])  # damage is another thing: it is replaced and counted
    Dataset(copy, "full").check_ids()
