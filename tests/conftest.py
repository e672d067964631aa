"""Fixtures shared by the rooms: small dataset directories from the embedded corpus."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from tiny_runs import evaluation_options, train_command

from data_prep.__main__ import main as data_prep
from pretrain import compat

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "data_prep" / "demo_corpus" / "emoji.parquet"

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
compat.put_own_tools_on_path()
compat.make_torchvision_importable()


def _build(out: Path, where: str, *more: str) -> Path:
    captions = [
        "label={caption}",
        "keywords={caption}, {keywords}",
        "phrase=a drawing of {caption}",
    ]
    status = data_prep(
        [
            *("build", "--source", str(CORPUS), "--out", str(out), "--tiers", "full:95"),
            *("--where", f"\"group\" = 'food & drink' AND {where}", "--vocab-size", "400"),
            *(word for caption in captions for word in ("--caption", caption)),
            *("--byte-fallback", "false", "--shard-samples", "60", *more),
        ]
    )
    assert status == 0
    return out


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 drawings of food by two artists, three captions each, in several shards."""
    out = tmp_path_factory.mktemp("tiny") / "train"
    return _build(out, "artist IN ('noto', 'fluent3d') AND split = 'train'")


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny dataset once more, to be damaged."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_evaluation_set(tiny_dataset: Path) -> Path:
    """The same dishes drawn by another artist, tokenized by the training set's tokenizer."""
    tokenizer = str(tiny_dataset / "tokenizer.model")
    return _build(tiny_dataset.parent / "held_out", "artist = 'twemoji'", "--tokenizer", tokenizer)


@pytest.fixture(scope="session")
def tiny_run(
    tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run folder of the tiny recipe, trained on two ranks without a disturbance."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    command = train_command(run_dir, tiny_dataset, *evaluation_options(tiny_evaluation_set))
    subprocess.run(command, cwd=ROOT, check=True)
    return run_dir
