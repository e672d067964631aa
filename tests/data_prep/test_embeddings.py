"""Embeddings of a dataset: the model's own, whole however they are killed or shared out; and the
weights by clusters and by similarity that are made of them."""

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_prep_corpus import encoded, options, picture, write_corpus
from dataset_copies import change_manifest, damage, keep_weights
from forkserver import CONTEXT
from killed_builds import content, die_at_call
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from tiny_models import write_untrained
from tiny_runs import ROOT

import pretrain
from data_prep.__main__ import main as data_prep
from data_prep.build.pipeline import build_dataset
from pretrain.dataset.embeddings import EmbeddingsInfo, open_embeddings
from pretrain.dataset.manifest import read_manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import open_weights

HALF_ULP = 2**-12  # float16's largest rounding of a number below 1, and a bit


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory) -> Path:
    """An untrained export, whose vectors are as good as any here."""
    return write_untrained(tmp_path_factory.mktemp("embeddings") / "model", tiny_dataset)


@pytest.fixture(scope="module")
def embedded(tiny_dataset, model, tmp_path_factory) -> Path:
    """A copy of the tiny dataset with embeddings `own`, made without a disturbance."""
    dataset = Path(shutil.copytree(tiny_dataset, tmp_path_factory.mktemp("embedded") / "set"))
    assert data_prep(command(model, dataset)) == 0
    return dataset


def command(model: Path, dataset: Path, *more: str) -> list[str]:
    return ["embed", str(model), str(dataset), "--out", "own", *more]


def vectors(dataset: Path, kind: str, name: str = "own") -> np.ndarray:
    files = sorted((dataset / "embeddings" / name).glob(f"*.{kind}.npy"))
    return np.concatenate([np.load(file) for file in files])


def one_error(capsys, words: list[str]) -> str:
    """The single line that a refused command prints."""
    assert data_prep(words) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and "\n" not in errors, errors
    return errors


def test_they_are_what_the_loaded_model_gives(embedded, model):
    loaded = pretrain.load(model)
    dataset = Dataset(embedded, "full")
    rows = range(len(dataset))
    pictures = [Image.open(io.BytesIO(dataset.read(row).jpeg)) for row in rows]
    labels = [dataset.read_json(row)["captions"]["label"] for row in rows]
    for kind, wanted in (
        ("image", loaded.encode_image(pictures)),
        ("text", loaded.encode_text(labels)),
    ):
        found = vectors(embedded, kind)
        assert found.dtype == np.dtype("<f2") and found.shape == (len(dataset), 32)
        worst = np.abs(found.astype(np.float64) - wanted.double().numpy()).max()
        assert worst < HALF_ULP, f"{kind}: largest difference {worst:.1e}"
    folder = embedded / "embeddings/own"
    assert len(list(folder.iterdir())) == 2 * 4 + 1  # no lock, nothing half-written
    told = json.loads((folder / "embeddings.json").read_text())
    assert (told["dimension"], told["image_px"], told["tier"]) == (32, 32, "full")


def test_another_caption_and_samples_without_it(model, tiny_dataset, tmp_path, capsys):
    """Every third picture has no long text: its row is zeros, and it has no score."""
    files = [encoded(picture(number)) for number in range(12)]
    longs = [None if number % 3 == 0 else f"a long text {number}" for number in range(12)]
    columns = {"image": files, "caption": [f"text {number}" for number in range(12)], "long": longs}
    source = write_corpus(tmp_path / "source.parquet", columns)
    out, tokenizer = tmp_path / "set", tiny_dataset / "tokenizer.model"
    captions = ("label={caption}", "long={long}")
    build_dataset(options(source, out, captions=captions, tokenizer=tokenizer, shard_samples=7))
    assert data_prep(command(model, out, "--caption", "long", "--batch", "5")) == 0
    dataset, loaded = Dataset(out, "full"), pretrain.load(model)
    found = vectors(out, "text")
    for row, vector in enumerate(found):
        text = dataset.read_json(row)["captions"].get("long")
        wanted = 0 if text is None else loaded.encode_text([text])[0].double().numpy()
        worst = np.abs(vector - wanted).max()
        assert worst < HALF_ULP, f"row {row}: largest difference {worst:.1e}"
    assert np.count_nonzero(~found.any(axis=1)) == 4
    assert data_prep(filtering(out, "own", "0.5")) == 0
    assert "4 of 12 samples get weight 0" in capsys.readouterr().out
    assert (np.load(out / "weights/w.npy")[~found.any(axis=1)] == 1).all()
    assert "--caption='words'" in one_error(capsys, command(model, out, "--caption", "words"))


