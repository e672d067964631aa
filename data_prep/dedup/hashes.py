"""A small copy of each sample's picture, kept beside the dataset: what near duplicates show by.

Two views of a picture are kept, the whole and the whole less 2.5 % at each side, so that a cropped
copy is the same as the second. Each is 16 x 16 px of brightness and 8 x 8 of two colours (YCbCr).

    DIR/hashes/views.npy           uint8 (samples, 2, 384)
    DIR/hashes/views.json          of which dataset and by which rule, and the file's sha256
    DIR/hashes/.parts/MARK/*.npy   blocks of rows that are done, until all are; MARK is of both
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_prep.pool import Report, RunOptions, run_in_pool, share_of
from pretrain.base.arrays import read_array
from pretrain.base.files import aside, file_sha256, write_durably
from pretrain.base.lock import locked
from pretrain.base.progress import Bar
from pretrain.dataset.manifest import COPY_AGAIN, Manifest, path_inside
from pretrain.dataset.pictures import check_pixels, check_scans, decode, is_plain_jpeg
from pretrain.dataset.rows import text_tier

_RULE = "views-2"  # another rule's views are made anew
_VIEWS_FILE = "views.npy"
_TOLD_FILE = "views.json"
_PARTS_FOLDER = ".parts"
_INSETS = (0.0, 0.025)
VIEWS = len(_INSETS)
GREY_PX = 16
COLOUR_PX = 8
VIEW_BYTES = GREY_PX**2 + 2 * COLOUR_PX**2
_DECODED_PX = 64  # the decoder halves a picture while it stays larger
_BLOCK_ROWS = 1024
_BLOCKS = 4096  # at most: what the pool waits for at once

Views = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class HashOptions(RunOptions):
    """Who does the work; the result does not depend on it"""

    task_index: int | None = None
    """Only hash the share of this number, from 0, of `task_count`; the same command without it
    joins the shares and goes on."""


@dataclass(frozen=True, kw_only=True)
class _ViewState:
    """What every worker needs."""

    directory: Path
    manifest: Manifest
    parts: Path
    blocks: list[range]


def dataset_views(directory: Path, manifest: Manifest, run: HashOptions) -> Views | None:
    """(samples, VIEWS, VIEW_BYTES) of all rows, mapped; None where a share of them was asked for.

    Those on the disk are taken if they are this dataset's. Blocks that an ended or another process
    made are not made again. ValueError or OSError name the picture or file that cannot be read.
    """
    folder = path_inside(directory, "hashes", "hashes")
    told = {"rule": _RULE, "dataset": manifest.fingerprint}
    mark = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    blocks = row_blocks(manifest.samples)
    state = _ViewState(
        directory=directory,
        manifest=manifest,
        parts=folder / _PARTS_FOLDER / mark,
        blocks=blocks,
    )
    share = share_of(len(blocks), run)
    while True:
        kept = _kept(folder, told)
        if kept is not None:
            return kept if run.task_index is None else None
        _make_parts(state, share, run)
        if run.task_index is not None:
            return None
        with locked(folder):
            # Another process may have joined and removed the parts meanwhile.
            if all(_part(state, block).exists() for block in share):
                _join(folder, state, told)


def _make_parts(state: _ViewState, share: range, run: RunOptions) -> None:
    """The blocks of a share that are not there yet."""
    missing = [block for block in share if not _part(state, block).exists()]
    rows = sum(len(state.blocks[block]) for block in share)
    left = sum(len(state.blocks[block]) for block in missing)
    what = f"hash {state.directory}"
    with Bar(total=rows, done=rows - left, unit="samples", what=what) as bar:
        for done in run_in_pool(_view_block, state, missing, run, lambda _: None):
            bar.update(done)


def _part(state: _ViewState, block: int) -> Path:
    return state.parts / f"{block:04d}.npy"


def _join(folder: Path, state: _ViewState, told: dict[str, str]) -> None:
    """One file of all parts, which go."""
    shape = (state.manifest.samples, VIEWS, VIEW_BYTES)
    header: Any = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with aside(folder / _VIEWS_FILE) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for block, rows in enumerate(state.blocks):
            path = _part(state, block)
            part = read_array(path)
            if part.shape != (len(rows), *shape[1:]) or part.dtype != np.uint8:
                raise ValueError(f"{path} is not a block of {len(rows):,} rows: remove it")
            file.write(part.tobytes())
    whole = {**told, "sha256": file_sha256(folder / _VIEWS_FILE)}
    write_durably(folder / _TOLD_FILE, json.dumps(whole, indent=2) + "\n")
    shutil.rmtree(folder / _PARTS_FOLDER, ignore_errors=True)


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


def row_blocks(samples: int) -> list[range]:
    """All rows in ranges, the same for any number of workers."""
    size = max(_BLOCK_ROWS, -(-samples // _BLOCKS))
    return [range(first, min(first + size, samples)) for first in range(0, samples, size)]


def _view_block(state: _ViewState, block: int, report: Report) -> int:
    """Write the views of a block of rows; how many these are."""
    rows = state.blocks[block]
    reader = text_tier(state.directory, state.manifest)
    found = np.empty((len(rows), VIEWS, VIEW_BYTES), np.uint8)
    for place, (jpeg,) in enumerate(reader.members(np.array(rows, np.int64), ("jpg",))):
        try:
            found[place] = picture_views(jpeg)
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{reader.directory / reader.tier}: the picture of row {rows[place]} cannot "
                f"be read ({error}): {COPY_AGAIN}"
            ) from error
        if place % _BLOCK_ROWS == 0:
            report(place)
    file = BytesIO()
    np.save(file, found)
    write_durably(_part(state, block), file.getvalue())
    return len(rows)


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
