"""A request that cannot be met ends in one line that names the remedy, before anything is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from data_prep_corpus import plain_corpus

from data_prep.__main__ import main
from data_prep.build.writer import Shard
from pretrain.dataset.manifest import MANIFEST_FILE, read_manifest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_corpus(tmp_path_factory.mktemp("door") / "corpus.parquet", 10)


WRONG = {
    "no such file": (["--source", "/nowhere.parquet"], ["/nowhere.parquet", "no such file"]),
    "no such column": (["--image-column", "pic"], ["pic", "caption", "--image-column"]),
    "not a picture column": (["--image-column", "caption"], ["string", "--image-column"]),
    "unknown caption column": (["--caption", "a={title}"], ["title", "keywords", "--caption"]),
    "unknown filter column": (["--where", "artist = 'x'"], ["artist", "split", "--where"]),
    "broken filter": (["--where", "split = "], ["split = ", "--where"]),
    "filter of another type": (["--where", "number + 1"], ["true or false", "--where"]),
    "mistyped filter": (["--where", "split = 3"], ["split = 3", "--where"]),
    "empty result": (["--where", "split = 'valid'"], ["split = 'valid'", "--where"]),
    "all rejected": (["--min-image-px", "500"], ["image_too_small': 10", "limits"]),
    "tiers": (["--tiers", "160"], ["160", "--tiers"]),
    "vocabulary": (["--vocab-size", "100"], ["vocab_size=100", "--vocab-size"]),
    "no such tokenizer": (["--tokenizer", "/nowhere.model"], ["/nowhere.model"]),
    "a tokenizer that is none": (["--tokenizer", __file__], ["SentencePiece", "--tokenizer"]),
    "an object store": (["--out", "s3://bucket/out"], ["--out=s3://bucket/out", "object store"]),
    "limits": (["--caption-max-chars", "0"], ["caption_max_chars=0"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_request(
    name: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, parts = WRONG[name]
    request = ["build", "--source", str(corpus), "--out", str(tmp_path / "out"), *options]
    assert main(request) == 2
    errors = capsys.readouterr().err.strip()
    assert errors.startswith("error: ") and errors.count("\n") == 0, errors
    for part in parts:
        assert part in errors
    assert not (tmp_path / "out" / MANIFEST_FILE).exists()


def test_a_file_that_is_not_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.parquet").write_bytes(b"hello")
    assert main(["build", "--source", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "x.parquet: not a readable Parquet file" in capsys.readouterr().err


def test_a_finished_dataset_is_kept(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    request = ["build", "--source", str(corpus), "--out", str(out), "--tiers", "full:95"]
    assert main(request) == 0
    printed = capsys.readouterr().out
    assert "samples" in printed and "rejected" in printed and "caption caption" in printed
    before = read_manifest(out)
    assert main(request) == 0
    assert "finished" in capsys.readouterr().err
    assert main([*request, "--tagger", "none", "--min-image-px", "20"]) == 2
    errors = capsys.readouterr().err.strip()
    for part in ("--overwrite", "tagging.tagger", "pictures.min_image_px"):
        assert part in errors and errors.count("\n") == 0, errors
    # A request that fails at the door does not cost the dataset that it was to replace.
    assert main([*request, "--overwrite", "--where", "split = 'valid'"]) == 2
    assert read_manifest(out) == before
    assert main([*request, "--overwrite", "--caption", "a={caption}", "--caption=b={split}"]) == 0
    assert read_manifest(out).captions == ["a", "b"]


def test_a_build_that_dies_leaves_no_dataset(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    request = ["build", "--source", str(corpus), "--out", str(out), "--shard-samples", "3"]
    request += ["--workers", "1"]  # in this process, where it can be made to fail
    assert main(request) == 0

    def fail(shard: Shard, name: str) -> None:
        raise OSError(28, "No space left on device", shard.file.name)

    with monkeypatch.context() as broken:
        broken.setattr(Shard, "finish", fail)
        assert main([*request, "--overwrite"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="not a finished dataset directory"):
        read_manifest(out)
    assert main(request) == 0  # what is left of it does not stand in the way
    assert not list(out.rglob("*.part"))


def test_a_failure_midway_ends_in_order(corpus: Path, tmp_path: Path) -> None:
    """No abort by a reader's threads: exit status 2, one line. See data_prep/sources/parquet.py."""
    code = (
        "import sys, data_prep.build.work as w\n"
        "from data_prep.__main__ import main\n"
        "def fail(*a): raise OSError('disk full')\n"
        "w.PartWriter.add = fail\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    for _ in range(2):
        request = ["build", "--source", str(corpus), "--out", str(tmp_path / "out")]
        done = subprocess.run(
            [sys.executable, "-c", code, *request], cwd=REPOSITORY, capture_output=True, text=True
        )
        errors = done.stderr.strip()
        assert done.returncode == 2 and errors.count("\n") == 0, errors
        assert errors.startswith("error: ") and "disk full" in errors


def test_torch_is_never_imported(corpus: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from data_prep.__main__ import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    request = ["build", "--source", str(corpus), "--out", str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, *request], cwd=REPOSITORY, check=True)


def test_the_command_line_offers_these_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Frozen: a renamed or lost option breaks someone's script."""
    assert main(["build", "--help"]) == 0
    words = capsys.readouterr().out.replace("[", " ").replace("]", " ").replace(",", " ").split()
    assert {word for word in words if word.startswith("--")} == {
        *(
            "--help",
            "--source",
            "--image_column",
            "--image_root",
            "--format",
            "--where",
            "--out",
            "--overwrite",
            "--work",
        ),
        *("--shard_samples", "--shard_bytes", "--caption", "--caption+", "--caption_max_chars"),
        *("--tiers", "--min_image_px", "--max_aspect", "--tokenizer", "--model_type"),
        *("--special_tokens", "--captions_per_list", "--drop_placeholders"),
        *("--vocab_size", "--lower_case", "--byte_fallback", "--tokenizer_captions", "--tagger"),
        *("--workers", "--task_index", "--task_count", "--plan_only"),
        *("--engine", "--ray_address", "--progress_file"),
        *("--hub_config", "--hub_split", "--cache", "--cache_gib"),
    }


def test_an_object_store_is_written_to_by_no_command(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = ["build", "--source", str(corpus), "--out", "data", "--tiers", "full:95"]
    assert main([*done, "--vocab-size", "300"]) == 0
    shutil.copytree("data", "data_2")
    (tmp_path / "links.csv").write_text("url,text\nhttp://h/1,a\n")
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in (
        ["join", "gs://b/out", "--source", "data", "--source", "data_2"],
        ["download", "links.csv", "s3://b/out"],
        ["index", "data", "--out", "hf://datasets/o/n"],
    ):
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err.strip()
        assert "object store" in error and "://" in error and "\n" not in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == before
