"""A NumPy file that is damaged in any byte of its header is an array, or one line."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_copies import change_manifest, record_index

from data_prep.pool import PoolOptions
from data_prep.verify import dataset_faults
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256
from pretrain.dataset.manifest import (
    INDEX_FILE,
    TOKEN_COUNTS_FILE,
    read_manifest,
    read_token_counts,
)

HEADERS = [b"", b"\x93NUMPY", b"PK\x03\x04", b"{'descr': (", b"{'descr': '<f4', 'shape': (-1,)",
           b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
           b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000000000,)}",
           b"[" * 9000]  # fmt: skip


def with_header(header: bytes) -> bytes:
    """A .npy file with another header, or something else that begins so."""
    if header[:1] not in (b"{", b"["):
        return header
    return (
        b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(99)
    )


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_is_none_is_one_line(header: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(with_header(header))
    with pytest.raises(ValueError, match="not a NumPy file") as raised:
        read_array(tmp_path / "x.npy")
    assert "\n" not in str(raised.value)


def test_any_byte_of_a_header_may_be_damaged(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(9, dtype="<u4"))
    whole, draw, read = (tmp_path / "x.npy").read_bytes(), random.Random(0), 0
    for place in range(128):
        damaged = bytearray(whole)
        damaged[place] = draw.choice(b"(){}[]',:\"\\0\n #<9-" + bytes([draw.randrange(256)]))
        (tmp_path / "x.npy").write_bytes(damaged)
        try:
            read += len(read_array(tmp_path / "x.npy").shape) >= 0
        except ValueError as error:
            assert "\n" not in str(error)
    assert 0 < read < 128


@pytest.mark.parametrize("header", [b"{'descr': (", b"PK\x03\x04"])
def test_verify_and_the_reader_name_the_file(
    header: bytes, tiny_dataset: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_dataset, tmp_path / "copy"))
    (copy / "full" / INDEX_FILE).write_bytes(with_header(header))
    (copy / TOKEN_COUNTS_FILE).write_bytes(with_header(header))
    record_index(copy)
    told = file_sha256(copy / TOKEN_COUNTS_FILE)
    change_manifest(copy, lambda manifest: manifest["token_counts"].update(sha256=told))
    faults = list(dataset_faults(copy, PoolOptions(workers=1)))
    for name in (f"full/{INDEX_FILE}", TOKEN_COUNTS_FILE):
        assert [one for one in faults if name in one and "not a NumPy file" in one], faults
    with pytest.raises(ValueError, match="not a NumPy file"):
        read_token_counts(copy, read_manifest(copy))
