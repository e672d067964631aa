"""`data_prep export`: plain WebDataset shards of what the weights keep, the same however they are
shared out or killed, which open_clip's own trainer reads."""

import io
import json
import shutil
import signal
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import webdataset
from data_prep_corpus import encoded, options, picture, write_corpus, write_tar
from dataset_copies import change_manifest, damage, keep_weights
from killed_builds import content, forked_build
from PIL import Image

from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from pretrain.dataset.reader import Dataset

Samples = dict[str, dict[str, bytes]]


def command(dataset: Path, out: Path, *more: str) -> list[str]:
    return ["export", str(dataset), str(out), "--shard-samples", "50", "--workers", "1", *more]


def exported(dataset: Path, out: Path, *more: str) -> Samples:
    """key -> suffix -> content of all shards, by the standard library's tarfile."""
    assert data_prep(command(dataset, out, *more)) == 0
    found: Samples = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                sample = found.setdefault(key, {})
                assert member.isreg() and suffix not in sample, member.name
                file = tar.extractfile(member)
                assert file is not None
                sample[suffix] = file.read()
    return found


def one_error(capsys, words: list[str]) -> str:
    """The single line that a refused command prints."""
    capsys.readouterr()
    assert data_prep(words) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and "\n" not in errors, errors
    return errors


@pytest.fixture(scope="module")
def two_tiers(tiny_dataset, tmp_path_factory) -> Path:
    """12 pictures in two tiers, every third without the caption `long`."""
    folder = tmp_path_factory.mktemp("export")
    longs = [None if number % 3 == 0 else f"a löng text {number}" for number in range(12)]
    columns = {
        "image": [encoded(picture(number)) for number in range(12)],
        "caption": [f"text {number}" for number in range(12)],
        "long": longs,
        "place": list(range(12)),
    }
    source = write_corpus(folder / "source.parquet", columns)
    captions = ("label={caption}", "long={long}")
    tokenizer = tiny_dataset / "tokenizer.model"
    given = {"captions": captions, "tokenizer": tokenizer, "tiers": "48:90,full:95"}
    build_dataset(options(source, folder / "set", **given))
    return folder / "set"