def embed_and_die(words: list[str], folder: Path, kill_at: int | None, counted: Path) -> None:
    """In a fork: the command, killed before its call number `kill_at` that touches `folder`."""
    import torch

    torch.set_num_threads(1)
    calls = die_at_call(folder, kill_at)
    status = data_prep(words)
    made = calls()
    counted.write_text(str(made))
    sys.exit(status)


def forked(words: list[str], folder: Path, kill_at: int | None = None) -> tuple[int | None, int]:
    """(exit status, calls that touched `folder`) of the command in a process of its own."""
    counted = folder.parents[1].with_suffix(".calls")
    counted.unlink(missing_ok=True)
    process = CONTEXT.Process(target=embed_and_die, args=(words, folder, kill_at, counted))
    process.start()
    process.join()
    return process.exitcode, int(counted.read_text()) if counted.exists() else -1


@pytest.mark.soak
@pytest.mark.parametrize("kills", [1, pytest.param(6, marks=pytest.mark.soak)])
def test_killed_at_any_call_the_same_command_ends_in_the_same_bytes(copy, embedded, model, kills):
    folder, wanted = copy / "embeddings/own", content(embedded / "embeddings/own")
    status, calls = forked(command(model, copy), folder)
    assert status == 0 and calls > 40 and content(folder) == wanted, (status, calls)
    for moment in range(calls // 2 // kills, calls * 9 // 10, calls // (kills + 1)):
        shutil.rmtree(folder)
        assert forked(command(model, copy), folder, moment)[0] == -signal.SIGKILL, moment
        assert forked(command(model, copy), folder)[0] == 0, moment
        found = content(folder)
        assert sorted(found) == sorted(wanted), moment
        assert not [name for name in found if found[name] != wanted[name]], moment


@pytest.mark.soak
def test_tasks_that_work_at_once_make_what_one_does(copy, embedded, model, capsys):
    folder, finished = copy / "embeddings/own", copy / "embeddings/own/embeddings.json"
    words = [command(model, copy, "--task-index", i, "--task-count", "2") for i in "01"]
    assert data_prep(words[1]) == 0
    assert "2 shards are left to other processes" in capsys.readouterr().out
    assert [file.name[:5] for file in sorted(folder.glob("*.image.npy"))] == ["00001", "00003"]
    assert not finished.exists()
    assert data_prep(words[0]) == 0
    assert content(folder) == content(embedded / "embeddings/own")

    shutil.rmtree(folder)  # two shares and two whole commands at the same time
    counted = copy.parent / "unused"
    everyone = [
        CONTEXT.Process(target=embed_and_die, args=(some, folder, None, counted))
        for some in (*words, command(model, copy), command(model, copy))
    ]
    for process in everyone:
        process.start()
    for process in everyone:
        process.join()
    assert [process.exitcode for process in everyone] == [0, 0, 0, 0]
    assert data_prep(command(model, copy)) == 0
    assert content(folder) == content(embedded / "embeddings/own")


@pytest.mark.parametrize("state", ["finished", "begun"])
def test_another_model_or_dataset_is_refused_with_the_remedy(
    embedded, model, tmp_path, capsys, state
):
    dataset = Path(shutil.copytree(embedded, tmp_path / "set"))
    folder = dataset / "embeddings/own"
    if state == "begun":
        (folder / "embeddings.json").rename(folder / "begun.json")
        (folder / "00003.text.npy").unlink()
    other = write_untrained(tmp_path / "other", dataset, image_px=48)
    before = content(folder)
    told = one_error(capsys, command(other, dataset))
    assert "another model_fingerprint, image_px: choose another --out, or remove" in told
    assert "another caption" in one_error(capsys, command(model, dataset, "--caption", "phrase"))
    change_manifest(dataset, lambda manifest: manifest["provenance"].update(rows_found=1))
    assert "another dataset_fingerprint: choose" in one_error(capsys, command(model, dataset))
    after = {name: file for name, file in content(folder).items() if name != "lock"}
    assert after == before


def test_a_wrong_request_to_embed_is_one_line(copy, model, tmp_path, capsys):
    for words, named in (
        (command(tmp_path / "none", copy), "not an exported model"),
        (command(model, tmp_path), "no manifest.json"),
        (command(model, copy, "--tier", "160"), "--tier='160'"),
        (command(model, copy, "--batch", "0"), "--batch=0"),
        (command(model, copy, "--device", "abacus"), "device='abacus'"),
        (command(model, copy, "--task-index", "1"), "give both --task-index and --task-count"),
        (["embed", str(model), str(copy), "--out", "../x"], "--out='../x' must be a name"),
    ):
        assert named in one_error(capsys, words)
        assert not (copy / "embeddings").exists()
    damage(copy, [70])
    assert "00001.tar; copy the dataset again" in one_error(capsys, command(model, copy))


def test_a_run_folder_means_its_export(embedded, model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "run/export")
    assert data_prep(command(tmp_path / "run", embedded)) == 0
    assert "230 samples" in capsys.readouterr().out


def test_the_door_stays_cheap():
    code = "import sys, data_prep.__main__; assert not {'torch', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def store(dataset: Path, name: str, image: np.ndarray, text: np.ndarray) -> None:
    """Embeddings of somebody else's vectors, in the dataset's shards."""
    manifest = read_manifest(dataset)
    samples = [shard.samples for shard in manifest.tiers["full"].shards]
    info = EmbeddingsInfo(
        model_fingerprint="0" * 64,
        dataset_fingerprint=manifest.fingerprint,
        dimension=image.shape[1],
        image_px=32,
        tier="full",
        caption="label",
        shard_samples=samples,
    )
    folder = dataset / "embeddings" / name
    folder.mkdir(parents=True)
    for kind, both in (("image", image), ("text", text)):
        for shard, part in enumerate(np.split(both, np.cumsum(samples)[:-1])):
            np.save(folder / f"{shard:05d}.{kind}.npy", part.astype("<f2"))
    (folder / "embeddings.json").write_text(info.to_json())


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def separated(rows: int) -> np.ndarray:
    """(rows, 16) unit vectors around 7 directions, of which some have many rows and some few."""
    draws = np.random.default_rng(3)
    centres = np.linalg.qr(draws.normal(size=(16, 16)))[0][:7]
    owners = draws.choice(7, rows, p=[0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.05])
    return unit(centres[owners] + draws.normal(scale=0.02, size=(rows, 16)))


def test_clusters_of_separated_vectors_are_scikit_learns_and_weigh_by_the_rule(copy, capsys):
    image = separated(230)
    store(copy, "some", image, image)
    weigh = ["weigh", str(copy), "--clusters", "7", "--embeddings", "some", "--alpha", "0.3"]
    assert data_prep([*weigh, "--target", "400", "--out", "w"]) == 0
    table = capsys.readouterr().out.splitlines()
    weights = np.load(copy / "weights/w.npy")
    labels = KMeans(7, n_init=20, random_state=0).fit_predict(image)
    groups = np.unique(weights, return_inverse=True)[1]
    sizes = np.bincount(labels)
    wanted = sizes**0.3 / (sizes**0.3).sum() * 400 / sizes
    worst = np.abs(weights - wanted[labels]).max()
    assert worst < 1e-5, f"largest difference {worst:.1e}"
    assert len(set(sizes)) == 7 and adjusted_rand_score(groups, labels) == 1
    assert [line.split()[2] for line in table[1:-1]] == [str(n) for n in sorted(sizes)[::-1]]
    before = (copy / "weights/w.npy").read_bytes()
    assert data_prep([*weigh, "--target", "400", "--out", "w"]) == 0
    assert (copy / "weights/w.npy").read_bytes() == before
    open_weights(copy, "w", read_manifest(copy))


def test_clusters_that_end_empty_are_no_groups(copy):
    image = np.eye(16)[np.arange(230) % 5]
    store(copy, "few", image, image)
    weigh = ["weigh", str(copy), "--clusters", "9", "--embeddings", "few", "--alpha", "0"]
    assert data_prep([*weigh, "--out", "w"]) == 0
    assert np.allclose(np.load(copy / "weights/w.npy"), 1)  # 5 groups of 46


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--by", "artist", "--clusters", "3"], "--by=artist, --clusters=3"),
        ([], "--by=None, --clusters=None"),
        (["--clusters", "3"], "--clusters=3, --embeddings=None"),
        (["--by", "artist", "--embeddings", "own"], "--clusters=None, --embeddings=own"),
        (["--clusters", "0", "--embeddings", "own"], "--clusters=0"),
        (["--clusters", "3", "--embeddings", "own", "--starts", "0"], "--starts=0"),
        (["--clusters", "231", "--embeddings", "own"], "there are 230 samples"),
        (["--clusters", "3", "--embeddings", "no"], "['own']: choose one of them"),
        (["--clusters", "3", "--embeddings", "../own"], "--embeddings='../own'"),
    ],
)
def test_a_wrong_request_for_clusters_is_one_line(embedded, capsys, words, named):
    assert named in one_error(capsys, ["weigh", str(embedded), *words, "--out", "wrong"])
    assert not (embedded / "weights/wrong.npy").exists()


