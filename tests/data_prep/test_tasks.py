"""However a build is shared out, killed and taken up again, it ends in the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_corpus import caption, encoded, picture, write_corpus

from data_prep.__main__ import main
from data_prep.build.duplicates import find_repeated_rows
from data_prep.sources import Corpus, SourceOptions
from pretrain.dataset.manifest import INDEX_FILE, read_manifest

REPOSITORY = Path(__file__).parents[2]
ROWS = 90
# Rows that repeat another's picture and caption: within one shard, and across shards and tasks.
REPEATS = {5: 3, 20: 3, 41: 3, 42: 40, 43: 38, 44: 37, 45: 36, 46: 39, 70: 2, 88: 87}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two kinds, some that repeat, some no pictures, some without a caption."""
    images, texts = [], []
    for i in range(ROWS):
        same = REPEATS.get(i, i)
        data = encoded(picture(same, width=220, height=180), "JPEG" if same % 2 else "PNG")
        images.append(b"no picture" if i % 17 == 16 else data)
        texts.append("" if i % 23 == 22 else caption(same))
    columns = {"image": images, "caption": texts, "number": list(range(ROWS))}
    return write_corpus(tmp_path_factory.mktemp("tasks") / "corpus.parquet", columns)


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> Path:
    """The build in one process."""
    out = corpus.parent / "undisturbed"
    assert main([*request(corpus, out), "--workers", "1"]) == 0
    return out


def request(corpus: Path, out: Path) -> list[str]:
    """Shards roll over by samples and by bytes; a task has several."""
    return [
        *("build", "--source", str(corpus), "--out", str(out), "--tiers", "48:90,full:95"),
        *("--shard-samples", "8", "--shard-bytes", "40000", "--vocab-size", "600"),
        *("--where", "number % 30 <> 7"),
    ]


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_same(found: Path, wanted: Path) -> None:
    one, other = content(found), content(wanted)
    assert sorted(one) == sorted(other)
    assert [name for name in one if one[name] != other[name]] == []


def test_the_undisturbed_build_is_what_its_corpus_says(undisturbed: Path) -> None:
    """Counted by hand, without the code that joins the parts."""
    wanted = {"image_unreadable": 0, "caption_empty": 0, "duplicate_key": 0}
    kept: set[int] = set()
    for i in (i for i in range(ROWS) if i % 30 != 7):
        same = REPEATS.get(i, i)
        if i % 23 == 22:
            wanted["caption_empty"] += 1
        elif i % 17 == 16:
            wanted["image_unreadable"] += 1
        elif same in kept:
            wanted["duplicate_key"] += 1
        else:
            kept.add(same)
    manifest = read_manifest(undisturbed)
    assert manifest.samples == len(kept)
    assert {name: count for name, count in manifest.rejected.items() if count} == wanted
    keys = np.load(undisturbed / "full" / INDEX_FILE)["key"].tolist()
    assert len(set(keys)) == len(keys) == len(kept)
    assert len(manifest.tiers["full"].shards) > ROWS // 8  # bytes closed some of them
    assert main(["verify", str(undisturbed), "--workers", "1"]) == 0


def test_two_workers_make_the_same_bytes(corpus: Path, undisturbed: Path, tmp_path: Path) -> None:
    assert main([*request(corpus, tmp_path / "a"), "--workers", "2"]) == 0
    assert_same(tmp_path / "a", undisturbed)


