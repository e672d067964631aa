"""Photographs to measure with: crops, rescales and flips of scikit-learn's two, without a download,
or of a folder's.

Few scenes, so that sizes and decoding are a photograph's, and what is in them is not a corpus's.
"""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image
from sklearn.datasets import load_sample_images

LONGEST_PX, WEB_LONGEST_PX, QUALITY = (400, 640), (640, 1280), 90
WORDS = ["a", "the", "of", "small", "red", "stone", "river", "flower", "temple", "roof", "garden"]


def photographs(count: int, seed: int = 0, folder: Path | None = None) -> list[tuple[bytes, str]]:
    """(JPEG, caption) of each: longest side 400 to 640 px, quality 90, 4:2:0.

    Of a folder of larger JPEGs: 640 to 1,280 px, as on the web.
    """
    if folder is None:
        scenes = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    else:
        scenes = [Image.open(path).convert("RGB") for path in sorted(folder.rglob("*.jp*g"))]
    longest_px = LONGEST_PX if folder is None else WEB_LONGEST_PX
    draws = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scene = scenes[draws.integers(len(scenes))]
        share = draws.uniform(0.5, 1.0)
        width, height = (max(int(side * share), 64) for side in scene.size)
        left = int(draws.integers(scene.width - width + 1))
        top = int(draws.integers(scene.height - height + 1))
        part = scene.crop((left, top, left + width, top + height))
        if draws.random() < 0.5:
            part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if draws.random() < 0.5:
            part = part.transpose(Image.Transpose.ROTATE_90)
        scale = draws.integers(*longest_px, endpoint=True) / max(part.size)
        part = part.resize(
            (max(round(part.width * scale), 1), max(round(part.height * scale), 1)),
            Image.Resampling.BICUBIC,
        )
        buffer = io.BytesIO()
        part.save(buffer, "JPEG", quality=QUALITY)
        found.append((buffer.getvalue(), " ".join(draws.choice(WORDS, 12))))
    return found


def write_parquet(pictures: list[tuple[bytes, str]], path: Path) -> None:
    """A source for `data_prep build`."""
    pl.DataFrame(
        {"image": [jpeg for jpeg, _ in pictures], "caption": [text for _, text in pictures]}
    ).write_parquet(path)


def write_tar(pictures: list[tuple[bytes, str]], path: Path) -> None:
    """The same as a WebDataset shard, as img2dataset writes it."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (jpeg, text) in enumerate(pictures):
            members = {
                "jpg": jpeg,
                "txt": text.encode(),
                "json": json.dumps({"caption": text}).encode(),
            }
            for suffix, content in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
