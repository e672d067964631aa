"""What is wrong with a dataset directory is named at the start: the file, the fault, the remedy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_copies import change_manifest, record_index

from pretrain.dataset import index as data_index
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest
from pretrain.dataset.reader import Dataset, check_tier


def refusal(dataset: Path) -> str:
    """The one line with which a dataset is refused."""
    with pytest.raises(ValueError) as refused:
        Dataset(dataset, "full").tokenizer()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_truncated_or_missing_shard_is_named_at_the_start(copy):
    shard = copy / "full" / "00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ValueError, match=r"00001\.tar"):
        Dataset(copy, "full")
    shard.unlink()
    with pytest.raises(ValueError, match=r"00001\.tar"):
        Dataset(copy, "full")


def test_another_tier_index_or_tokenizer_is_refused(copy):
    with pytest.raises(ValueError, match=r"data\.tier='160'.*\['full'\]"):
        Dataset(copy, "160")
    with pytest.raises(ValueError, match=r"stages\.reduced\.tier='160'"):
        Dataset(copy, "160", "stages.reduced.tier")
    (copy / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(ValueError, match="tokenizer"):
        Dataset(copy, "full").tokenizer()
    index = np.load(copy / "full" / INDEX_FILE)
    np.save(copy / "full" / INDEX_FILE, index[:-1])
    with pytest.raises(ValueError, match="index"):
        Dataset(copy, "full")


def test_a_tier_is_judged_by_the_manifest_alone(copy):
    manifest = read_manifest(copy)
    shutil.rmtree(copy / "full")
    check_tier(manifest, "full", copy, "data.tier")
    with pytest.raises(ValueError, match=r"stages\.a\.tier='64'.*'full'.*change stages\.a\.tier"):
        check_tier(manifest, "64", copy, "stages.a.tier")


OUTSIDE = ["/etc/hostname", "../elsewhere.tar", "full/../../elsewhere.tar", "elsewhere\0.tar"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_directory_is_refused(copy, name):
    shutil.copy(copy / "full" / "00001.tar", copy.parent / "elsewhere.tar")
    where = Path("/etc/hostname") if name == OUTSIDE[0] else copy.parent / "elsewhere.tar"
    size = where.stat().st_size if where.exists() else 0

    def shard(manifest: dict[str, Any]) -> None:
        manifest["tiers"]["full"]["shards"][1].update(file=name, bytes=size)

    kept = (copy / MANIFEST_FILE).read_bytes()
    change_manifest(copy, shard)
    message = refusal(copy)
    assert MANIFEST_FILE in message and "tiers.full.shards.1.file" in message
    assert "leads out" in message
    (copy / MANIFEST_FILE).write_bytes(kept)
    change_manifest(copy, lambda m: m["tokenizer"].update(file=name))
    assert "tokenizer.file" in refusal(copy)


@pytest.mark.parametrize(
    "name", ["full/00001.tar", f"full/{INDEX_FILE}", "tokenizer.model", "full"]
)
def test_a_link_out_of_the_directory_is_refused_and_one_inside_is_followed(copy, name):
    (copy / "inside").mkdir()
    target, link = copy / "inside" / "kept", copy / name
    link.rename(target)
    link.symlink_to(target)
    Dataset(copy, "full").tokenizer()
    outside = copy.parent / "outside"
    target.rename(outside)
    link.unlink()
    link.symlink_to(outside)
    assert "leads out" in refusal(copy)


def test_a_dataset_directory_may_be_a_link_itself(copy):
    (copy.parent / "link").symlink_to(copy)
    dataset = Dataset(copy.parent / "link", "full")
    dataset.tokenizer()
    assert dataset.read(0).jpeg == Dataset(copy, "full").read(0).jpeg


def test_a_shard_that_is_no_regular_file_is_refused(copy):
    shard = copy / "full" / "00001.tar"
    shard.unlink()
    shard.mkdir()
    assert "00001.tar" in refusal(copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda m: m.pop("samples"), "samples"),
        (lambda m: m.update(samples="many"), "samples"),
        (lambda m: m.update(samples=m["samples"] + 1), "tiers.full"),
        (lambda m: m.update(captions=["a", 1, "b"]), "captions.1"),
        (lambda m: m.update(captions=[]), "captions"),
        (lambda m: m.update(token_dtype="O"), "token_dtype"),
        (lambda m: m.update(another=1), "another"),
        (lambda m: m["tokenizer"].pop("sha256"), "tokenizer.sha256"),
        (lambda m: m.update(tiers=[]), "tiers"),
        (lambda m: m.pop("text_tier"), "text_tier"),
        (lambda m: m.update(text_tier="16"), "text_tier='16'"),
        (lambda m: m["tiers"]["full"].update(shards=3), "tiers.full.shards"),
        (lambda m: m["tiers"]["full"]["shards"][1].pop("bytes"), "tiers.full.shards.1.bytes"),
        (lambda m: m["tiers"]["full"]["shards"][0].update(samples=-60), "tiers.full"),
    ],
)
def test_a_wrong_manifest_names_file_and_key(copy, change, named):
    change_manifest(copy, change)
    message = refusal(copy)
    assert str(copy / MANIFEST_FILE) in message and named in message


def test_a_manifest_that_is_cut_or_no_json_names_the_file(copy):
    path = copy / MANIFEST_FILE
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\xff\xfe", b"null", b"[" * 100_000):
        path.write_bytes(content)
        assert str(path) in refusal(copy)


def test_no_dataset_and_another_format_name_the_remedy(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="data_prep build"):
        Dataset(tmp_path / "nothing", "full")
    manifest = json.loads((copy / MANIFEST_FILE).read_text())
    (copy / MANIFEST_FILE).write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(ValueError, match="99"):
        Dataset(copy, "full")


def far_offset(index: np.ndarray) -> None:
    index[70]["jpg"]["offset"] = (1 << 64) - 1  # overflows when the size is added


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda i: i["key"].__setitem__(70, b"../../etc/passwd"), "row 70: key"),
        (lambda i: i["shard"].__setitem__(70, 9), "row 70: shard"),
        (lambda i: i["shard"].__setitem__(70, 0), "row 70: shard"),
        (far_offset, "row 70: jpg lies outside"),
        (lambda i: i["json"]["size"].__setitem__(70, 1 << 31), "row 70: json lies outside"),
        (lambda i: i["ids"]["offset"].__setitem__(70, 512), "row 70: ids does not follow jpg"),
        (lambda i: i["tokens"].__setitem__((70, 0), 60_000), "row 70: ids have another size"),
        (lambda i: i["pos"]["size"].__isub__(1), "row 0: pos has another size"),
    ],
)
def test_every_wrong_row_of_an_index_is_found_at_the_start(copy, change, named, monkeypatch):
    path = copy / "full" / INDEX_FILE
    index = np.load(path)
    change(index)
    np.save(path, index)
    message = refusal(copy)  # the sha256 differs too: the row says more
    assert str(path) in message and named in message
    record_index(copy)  # a writer that vouches for its mistake
    monkeypatch.setattr(data_index, "_BLOCK_ROWS", 7)
    assert named in refusal(copy)


def test_an_index_with_another_sha256_is_refused(copy):
    path = copy / "full" / INDEX_FILE
    index = np.load(path)
    index[3]["jpg"]["crc32"] ^= 1
    np.save(path, index)
    message = refusal(copy)
    assert str(path) in message and "sha256" in message


def test_of_a_huge_index_the_first_the_last_and_blocks_between_are_checked(copy, monkeypatch):
    """The cap lowered, as a test cannot write 256 MiB: what lies in a checked block is found."""
    path = copy / "full" / INDEX_FILE
    whole = np.load(path)
    monkeypatch.setattr(data_index, "_BLOCK_ROWS", 10)
    monkeypatch.setattr(data_index, "CHECKED_BYTES", 50 * whole.itemsize)
    Dataset(copy, "full")
    for row in (0, len(whole) // 2, len(whole) - 1):
        index = whole.copy()
        index[row]["tokens"][1] += 1
        np.save(path, index)
        assert f"row {row}" in refusal(copy)


def test_an_index_that_is_cut_or_no_array_names_the_file(copy):
    path = copy / "full" / INDEX_FILE
    whole = path.read_bytes()
    huge = whole.replace(b"(%d,)" % len(np.load(path)), b"(%d,)" % 10**15)
    negative = whole.replace(b"(%d,)" % len(np.load(path)), b"(-5,)")
    pickled = whole.replace(b"'|S16'", b"'|O'")
    contents = [b"", whole[:5], whole[:60], whole[:-1], whole + b"x", b"PK\x03\x04" * 30]
    long_header = whole[:8] + b"\xff\xff" + whole[10:] + bytes(1 << 16)
    unclosed = whole.replace(b"}", b" ", 1)
    for content in (*contents, unclosed, huge, negative, pickled, long_header, b"\x80\x04" + whole):
        path.write_bytes(content)
        assert str(path) in refusal(copy)