def filtering(dataset: Path, name: str, share: str, *more: str) -> list[str]:
    asked = ["--embeddings", name, "--similarity-quantile", share]
    return ["filter", str(dataset), *asked, "--out", "w", *more]


def test_the_filter_drops_the_lowest_cosines(embedded, capsys):
    """Against float64 over the stored vectors."""
    image, text = (unit(vectors(embedded, kind).astype(np.float64)) for kind in ("image", "text"))
    scores = (image * text).sum(axis=1)
    assert data_prep(filtering(embedded, "own", "0.3")) == 0
    told = capsys.readouterr().out
    wanted = np.ones(230)
    wanted[np.lexsort((np.arange(230), scores))[:69]] = 0
    weights = np.load(embedded / "weights/w.npy")
    assert weights.dtype == np.float32 and (weights == wanted).all()
    for at in (0, 0.25, 0.5, 0.99):
        assert f"{at:<12g}{np.quantile(scores, at):.4f}" in told
    label = Dataset(embedded, "full").read_json(int(scores.argmin()))["captions"]["label"]
    assert f"lowest      {scores.min():.4f}  {label}" in told
    label = Dataset(embedded, "full").read_json(int(scores.argmax()))["captions"]["label"]
    assert f"highest     {scores.max():.4f}  {label}" in told


