"""A durable write: whole or not there, beside others that write the same, through no link."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pretrain.base.files import aside, aside_name, final_name, write_durably
from pretrain.dataset.manifest import embeddings_folder, recaption_folder, weights_file

WRITE_OFTEN = """
import sys
from pathlib import Path
from pretrain.base.files import write_durably
for _ in range(150):
    write_durably(Path(sys.argv[1]), sys.argv[2] * 5000)
"""


def test_two_that_write_one_file_at_once_both_end_well(tmp_path: Path) -> None:
    file = tmp_path / "new" / "file"
    words = [sys.executable, "-c", WRITE_OFTEN, str(file)]
    writers = [subprocess.Popen([*words, letter]) for letter in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert file.read_text() in [letter * 5000 for letter in "abc"]
    assert list(file.parent.iterdir()) == [file]


def test_no_link_is_written_through(tmp_path: Path) -> None:
    mine, folder = tmp_path / "mine", tmp_path / "theirs"
    mine.write_text("kept")
    folder.mkdir()
    for name in ("file", "file.part"):
        (folder / name).symlink_to(mine)
    write_durably(folder / "file", "new")
    assert mine.read_text() == "kept" and (folder / "file").read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(KeyboardInterrupt), aside(file) as new:
        new.write(b"half")
        raise KeyboardInterrupt
    assert file.read_text() == "kept" and list(tmp_path.iterdir()) == [file]


def test_a_full_disk_is_named_with_the_path(tmp_path: Path) -> None:
    file = tmp_path / "file"
    told = r"file: no space left \(.* MB free .*make room"
    with pytest.raises(OSError, match=told) as failure, aside(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(failure.value).count("no space left") == 1
    assert not list(tmp_path.iterdir())


LEAVE = """
import os, sys
from pathlib import Path
from pretrain.base.files import aside
with aside(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""


def test_what_a_killed_one_left_goes_with_the_next_write_and_nothing_else(tmp_path: Path) -> None:
    assert subprocess.call([sys.executable, "-c", LEAVE, str(tmp_path / "a")]) == 9
    (left,) = tmp_path.iterdir()
    assert final_name(left.name) == "a" and final_name("0.tar.part") == "0.tar.part"
    (tmp_path / "theirs.part").write_text("")
    with aside(tmp_path / "b") as file:
        write_durably(tmp_path / "c", "")
        held = Path(file.name)
        assert {path.name for path in tmp_path.iterdir()} == {held.name, "theirs.part", "c"}
        ours = "import sys; from pathlib import Path; from pretrain.base.files import aside_name\n"
        ours += "aside_name(Path(sys.argv[1]))"
        assert subprocess.call([sys.executable, "-c", ours, str(tmp_path / "d")]) == 0
        assert held.exists(), "a write that goes on was taken for one that was killed"


def test_another_machines_file_goes_once_it_is_quiet(tmp_path: Path) -> None:
    for name, quiet_s in (("old", 2 * 24 * 3600), ("new", 3600)):
        file = tmp_path / f"{name}.00000000-1-0a0a0a0a.part"
        file.write_text("")
        then = file.stat().st_mtime - quiet_s
        os.utime(file, (then, then))
    aside_name(tmp_path / "x")
    assert [final_name(path.name) for path in tmp_path.iterdir()] == ["new"]


def test_another_machines_folder_is_at_work_while_anything_in_it_is(tmp_path: Path) -> None:
    """The time of a folder stands still while a file in a folder of it is written."""
    for name, quiet_s in (("old", 2 * 24 * 3600), ("new", 3600)):
        folder = tmp_path / f"{name}.00000000-1-0a0a0a0a.part"
        (folder / "inside").mkdir(parents=True)
        file = folder / "inside/model.safetensors"
        file.write_text("")
        then = file.stat().st_mtime
        os.utime(file, (then - quiet_s, then - quiet_s))
        for path in (folder / "inside", folder):
            os.utime(path, (then - 3 * 24 * 3600, then - 3 * 24 * 3600))
    aside_name(tmp_path / "x")
    assert [final_name(path.name) for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("place", "folder"),
    [
        (weights_file, "weights"),
        (embeddings_folder, "embeddings"),
        (recaption_folder, "captions"),
    ],
)
def test_what_stands_beside_the_shards_stays_in_the_dataset(tmp_path, place, folder) -> None:
    dataset, elsewhere = tmp_path / "dataset", tmp_path / "elsewhere"
    dataset.mkdir()
    elsewhere.mkdir()
    assert place(dataset, "name", "--out").is_relative_to(dataset)
    (dataset / folder).symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"--out='{folder}/name.* leads out"):
        place(dataset, "name", "--out")


def test_hashes_are_not_written_out_of_the_dataset(tiny_dataset: Path, tmp_path: Path) -> None:
    from data_prep.dataset_tasks import RowReader
    from data_prep.dedup.hashes import dataset_views
    from data_prep.pool import RunOptions
    from pretrain.dataset.manifest import read_manifest

    dataset = tmp_path / "dataset"
    dataset.mkdir()
    for path in tiny_dataset.iterdir():
        (dataset / path.name).symlink_to(path)
    (tmp_path / "elsewhere").mkdir()
    (dataset / "hashes").unlink(missing_ok=True)
    (dataset / "hashes").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out"):
        reader = RowReader(directory=dataset, manifest=read_manifest(dataset))
        dataset_views(reader, RunOptions(workers=1))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_model_has_the_rights_that_the_user_gives_files(tmp_path: Path) -> None:
    import torch

    from pretrain.base.files import write_tensors

    write_tensors(tmp_path / "model", {"a": torch.ones(2)})
    np.save(tmp_path / "other.npy", np.ones(2))
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other.npy").stat().st_mode