def test_every_row_once_is_the_datasets_pictures_texts_and_metadata(tiny_dataset, tmp_path, capsys):
    found = exported(tiny_dataset, tmp_path / "out")
    rows = Dataset(tiny_dataset, "full")
    assert list(found) == [rows.key(row) for row in range(len(rows))]
    for row, sample in enumerate(found.values()):
        told = rows.read_json(row)
        assert list(sample) == ["jpg", "txt", "json"]
        assert sample["jpg"] == rows.read(row).jpeg
        assert sample["txt"].decode() == told["captions"]["label"]
        assert json.loads(sample["json"]) == told["meta"]
    last = -(-len(rows) // 50) - 1
    assert f"out/{{00000..{last:05d}}}.tar' --train-num-samples {len(rows)}\n" in (
        capsys.readouterr().out
    )


def test_weights_leave_out_and_repeat(copy, tmp_path):
    """Fractions by systematic rounding, whole weights as they are; a copy has its own key."""
    rows = Dataset(copy, "full")
    keys = [rows.key(row) for row in range(len(rows))]
    whole = np.arange(len(rows)) % 4
    broken = np.random.default_rng(1).gamma(1.0, 1.0, len(rows)).astype("<f4")
    broken[::5] = 0
    for name, weights in (("whole", whole), ("broken", broken)):
        keep_weights(copy, name, weights)
        found = exported(copy, tmp_path / name, "--weights", name)
        counted = Counter(key.partition("-")[0] for key in found)
        counts = np.array([counted[key] for key in keys])
        # The points (i + 1/2) of a sum that is rounded to a whole number.
        total = weights.sum(dtype=np.float64)
        ends = np.cumsum(weights, dtype=np.float64) * round(total) / total
        wanted = np.diff(np.floor(ends + 0.5), prepend=0)
        assert counts.sum() == round(total), name
        print(name, worst := np.abs(counts - wanted).max(), counts.max())
        assert worst == 0 and (np.abs(counts - weights) < 1.01).all()
        assert not counts[weights == 0].any()
        copies = [f"{key}-{c}" if c else key for c in range(counts.max()) for key in keys]
        assert list(found) == [one for one in copies if one in found]
        for row in np.flatnonzero(counts > 1)[:20].tolist():
            alike = [found[keys[row]], *(found[f"{keys[row]}-{c}"] for c in range(1, counts[row]))]
            assert all(sample == alike[0] for sample in alike)
            assert alike[0]["jpg"] == rows.read(row).jpeg


def test_a_caption_and_a_tier_of_choice(two_tiers, tmp_path, capsys):
    longs = exported(two_tiers, tmp_path / "long", "--caption", "long", "--tier", "48")
    assert "texts: long; 4 rows without it are left out" in capsys.readouterr().out
    places = [number for number in range(12) if number % 3]
    small, large = Dataset(two_tiers, "48"), Dataset(two_tiers, "full")
    for place, sample in zip(places, longs.values(), strict=True):
        assert sample["txt"].decode() == f"a löng text {place}"
        assert json.loads(sample["json"])["place"] == place
        assert sample["jpg"] == small.read(place).jpeg
    every = exported(two_tiers, tmp_path / "every")
    assert [one["jpg"] for one in every.values()] == [large.read(row).jpeg for row in range(12)]
    assert [one["txt"].decode() for one in every.values()] == [f"text {row}" for row in range(12)]


def test_pictures_in_place_keep_their_bytes_and_are_named_by_their_format(tmp_path):
    kinds = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tiff": "TIFF"}
    files = {suffix: encoded(picture(9), kind) for suffix, kind in kinds.items()}
    members: dict[str, bytes] = {}
    for suffix, file in files.items():
        # Named wrongly: what a file is counts.
        members |= {f"{suffix}.jpg": file, f"{suffix}.txt": f"the {suffix}".encode()}
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars/0.tar", members)
    words = ["index", str(tmp_path / "tars"), "--out", str(tmp_path / "set")]
    words += ["--vocab-size", "300", "--workers", "1", "--tagger", "none"]
    assert data_prep(words) == 0
    found = exported(tmp_path / "set", tmp_path / "out")
    assert {one["txt"].decode() for one in found.values()} == {f"the {one}" for one in files}
    for sample in found.values():
        suffix = sample["txt"].decode().partition(" ")[2]
        assert sample[suffix] == files[suffix]


def test_shares_and_workers_make_the_same_bytes(tiny_dataset, tmp_path, capsys):
    exported(tiny_dataset, tmp_path / "one")
    wanted = content(tmp_path / "one")
    assert len(wanted) == 1 + 5
    for share, workers, left in (
        ("2", "2", "3 shards are left"),
        ("0", "1", "2 shards are left"),
        ("1", "1", "230 samples in"),
    ):
        words = ("--task-index", share, "--task-count", "3", "--workers", workers)
        assert data_prep(command(tiny_dataset, tmp_path / "three", *words)) == 0
        told = capsys.readouterr()
        assert left in told.out and "is finished" not in told.err, told
    found = content(tmp_path / "three")
    assert sorted(found) == sorted(wanted)
    assert not [name for name in found if found[name] != wanted[name]]
    assert data_prep(command(tiny_dataset, tmp_path / "three")) == 0
    assert "three is finished" in capsys.readouterr().err


@pytest.mark.parametrize("kills", [3, pytest.param(1000, marks=pytest.mark.soak)])
def test_killed_at_any_call_the_same_command_ends_in_the_same_bytes(tiny_dataset, tmp_path, kills):
    out = tmp_path / "out"
    words = command(tiny_dataset, out)
    status, calls = forked_build(words, out, None)
    wanted = content(out)
    assert status == 0 and len(wanted) == 1 + 5 and calls > 20, (status, calls)
    for moment in range(0, calls, max(1, calls // kills)):
        shutil.rmtree(out)
        assert forked_build(words, out, moment)[0] == signal.SIGKILL, moment
        assert forked_build(words, out, None)[0] == 0, moment
        found = content(out)
        assert sorted(found) == sorted(wanted), moment
        assert not [name for name in found if found[name] != wanted[name]], moment


def test_another_request_is_refused_with_the_remedy(copy, tmp_path, capsys):
    out = tmp_path / "out"
    exported(copy, out)
    before = content(out)
    keep_weights(copy, "w", np.arange(230) % 3)
    for more, named in (
        (("--weights", "w"), "another weights, samples: choose another OUT, or remove"),
        (("--caption", "phrase"), "another caption: choose"),
        (("--shard-samples", "60"), "another shard_samples: choose"),
        (("--caption", "words"), "the captions ['label', 'keywords', 'phrase']; choose one"),
        (("--weights", "none"), "has weights ['w']: choose one of them"),
        (("--tier", "160"), "--tier='160' asked for"),
        (("--task-index", "1"), "give both --task-index and --task-count"),
        (("--shard-samples", "0"), "--shard-samples=0"),
    ):
        assert named in one_error(capsys, command(copy, out, *more))
    change_manifest(copy, lambda manifest: manifest["provenance"].update(rows_found=1))
    assert "another dataset_fingerprint: choose" in one_error(capsys, command(copy, out))
    assert "made from another version" in one_error(capsys, command(copy, out, "--weights", "w"))
    assert content(out) == before
    assert "holds shards of something else" in one_error(capsys, command(copy, copy))
    assert "holds shards of something else" in one_error(capsys, command(copy, copy / "full"))
    assert "an object store is not" in one_error(capsys, command(copy, Path("s3://bucket/x")))
    (out / "export.json").write_text("{}")
    assert "remove" in one_error(capsys, command(copy, out))


def test_damage_stops_with_the_samples_name_in_a_worker_too(copy, tmp_path, capsys):
    damage(copy, [70])
    key = Dataset(copy, "full").key(70)
    told = one_error(capsys, command(copy, tmp_path / "out", "--workers", "2"))
    assert f"sample {key}: crc_mismatch (member jpg" in told and "copy the dataset again" in told
    assert "00001.tar" not in content(tmp_path / "out")


def test_the_webdataset_package_reads_it(tiny_dataset, tmp_path):
    exported(tiny_dataset, tmp_path / "out")
    files = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    pairs = list(
        webdataset.WebDataset(files, shardshuffle=False).decode("pil").to_tuple("jpg", "txt")
    )
    rows = Dataset(tiny_dataset, "full")
    assert len(pairs) == len(rows)
    for row, (image, text) in enumerate(pairs):
        wanted = Image.open(io.BytesIO(rows.read(row).jpeg)).convert("RGB")
        assert (np.asarray(image) == np.asarray(wanted)).all()
        assert text == rows.read_json(row)["captions"]["label"]


def test_open_clips_own_trainer_reads_it(tiny_dataset, tmp_path, monkeypatch):
    """`get_wds_dataset` of open_clip 3.3. It knows webdataset 0.2, which has no mark at a shard's
    end: the installed 1.0 is asked to leave that out. All else is theirs."""
    import open_clip
    import open_clip_train.data as theirs

    no_mark = partial(theirs.tar_file_expander, eof_value=None)
    monkeypatch.setattr(theirs, "tar_file_expander", no_mark)
    found = exported(tiny_dataset, tmp_path / "out")
    asked = SimpleNamespace(
        train_data=f"{tmp_path}/out/{{00000..00004}}.tar",
        train_data_upsampling_factors=None,
        dataset_resampled=False,
        train_num_samples=len(found),
        batch_size=46,
        workers=0,
        seed=0,
        world_size=1,
        rank=0,
        distributed=False,
    )
    shape = open_clip.transform.PreprocessCfg(size=32)
    transform = open_clip.transform.image_transform_v2(shape, is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-16")
    data = theirs.get_wds_dataset(asked, transform, is_train=True, tokenizer=tokenizer)
    batches = list(data.dataloader)
    assert [tuple(images.shape) for images, _ in batches] == [(46, 3, 32, 32)] * 5
    read = Counter(tuple(ids) for _, texts in batches for ids in texts.tolist())
    texts = tokenizer([sample["txt"].decode() for sample in found.values()])
    assert read == Counter(tuple(ids) for ids in texts.tolist())
