"""A perceptual hash of each sample's picture, kept beside the dataset.

pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010): the
signs of the lowest 8 x 8 frequencies of a 32 px grey picture, about their median. The cosine
transform is SciPy's; Pillow decodes and shrinks. Of the libraries, imagehash makes one Python
object a picture and drops the coefficients, from which flat pictures are told; pdqhash has 256 bits
and here no wheel; perception brings OpenCV.

    DIR/hashes/phash.npy    uint64, one a row; FLAT where the picture has no structure
    DIR/hashes/phash.json   of which dataset and by which rule, and the file's sha256
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from data_prep.build.writer import array_file
from data_prep.dataset_tasks import DatasetTasks, RowReader
from data_prep.pool import PoolOptions
from data_prep.records import Record
from pretrain.base.arrays import read_array
from pretrain.base.files import file_sha256, write_durably
from pretrain.dataset.manifest import COPY_AGAIN, path_inside
from pretrain.dataset.pictures import decode, is_plain_jpeg, open_picture
from pretrain.dataset.rows import row_blocks

_RULE = "phash-1"  # another rule's hashes are made anew
_HASH_FILE = "phash.npy"
_TOLD_FILE = "phash.json"
FLAT = np.uint64(0)  # no hash: half the bits of a real one are set
_FLAT_LEVELS = 2.0  # root mean square of a picture's low frequencies, of 255 grey levels
_PX = 32
_SIDE = 8
_BLOCK_ROWS = 1024


def dataset_hashes(reader: RowReader, pool: PoolOptions) -> NDArray[np.uint64]:
    """(samples,) hash of each row: those on the disk if they are this dataset's, else made anew.

    ValueError or OSError name the picture or file that cannot be read.
    """
    folder = path_inside(reader.directory, "hashes", "hashes")
    told = {"rule": _RULE, "dataset": reader.manifest.fingerprint}
    kept = _kept(folder, told)
    if kept is not None:
        return kept
    tasks = DatasetTasks(
        directory=reader.directory,
        name="hash pictures",
        asked=dict(told),
        function=_hash_block,
        state=reader,
        items=row_blocks(reader.manifest.samples, _BLOCK_ROWS),
    )
    tasks.do(pool, "blocks of samples")
    hashes = np.concatenate([record["hashes"] for record in tasks.records])
    write_durably(folder / _HASH_FILE, array_file(hashes.astype("<u8", copy=False)))
    told["sha256"] = file_sha256(folder / _HASH_FILE)
    write_durably(folder / _TOLD_FILE, json.dumps(told, indent=2) + "\n")
    tasks.remove()
    return hashes


def _kept(folder: Path, told: dict[str, str]) -> NDArray[np.uint64] | None:
    """The hashes of an earlier call, if they are whole and of the same dataset and rule."""
    try:
        found = json.loads((folder / _TOLD_FILE).read_bytes())
        if found != {**told, "sha256": file_sha256(folder / _HASH_FILE)}:
            return None
    except (FileNotFoundError, ValueError):
        return None
    return np.array(read_array(folder / _HASH_FILE))


def _hash_block(state: RowReader, block: tuple[int, int]) -> Record:
    """The hashes of a block of rows."""
    reader, rows = state.smallest, range(*block)
    hashes = np.empty(len(rows), np.uint64)
    for start in range(0, len(rows), _BLOCK_ROWS):
        part = rows[start : start + _BLOCK_ROWS]
        pictures = np.empty((len(part), _PX, _PX), np.float32)
        for place, (jpeg,) in enumerate(reader.members(np.array(part, np.int64), ("jpg",))):
            try:
                pictures[place] = grey(jpeg)
            except (OSError, SyntaxError, ValueError) as error:
                raise ValueError(
                    f"{reader.directory / reader.tier}: the picture of row {part[place]} cannot "
                    f"be read ({error}): {COPY_AGAIN}"
                ) from error
        hashes[start : start + len(part)] = hash_pictures(pictures)
    return {"hashes": hashes}


def grey(jpeg: bytes) -> NDArray[np.float32]:
    """(32, 32) grey levels of a picture, its sides stretched alike to the square."""
    if is_plain_jpeg(jpeg):
        picture = open_picture(jpeg)
        picture.draft("L", (2 * _PX, 2 * _PX))  # the decoder halves it while it stays larger
    else:
        picture = Image.fromarray(decode(jpeg))
    small = picture.convert("L").resize((_PX, _PX), Image.Resampling.LANCZOS)
    return np.asarray(small, np.float32)


def hash_pictures(pictures: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(B,) hashes of (B, 32, 32) grey pictures; FLAT below FLAT_LEVELS of structure."""
    waves = dctn(pictures, axes=(1, 2), norm="ortho")[:, :_SIDE, :_SIDE].reshape(-1, _SIDE**2)
    changes = waves[:, 1:]  # all but the mean grey
    bits = np.zeros(waves.shape, np.uint8)
    bits[:, 1:] = changes > np.median(changes, axis=1, keepdims=True)
    hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    hashes[np.sqrt(np.square(changes).sum(axis=1)) / _PX < _FLAT_LEVELS] = FLAT
    return hashes