def test_three_shares_and_a_merge_make_the_same_bytes(
    corpus: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    one_worker = ["--workers", "1"]
    for share in ("2", "0"):
        done = main(
            [*request(corpus, out), *one_worker, "--task-index", share, "--task-count", "3"]
        )
        assert done == 0
    assert main(["merge", str(out), *one_worker]) == 2
    assert "of 11 tasks are not done (3, 4, 5, 6)" in capsys.readouterr().err
    inodes = {path.stat().st_ino for path in out.rglob("*.tar")}
    last = [*request(corpus, out), *one_worker, "--task-index=1", "--task-count=3"]
    assert main(last) == 0
    assert f"merge {out}" in capsys.readouterr().out
    assert main(["merge", str(out), *one_worker]) == 0
    assert_same(out, undisturbed)
    # The shards that lost no sample are the same files, renamed.
    assert len(inodes & {path.stat().st_ino for path in out.rglob("*.tar")}) >= 8
    for again in (["merge", str(out)], last):
        assert main(again) == 0
        assert "finished" in capsys.readouterr().err


def test_a_tier_that_is_built_no_more_leaves_no_folder(corpus: Path, tmp_path: Path) -> None:
    command = [*request(corpus, tmp_path / "a"), "--workers", "1"]
    assert main(command) == 0
    assert main([*command, "--tiers", "full:95", "--overwrite"]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir() if path.is_dir()} == {"full"}


def test_a_finished_or_begun_build_is_not_mixed_with_another(
    corpus: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    share = ["--workers", "1", "--task-index", "0", "--task-count", "3"]
    assert main([*request(corpus, out), *share, "--min-image-px", "20"]) == 0
    assert main([*request(corpus, out), "--workers", "1"]) == 2
    errors = capsys.readouterr().err
    assert "unfinished build" in errors and "options.pictures.min_image_px" in errors
    assert main([*request(corpus, out), "--workers", "1", "--overwrite"]) == 0
    assert_same(out, undisturbed)


def records(out: Path) -> int:
    """How many of a build's records there are; a folder may vanish while they are counted."""
    return sum(".json" in name for _, _, names in os.walk(out) for name in names)


def killed(command: list[str], out: Path, chance: random.Random) -> bool:
    """Start a build, kill -9 its first process at a random moment; whether it was still running."""
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep", *command, "--workers", "2"],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = records(out)
    more = chance.randrange(1, 6)  # records that come to be before the kill
    while process.poll() is None and records(out) < begun + more:
        time.sleep(0.002)
    time.sleep(chance.random() * 0.05)
    process.kill()
    errors = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
def test_killed_at_random_moments_it_ends_in_the_same_bytes(
    kills: int, corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    chance = random.Random(kills)
    done = 0
    while done < kills:
        if killed(request(corpus, out), out, chance):
            done += 1
        else:
            assert_same(out, undisturbed)
            shutil.rmtree(out)
    assert main([*request(corpus, out), "--workers", "1"]) == 0
    assert_same(out, undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("tried", [2, pytest.param(0, marks=pytest.mark.timeout(3600))])
def test_killed_before_any_file_system_call_it_ends_in_the_same_bytes(
    tried: int, corpus: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """From the plan to the removal of the work folder, replacing an older dataset."""
    tokenizer = tmp_path / "tokenizer.model"
    shutil.copy(undisturbed / "tokenizer.model", tokenizer)  # trained once, not at every trial
    command = [*request(corpus, Path("OUT")), "--tokenizer", str(tokenizer), "--workers", "1"]
    script = [sys.executable, "tests/support/killed_builds.py", str(tmp_path), str(tried), "--"]
    script += command
    environment = {**os.environ, "PYTHONPATH": "."}
    done = subprocess.run(
        script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of a few hundred kilobytes, and how to change it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs of a given size")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this container may not mount: {mounted.stderr.strip()}")

    def remount(options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)

    yield folder, remount
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_or_read_only_disk_is_named_and_the_same_command_goes_on(
    small_disk, corpus: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, remount = small_disk
    command = [*request(corpus, folder / "out"), "--workers", "1"]
    assert main(command) == 2
    errors = capsys.readouterr().err.strip()
    assert "no space left" in errors and "make room" in errors, errors
    done = {path: path.read_bytes() for path in (folder / "out").rglob("*.0.*.tar")}
    remount("size=64m,ro")
    assert main(command) == 2
    assert "Read-only file system" in capsys.readouterr().err
    remount("size=64m,rw")
    assert {path: path.read_bytes() for path in done} == done
    assert main(command) == 0
    assert_same(folder / "out", undisturbed)


def folder_corpus(folder: Path, images: list[bytes], texts: list[str]) -> Path:
    folder.mkdir()
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        (folder / f"{i:03d}.png").write_bytes(image)
        (folder / f"{i:03d}.txt").write_text(text)
    return folder


def tars(folder: Path, images: list[bytes], texts: list[str]) -> Path:
    """Two archives, the first one's names too long for plain headers."""
    pairs = folder_corpus(folder.with_name("pairs"), images, texts)
    folder.mkdir()
    for part, rows in enumerate((range(14), range(14, len(images)))):
        name = "a" * 120 if part == 0 else "b"
        with tarfile.open(folder / f"{part}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for i in rows:
                for kind in ("png", "txt"):
                    tar.add(pairs / f"{i:03d}.{kind}", f"{name}{i:03d}.{kind}")
    return folder


def tables(folder: Path, images: list[bytes], texts: list[str]) -> Path:
    """A CSV file of cells with line ends and quotes, then lines of JSON."""
    folder_corpus(folder, images, texts)
    lines = [f'{i:03d}.png,"{t}, ""é""\r\n{t}"' for i, t in enumerate(texts[:13])]
    (folder / "a.csv").write_bytes(("﻿file_name,caption\r\n" + "\r\n".join(lines)).encode())
    more = [f'{{"file_name": "{i:03d}.png", "caption": "{texts[i]}"}}' for i in range(13, 25)]
    (folder / "b.jsonl").write_text("\n\n".join(more))
    for path in folder.glob("*.txt"):
        path.unlink()
    return folder


def parquet(folder: Path, images: list[bytes], texts: list[str]) -> Path:
    """Two files of several row groups."""
    folder.mkdir()
    for part, rows in enumerate((slice(0, 11), slice(11, None))):
        table = pa.table({"image": images[rows], "caption": texts[rows]})
        pq.write_table(table, folder / f"{part}.parquet", row_group_size=4)
    return folder


def saved(folder: Path, images: list[bytes], texts: list[str]) -> Path:
    datasets.Dataset.from_dict({"image": images, "caption": texts}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("make", [folder_corpus, tars, tables, parquet, saved])
def test_any_range_of_any_source_is_that_part_of_the_whole(
    make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("rows", "webdataset", "path_tables"):
        monkeypatch.setattr(f"data_prep.sources.{module}.MARKED_ROWS", 3)
    images = [encoded(picture(i, width=20, height=20)) for i in range(25)]
    source = make(tmp_path / "corpus", images, [caption(i) for i in range(25)])
    kind = "table" if make is tables else None
    found = Corpus(SourceOptions(source=str(source), format=kind))
    whole = list(found.records(found.columns, with_images=True))
    assert [record.image for record in whole] == images
    assert [record.number for record in whole] == list(range(25))
    for start in range(25):
        for stop in (start + 1, min(start + 6, 25), 25):
            part = list(found.records(found.columns, with_images=True, start=start, stop=stop))
            assert part == whole[start:stop], (start, stop)
            assert [(r.number, r.place) for r in part] == [
                (r.number, r.place) for r in whole[start:stop]
            ]


def test_repeated_keys_are_found_over_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a plain set."""
    monkeypatch.setattr("data_prep.build.duplicates.BUCKET_ROWS", 100)
    keys = [f"{n:016x}" for n in np.random.default_rng(0).integers(0, 3000, 2000)]
    seen: set[str] = set()
    wanted = []
    for row, key in enumerate(keys):
        if key in seen:
            wanted.append(row)
        seen.add(key)
    blocks = [np.array(keys[i : i + 300], "S16") for i in range(0, 2000, 300)]
    assert find_repeated_rows(blocks, 2000, tmp_path).tolist() == wanted
    assert not list(tmp_path.iterdir())