def test_ties_lengths_missing_texts_and_other_weights(copy, capsys):
    """Rows 0 to 9 are worst and alike; 20 to 29 have no text; lengths do not matter."""
    image = np.eye(16)[np.zeros(230, int)] * np.linspace(0.5, 2, 230)[:, None]
    text = image.copy()
    text[:10] = -text[:10]
    text[20:30] = 0
    store(copy, "made", image, text)
    base = np.linspace(0, 3, 230).astype("<f4")
    keep_weights(copy, "base", base)
    share = str(4 / 220)
    assert data_prep(filtering(copy, "made", share, "--weights", "base")) == 0
    assert "10 have no score" in capsys.readouterr().out
    wanted = base.copy()
    wanted[:4] = 0
    assert (np.load(copy / "weights/w.npy") == wanted).all()
    assert (np.load(copy / "weights/base.npy") == base).all()


def greedy_repeats(image: np.ndarray, scores: np.ndarray, cosine: float, base: np.ndarray):
    """Rows left out, by comparing each with all kept before it, in float64."""
    kept: list[int] = []
    for row in np.lexsort((np.arange(len(image)), -scores)):
        if base[row] > 0 and not any(image[row] @ image[other] >= cosine for other in kept):
            kept.append(row)
    return np.setdiff1d(np.flatnonzero(base > 0), kept)


