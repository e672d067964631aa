"""Corpora and datasets on a real S3 server: the bytes of a disk, whatever the network does."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_prep_corpus import plain_corpus
from object_store import KEY, ObjectStore, object_store

from data_prep.__main__ import main
from data_prep.sources.stores import _list, bring_all
from pretrain.dataset.reader import Dataset
from pretrain.dataset.shards import ShardOptions
from tests.data_prep.test_webdataset import write_tar

pytest.importorskip("s3fs", reason="needs requirements-stores.txt")
pytest.importorskip("moto", reason="needs requirements-dev.txt")

COMMON = ["--tiers", "48:90,32:90"]
COMMON += ["--shard-samples", "8", "--vocab-size", "300", "--workers", "1"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("data_prep.sources.far._WAIT_S", 0.05)
    with object_store(monkeypatch.setenv) as found:
        yield found


def put(folder: Path, below: str) -> None:
    """The files of a folder, as objects."""
    fsspec.filesystem("s3").put(f"{folder}/", f"bucket/{below}/", recursive=True)


def corpora(folder: Path) -> dict[str, Path]:
    """Two Parquet files, and three tars."""
    (folder / "parquet").mkdir(parents=True)
    (folder / "tars").mkdir()
    plain_corpus(folder / "parquet" / "0.parquet", 20)
    plain_corpus(folder / "parquet" / "1.parquet", 24)
    for number in range(3):
        write_tar(folder / "tars" / f"{number:05d}.tar", 9 + number)
    (folder / "tars" / "notes.md").write_text("left alone")
    return {"parquet": folder / "parquet", "webdataset": folder / "tars"}


def build(source: str, out: str, *more: str) -> int:
    return main(["build", "--source", source, "--out", out, *COMMON, *more])


def tree(folder: Path) -> dict[str, bytes]:
    """All files that make a dataset."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_a_corpus_there_gives_the_dataset_of_one_here(
    kind: str, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = corpora(tmp_path / "corpus")[kind]
    put(source, "corpus")
    asked = str(source) if kind == "parquet" else f"{source}/*.tar"
    assert build(asked, str(tmp_path / "here")) == 0
    store.busy_every, store.cut_every, store.wait_s = 5, 7, 0.02
    assert build("s3://bucket/corpus", str(tmp_path / "there")) == 0, capsys.readouterr().err
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    whole = [path for method, path in store.requests if method == "GET" and path.endswith(".tar")]
    if kind == "webdataset":
        assert "1 .md" in capsys.readouterr().err
        assert set(whole) == {f"/bucket/corpus/{number:05d}.tar" for number in range(3)}
        store.busy_every = store.cut_every = 0
        named = "s3://bucket/corpus/{00000..00001}.tar"
        assert build(named, str(tmp_path / "some"), "--cache", str(tmp_path / "cache")) == 0
        kept = list((tmp_path / "cache" / "clipa-pretrain").glob("*.tar"))
        assert len(kept) == 2, "each file once, and no other"
        assert build("s3://bucket/corpus/{00002..00003}.tar", str(tmp_path / "none")) == 2
        assert "00003.tar, one of 1 that are missing" in capsys.readouterr().err


