"""Fixtures shared by the rooms: small dataset directories from the embedded corpus."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from forked_runs import trained
from tiny_datasets import build_food
from tiny_runs import evaluation_options
from xdist.scheduler import LoadFileScheduling

from pretrain.base import compat

ROOT = Path(__file__).resolve().parents[1]

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("DS_ACCELERATOR", "cpu")
compat.make_torchvision_importable()

# Where tests run in several processes these begin, longest first, so that none is left for the end.
LONGEST = (
    *("slurm", "test_signals", "test_distributed_training", "test_elastic", "test_repair"),
    "test_readme",
    *("test_end_to_end", "test_optimizers", "test_resume", "test_killed_at_calls", "test_saver"),
    *("test_checkpoint", "test_tasks", "test_inverse_scaling", "test_compare"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, whole files still."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(group(item.nodeid), len(places)))


def group(nodeid: str) -> str:
    """What stays in one process: a file, for its fixtures; all of Slurm, for its cluster."""
    path = Path(nodeid.partition("::")[0])
    return "slurm" if path.parent.name == "slurm" else path.stem


class ByGroup(LoadFileScheduling):
    """Spreads groups of tests over the processes."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByGroup:
    """Where `pytest -n` is asked for."""
    return ByGroup(config, log)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 drawings of food by two artists, three captions each, in several shards."""
    out = tmp_path_factory.mktemp("tiny") / "train"
    return build_food(out, "artist IN ('noto', 'fluent3d') AND split = 'train'")


@pytest.fixture
def copy(tiny_dataset: Path, tmp_path: Path) -> Path:
    """The tiny dataset once more, to be damaged."""
    return Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_evaluation_set(tiny_dataset: Path) -> Path:
    """The same dishes drawn by another artist, tokenized by the training set's tokenizer."""
    tokenizer = str(tiny_dataset / "tokenizer.model")
    return build_food(
        tiny_dataset.parent / "held_out", "artist = 'twemoji'", "--tokenizer", tokenizer
    )


@pytest.fixture(scope="session")
def tiny_run(
    tiny_dataset: Path, tiny_evaluation_set: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Run folder of the tiny recipe, trained on two ranks without a disturbance."""
    run_dir = tmp_path_factory.mktemp("runs") / "undisturbed"
    options = evaluation_options(tiny_evaluation_set)
    trained(run_dir, tiny_dataset, *options, ranks=2, plain=False)
    return run_dir


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte, and how to make it larger."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs of a given size")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this container may not mount: {mounted.stderr.strip()}")

    def grow() -> None:
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)

    yield folder, grow
    subprocess.run(["umount", "--lazy", folder], check=True)