@pytest.mark.parametrize("block", [7, 1024])
def test_near_duplicates_are_left_out_but_for_the_one_its_text_fits_best(
    copy, capsys, monkeypatch, block, tmp_path
):
    """In one cluster every pair is compared: as many are left out as by comparing all with all."""
    monkeypatch.setattr("data_prep.dedup.semantic._BLOCK", block)
    random = np.random.default_rng(0)
    image = unit(random.normal(size=(40, 16)))[random.integers(0, 40, 230)]
    image = unit(image + random.normal(scale=0.06, size=image.shape))
    text = unit(image + random.normal(scale=0.5, size=image.shape))
    text[20:30] = 0
    store(copy, "made", image, text)
    image, text = (vectors(copy, kind, "made").astype(np.float64) for kind in ("image", "text"))
    image = unit(image)
    lengths = np.maximum(np.linalg.norm(text, axis=1), 1e-9)
    scores = np.where(text.any(axis=1), (image * text).sum(axis=1) / lengths, -np.inf)
    base = np.ones(230)
    base[::9] = 0
    keep_weights(copy, "base", base)
    wanted = greedy_repeats(image, scores, 0.9, base)
    assert 50 < len(wanted) < 180
    asked = ["--embeddings", "made", "--duplicate-cosine", "0.9", "--weights", "base", "--out", "w"]
    page = tmp_path / "page.html"
    assert data_prep(["filter", str(copy), *asked, "--clusters", "1", "--page", str(page)]) == 0
    cosines = [float(word) for word in re.findall(r">cosine ([\d.]+)<", page.read_text())]
    alike = image @ image.T
    assert cosines[:8] == sorted(cosines[:8]) and min(cosines) >= 0.9
    assert all(np.abs(alike - cosine).min() < 1e-4 for cosine in cosines)
    assert 60 < page.read_text().count("<img") <= 120
    expected = base.copy()
    expected[wanted] = 0
    assert (np.load(copy / "weights/w.npy") == expected).all()
    told = capsys.readouterr().out
    assert f"{len(wanted)} of 230 samples get weight 0 as near duplicates" in told

    # By default in the clusters alone, in parts of memory: fewer, and each is near a kept one.
    monkeypatch.setattr("data_prep.dedup.semantic._HELD_BYTES", 40 * 16 * 4)
    assert data_prep(["filter", str(copy), *asked]) == 0
    weights = np.load(copy / "weights/w.npy")
    left_out = np.flatnonzero((base > 0) & (weights == 0))
    assert 0.5 * len(wanted) < len(left_out) <= len(wanted)
    assert ((image[left_out] @ image[weights > 0].T).max(axis=1) > 0.9 - 1e-6).all()


def test_a_wrong_request_to_filter_is_one_line(embedded, copy, capsys):
    for share in ("0", "1", "-0.5"):
        told = one_error(capsys, filtering(embedded, "own", share))
        assert "--similarity-quantile=" in told and "between 0 and 1" in told
        told = one_error(capsys, filtering(embedded, "own", "0.5", "--duplicate-cosine", share))
        assert "--duplicate-cosine=" in told and "between 0 and 1" in told
    nothing = ["filter", str(embedded), "--embeddings", "own", "--out", "w"]
    assert "give --similarity-quantile, --duplicate-cosine or both" in one_error(capsys, nothing)
    told = one_error(capsys, filtering(embedded, "own", "0.5", "--clusters", "3"))
    assert "--clusters=3 goes with --duplicate-cosine" in told
    told = one_error(capsys, filtering(embedded, "own", "0.5", "--page", str(embedded)))
    assert "--page=" in told and "name a file" in told
    assert "--weights='no': there is no" in one_error(
        capsys, filtering(embedded, "own", "0.5", "--weights", "no")
    )
    shutil.copytree(embedded / "embeddings", copy / "embeddings")
    folder = copy / "embeddings/own"
    one = np.zeros(230, "<f4")
    scores = (vectors(copy, "image").astype(float) * vectors(copy, "text")).sum(axis=1)
    one[scores.argmin()] = 1
    keep_weights(copy, "one", one)
    told = one_error(capsys, filtering(copy, "own", "0.5", "--weights", "one"))
    assert "no sample that it shows is kept" in told
    assert not (copy / "weights/w.npy").exists()

    whole = (folder / "00002.text.npy").read_bytes()
    for broken, named in (
        (whole[:-100], "is missing or damaged"),
        (b"", "is missing or damaged"),
        (whole.replace(b"<f2", b"<i2"), "holds int16 (60, 32), expected float16 (60, 32)"),
    ):
        (folder / "00002.text.npy").write_bytes(broken)
        told = one_error(capsys, filtering(copy, "own", "0.5"))
        assert named in told and "data_prep embed" in told
    (folder / "00002.text.npy").unlink()
    assert "is missing or damaged" in one_error(capsys, filtering(copy, "own", "0.5"))
    record = (folder / "embeddings.json").read_text()
    (folder / "embeddings.json").write_text(record.replace('"dimension": 32', '"dimension": "x"'))
    assert "remove its folder and make them" in one_error(capsys, filtering(copy, "own", "0.5"))
    (folder / "embeddings.json").rename(folder / "begun.json")
    assert "is unfinished" in one_error(capsys, filtering(copy, "own", "0.5"))
    (folder / "embeddings.json").write_text(record)
    change_manifest(copy, lambda manifest: manifest["provenance"].update(rows_found=1))
    assert "another version of" in one_error(capsys, filtering(copy, "own", "0.5"))


def test_open_embeddings_gives_rows_in_the_index_order(embedded):
    found = open_embeddings(embedded, read_manifest(embedded), "own")
    firsts = [first for first, _ in found.shards("image")]
    assert firsts == [0, 60, 120, 180]