def test_a_changed_object_ends_the_build(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del store
    source = corpora(tmp_path / "corpus")["webdataset"]
    put(source, "corpus")
    out = str(tmp_path / "out")
    share = ["--task-count", "2", "--task-index", "0"]
    assert build("s3://bucket/corpus", out, *share) == 0
    content = (source / "00002.tar").read_bytes().replace(b"number 3", b"number 4")
    fsspec.filesystem("s3").pipe_file("bucket/corpus/00002.tar", content)
    assert build("s3://bucket/corpus", out, *share[:3], "1") == 2
    error = capsys.readouterr().err
    assert "have changed since" in error and "--overwrite" in error


def test_a_dataset_made_there_is_the_one_made_here(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By three shares, each on a machine of its own, one of which the store refuses for a while."""
    source = str(corpora(tmp_path / "corpus")["parquet"])
    assert build(source, str(tmp_path / "here")) == 0
    out = "s3://bucket/data/set"
    share = ["--task-count", "3", "--task-index"]

    def work(number: int) -> list[str]:
        return ["--work", str(tmp_path / f"work{number}")]

    assert build(source, out, *work(0), *share, "0") == 2
    assert "--plan-only" in capsys.readouterr().err
    assert build(source, out, *work(0), "--plan-only") == 0
    assert build(source, out, *work(0), *share, "0") == 0
    store.writes_left = 3
    assert build(source, out, *work(1), *share, "1") == 2
    assert "access is refused" in capsys.readouterr().err
    store.writes_left = None
    store.busy_every, store.cut_every = 6, 9
    assert build(source, out, *work(1), *share, "1") == 0
    assert build(source, out, *work(2), *share, "2") == 0
    assert not list(tmp_path.glob("work*/**/*.tar")), "what is sent does not stay here"
    assert build(source, out, *work(3)) == 0, "a machine that has seen nothing joins them"
    assert store.files("bucket") == {
        f"data/set/{name}": content for name, content in tree(tmp_path / "here").items()
    }
    store.busy_every = store.cut_every = 0
    assert build(source, out, *work(4)) == 0
    assert "is finished" in capsys.readouterr().err
    shards = ShardOptions(url=out, cache=tmp_path / "shards")
    far = Dataset(tmp_path / "work3", "48", shards=shards)
    near = Dataset(tmp_path / "here", "48")
    rows = np.arange(len(near))
    assert list(far.members(rows, ("jpg", "ids"))) == list(near.members(rows, ("jpg", "ids")))


def test_repeated_keys_and_a_second_build_in_its_place(store: ObjectStore, tmp_path: Path) -> None:
    """Shards that lose a sample are brought, made anew and sent; another dataset leaves nothing."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    plain_corpus(folder / "0.parquet", 20)
    (folder / "1.parquet").write_bytes((folder / "0.parquet").read_bytes())
    out, work = "s3://bucket/data", ["--work", str(tmp_path / "work")]
    assert build(str(folder), out, *work) == 0
    assert build(str(folder), str(tmp_path / "here")) == 0
    expected = {f"data/{name}": content for name, content in tree(tmp_path / "here").items()}
    assert store.files("bucket") == expected
    other = str(corpora(tmp_path / "other")["webdataset"])
    assert build(other, out, *work) == 2
    assert build(other, out, *work, "--overwrite") == 0
    assert build(other, str(tmp_path / "second")) == 0
    expected = {f"data/{name}": content for name, content in tree(tmp_path / "second").items()}
    assert store.files("bucket") == expected


def test_what_is_published_is_fetched_with_what_was_added(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(corpora(tmp_path / "corpus")["parquet"])
    here, url = tmp_path / "here", "s3://bucket/set"
    assert build(source, str(here)) == 0
    store.writes_left = 3
    assert main(["publish", str(here), "--url", url]) == 2
    store.writes_left = None
    assert "manifest.json" not in "".join(store.files("bucket"))
    assert main(["publish", str(here), "--url", url]) == 0
    before = len(store.requests)
    assert main(["weigh", str(here), "--by", "split", "--out", "w"]) == 0
    assert main(["publish", str(here), "--url", url]) == 0
    sent = [path for method, path in store.requests[before:] if method in ("PUT", "POST")]
    assert not [path for path in sent if path.endswith(".tar")], "no shard is sent twice"
    expected = {f"set/{name}": content for name, content in tree(here).items()}
    assert store.files("bucket") == expected
    there = tmp_path / "there"
    assert main(["fetch", str(there), "--url", url, "--also", "weights"]) == 0
    small = {name: found for name, found in tree(here).items() if not name.endswith(".tar")}
    assert {k: v for k, v in small.items() if not k.startswith("concepts/")} == tree(there)
    capsys.readouterr()
    assert main(["fetch", str(tmp_path / "one"), "--url", url, "--also", "weights/w.npy"]) == 0
    assert (tmp_path / "one/weights/w.json").exists(), "with its digest"
    before = len(store.requests)
    assert main(["publish", str(here), "--url", url]) == 0
    assert not [path for method, path in store.requests[before:] if method in ("PUT", "POST")]
    capsys.readouterr()
    for wrong in ("weights/none.npy", "embeddings", "../weights/w.npy", "48"):
        assert main(["fetch", str(there), "--url", url, "--also", wrong]) == 2
        error = capsys.readouterr().err
        assert "--also" in error and len(error.splitlines()) == 1, error
    other = tmp_path / "other"
    assert build(str(corpora(tmp_path / "more")["webdataset"]), str(other)) == 0
    assert main(["publish", str(other), "--url", url]) == 2
    assert "holds another dataset" in capsys.readouterr().err
    again = tmp_path / "again"  # shards of the same sizes, other word classes
    assert build(source, str(again), "--tagger", "none") == 0
    assert main(["publish", str(again), "--url", url, "--overwrite"]) == 0
    found = store.files("bucket")
    for name, content in tree(again).items():
        assert found[f"set/{name}"] == content, name


def test_nothing_but_the_dataset_itself_is_cleared(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the source, nor a neighbour, nor what a work folder held before."""
    source = corpora(tmp_path / "corpus")["webdataset"]
    put(source, "tars")
    put(source, "other/tars")
    before = store.files("bucket")
    for out in ("s3://bucket", "s3://bucket/tars", "s3://bucket/tars/inside"):
        assert build("s3://bucket/tars", out, "--work", str(tmp_path / "w0")) == 2, out
        assert "lie in one another" in capsys.readouterr().err
    work = ["--work", str(tmp_path / "w1")]
    assert build("s3://bucket/tars", "s3://bucket/other", *work) == 0
    found = store.files("bucket")
    assert {name: found[name] for name in before} == before
    here = tmp_path / "here"
    assert build(f"{source}/*.tar", str(here)) == 0
    held = tree(here)
    for folder, said in ((here, "of its own"), (tmp_path / "w1", "is the work folder of")):
        asked = ["s3://bucket/tars", "s3://bucket/third", "--work", str(folder), "--plan-only"]
        assert build(*asked) == 2
        assert said in capsys.readouterr().err
    assert tree(here) == held
    assert build(f"{source}/*.tar", str(tmp_path / "w1")) == 2
    assert "is the work folder of" in capsys.readouterr().err


def test_a_share_never_plans_there(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = str(corpora(tmp_path / "corpus")["parquet"]), "s3://bucket/set"
    assert build(source, out, "--work", str(tmp_path / "w0")) == 0
    again = ["--overwrite", "--tagger", "none"]
    share = ["--task-count", "2", "--task-index"]
    wa, wb, wc = (["--work", str(tmp_path / name)] for name in ("a", "b", "c"))
    assert build(source, out, *wa, *share, "0", *again) == 2
    assert "--plan-only" in capsys.readouterr().err
    assert build(source, out, *wa, "--plan-only", *again) == 0
    assert build(source, out, *wa, *share, "0", *again) == 0
    made = {name for name in store.files("bucket") if name.endswith(".tar")}
    assert build(source, out, *wb, *share, "1", *again) == 0
    assert made < {name for name in store.files("bucket") if name.endswith(".tar")}
    assert build(source, out, *wb, *share, "1") == 2, "of other options"
    assert build(source, out, *wc, *again) == 0
    assert build(source, str(tmp_path / "here"), "--tagger", "none") == 0
    expected = {f"set/{name}": content for name, content in tree(tmp_path / "here").items()}
    assert store.files("bucket") == expected


def test_datasets_there_are_joined_there(store: ObjectStore, tmp_path: Path) -> None:
    folder = corpora(tmp_path / "corpus")["parquet"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert build(str(folder / "0.parquet"), str(one)) == 0
    tokenizer = ["--tokenizer", str(one / "tokenizer.model")]
    assert build(str(folder / "1.parquet"), str(two), *tokenizer) == 0
    asked: list[str] = []
    for name in ("one", "two"):
        url = f"s3://bucket/{name}"
        assert main(["publish", str(tmp_path / name), "--url", url]) == 0
        assert main(["fetch", str(tmp_path / f"far_{name}"), "--url", url]) == 0
        asked += ["--source", str(tmp_path / f"far_{name}"), "--source-url", url]
    names = ["--share", "1", "--share", "3"]
    near = [word for name in (one, two) for word in ("--source", str(name))]
    assert main(["join", str(tmp_path / "here"), *near, *names]) == 0
    before = len(store.requests)
    assert main(["join", str(tmp_path / "all"), *asked, "--url", "s3://bucket/all", *names]) == 0
    read = [path for method, path in store.requests[before:] if method == "GET"]
    assert not [path for path in read if path.endswith(".tar")], "no shard comes to this machine"
    found = {
        name.removeprefix("all/"): content
        for name, content in store.files("bucket").items()
        if name.startswith("all/") and not name.endswith("manifest.json")
    }
    expected = tree(tmp_path / "here")
    del expected["manifest.json"], expected["weights/mix.json"]  # which name the sources
    del found["weights/mix.json"]
    assert found == expected
    assert main(["join", str(tmp_path / "all"), *asked[:2], *near[:2], *asked[2:]]) == 2


def test_links_of_a_table_there(store: ObjectStore, tmp_path: Path) -> None:
    fsspec.filesystem("s3").pipe_file("bucket/links/0.tsv", b"url\ttext\nhttp://h/1\ta\n")
    fsspec.filesystem("s3").pipe_file("bucket/links/readme.md", b"left alone")
    store.busy_every = 3
    folder = bring_all("s3://bucket/links", (".tsv", ".csv"), tmp_path / "far")
    assert [path.name for path in folder.iterdir()] == ["0.tsv"]
    assert (folder / "0.tsv").read_bytes().endswith(b"a\n")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("pipe:cat s3://bucket/x.tar", "no program is run"),
        ("nonsense://a/b", "source=nonsense://a/b: Protocol not known"),
        ("s3://bucket/none", "there is no such file"),
        ("s3://bucket/{3..1}.tar", "is not an ascending range"),
    ],
)
def test_an_address_that_is_none_is_one_line(
    source: str, said: str, store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del store
    assert build(source, str(tmp_path / "out")) == 2
    error = capsys.readouterr().err.strip()
    assert said in error and "\n" not in error, error
    assert not (tmp_path / "out").exists()


@pytest.mark.soak
def test_ten_thousand_objects_are_listed_by_pages(store: ObjectStore) -> None:
    system = fsspec.filesystem("s3")
    from moto.backends import get_backend

    bucket = get_backend("s3")["123456789012"]["aws"]
    for number in range(10_000):
        bucket.put_object("bucket", f"many/{number:05d}.tar", b"")
    begun = len(store.requests)
    assert len(_list("s3://bucket/many")) == 10_000
    assert len(_list("s3://bucket/many/{00000..09999}.tar")) == 10_000
    pages = [path for method, path in store.requests[begun:] if method == "GET"]
    assert 20 <= len(pages) <= 24, "a thousand a page, twice"
    del system


@pytest.mark.parametrize(("key", "said"), [("wrong", "access is refused"), ("", "credentials")])
def test_wrong_credentials_are_one_line(
    key: str,
    said: str,
    store: ObjectStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    del store
    assert key != KEY
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    fsspec.filesystem("s3").clear_instance_cache()
    if not key:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert build("s3://bucket/corpus", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0] and "AWS_ACCESS_KEY_ID" in error[0], error
