"""A small copy of each sample's picture, kept beside the dataset: what near duplicates show by.

Two views of a picture are kept, the whole and the whole less 2.5 % at each side, so that a cropped
copy is the same as the second. Each is 16 x 16 px of brightness and 8 x 8 of two colours (YCbCr).

    DIR/hashes/views.npy           uint8 (samples, 2, 384)
    DIR/hashes/views.json          of which dataset and by which rule, and the file's sha256
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_prep.dataset_tasks import DatasetTasks, RowReader
from data_prep.pool import RunOptions
from data_prep.records import Record
from pretrain.base.arrays import read_array
from pretrain.base.files import aside, file_sha256, write_durably
from pretrain.base.lock import locked
from pretrain.dataset.manifest import COPY_AGAIN, path_inside
from pretrain.dataset.pictures import check_pixels, check_scans, decode, is_plain_jpeg
from pretrain.dataset.rows import row_blocks

_RULE = "views-2"  # another rule's views are made anew
_VIEWS_FILE = "views.npy"
_TOLD_FILE = "views.json"
_INSETS = (0.0, 0.025)
VIEWS = len(_INSETS)
GREY_PX = 16
COLOUR_PX = 8
VIEW_BYTES = GREY_PX**2 + 2 * COLOUR_PX**2
_DECODED_PX = 64  # the decoder halves a picture while it stays larger
_BLOCK_ROWS = 1024
_BLOCKS = 4096  # at most, of larger ones: each is a file until all are there

Views = NDArray[np.uint8]


def dataset_views(reader: RowReader, run: RunOptions) -> Views | str:
    """(samples, VIEWS, VIEW_BYTES) of all rows, mapped; of a share of them, what it did.

    Those on the disk are taken if they are this dataset's. ValueError or OSError name the picture
    or file that cannot be read.
    """
    folder = path_inside(reader.directory, "hashes", "hashes")
    told = {"rule": _RULE, "dataset": reader.manifest.fingerprint}
    kept = _kept(folder, told)
    if kept is not None:
        return kept
    samples = reader.manifest.samples
    tasks = DatasetTasks(
        directory=reader.directory,
        name="hash pictures",
        asked=dict(told),
        function=_view_block,
        state=reader,
        items=row_blocks(samples, max(_BLOCK_ROWS, -(-samples // _BLOCKS))),
    )
    if (line := tasks.do(run, "blocks of samples")) is not None:
        return line
    with locked(folder, keep=False):  # another process may have joined and removed them meanwhile
        kept = _kept(folder, told)
        if kept is None:
            _join(folder, samples, tasks.records, told)
            kept = _kept(folder, told)
            assert kept is not None
            tasks.remove()
    return kept


def _join(folder: Path, samples: int, records: Iterable[Record], told: dict[str, str]) -> None:
    """One file of all blocks."""
    header: Any = {"descr": "|u1", "fortran_order": False, "shape": (samples, VIEWS, VIEW_BYTES)}
    with aside(folder / _VIEWS_FILE) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in records:
            file.write(record["views"].tobytes())
    whole = {**told, "sha256": file_sha256(folder / _VIEWS_FILE)}
    write_durably(folder / _TOLD_FILE, json.dumps(whole, indent=2) + "\n")


def views_file(directory: Path) -> Path:
    """Where the views of a dataset lie."""
    return path_inside(directory, "hashes", "hashes") / _VIEWS_FILE


def _kept(folder: Path, told: dict[str, str]) -> Views | None:
    """The views of an earlier call, if they are whole and of the same dataset and rule."""
    try:
        found = json.loads((folder / _TOLD_FILE).read_bytes())
        if found != {**told, "sha256": file_sha256(folder / _VIEWS_FILE)}:
            return None
    except (FileNotFoundError, ValueError):
        return None
    return read_array(folder / _VIEWS_FILE)


def _view_block(reader: RowReader, block: tuple[int, int]) -> Record:
    """The views of a block of rows."""
    rows = np.arange(*block)
    found = np.empty((len(rows), VIEWS, VIEW_BYTES), np.uint8)
    for place, (jpeg,) in enumerate(reader.texts.members(rows, ("jpg",))):
        try:
            found[place] = picture_views(jpeg)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{reader.directory / reader.texts.tier}: the picture of row {rows[place]} cannot "
                f"be read ({error}): {COPY_AGAIN}"
            ) from error
    return {"views": found}


def picture_views(file: bytes) -> Views:
    """(VIEWS, VIEW_BYTES) of a picture, its sides stretched alike to the square."""
    picture = Image.fromarray(_decode_small(file)).convert("YCbCr")
    width, height = picture.size
    grey = np.empty((VIEWS, GREY_PX**2), np.uint8)
    colour = np.empty((VIEWS, COLOUR_PX, COLOUR_PX, 2), np.uint8)
    for view, inset in enumerate(_INSETS):
        box = (width * inset, height * inset, width * (1 - inset), height * (1 - inset))
        small = picture.resize((GREY_PX, GREY_PX), Image.Resampling.BOX, box=box)
        pixels = np.asarray(small)
        grey[view] = pixels[:, :, 0].ravel()
        halved = pixels[:, :, 1:].reshape(COLOUR_PX, 2, COLOUR_PX, 2, 2).sum((1, 3), np.uint16)
        colour[view] = (halved + 2) // 4
    return np.concatenate([grey, colour.reshape(VIEWS, -1)], axis=1)


def _decode_small(file: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB, its shorter side 64 px or more where the picture's is."""
    if not is_plain_jpeg(file):
        return decode(file)
    check_scans(file)
    height, width, _, _ = simplejpeg.decode_jpeg_header(file)
    check_pixels(width, height)
    least = min(_DECODED_PX, height, width)
    return simplejpeg.decode_jpeg(
        file, colorspace="RGB", min_height=least, min_width=least, min_factor=1
    )
