"""Small corpora and builds for the data_prep tests."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_prep.build.options import BuildOptions, TaggingOptions
from data_prep.build.writer import WriterOptions
from data_prep.pictures.limits import PictureOptions
from data_prep.sources import SourceOptions
from data_prep.text.captions import CaptionOptions
from data_prep.text.vocabulary import VocabularyOptions

WORDS = ["a", "red", "small", "dog", "cat", "house", "jumping", "over", "the", "Straße", "東京"]


def picture(seed: int, *, width: int = 96, height: int = 72) -> Image.Image:
    """A smooth colourful picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def caption(seed: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, 6)) + f" number {seed}"


def write_corpus(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def plain_corpus(path: Path, count: int = 40) -> Path:
    """PNG and JPEG pictures of several sizes; every third sample lacks keywords."""
    images = [
        encoded(picture(i, width=60 + 10 * (i % 5)), "PNG" if i % 2 else "JPEG")
        for i in range(count)
    ]
    return write_corpus(
        path,
        {
            "image": images,
            "caption": [caption(i) for i in range(count)],
            "keywords": [None if i % 3 == 0 else f"key, word {i % 4}" for i in range(count)],
            "number": list(range(count)),
            "split": ["test" if i % 5 == 0 else "train" for i in range(count)],
        },
    )


def options(
    source: Path,
    out: Path,
    *,
    where: str | None = None,
    captions: tuple[str, ...] = (),
    max_chars: int = 4096,
    tiers: str = "full:95",
    min_px: int = 16,
    max_aspect: float | None = None,
    tokenizer: Path | None = None,
    tagger: Any = "textblob",
    shard_samples: int = 10_000,
    shard_bytes: int = 1 << 30,
    overwrite: bool = False,
) -> BuildOptions:
    return BuildOptions(
        source=SourceOptions(source=str(source), where=where),
        captions=CaptionOptions(caption=list(captions), caption_max_chars=max_chars),
        pictures=PictureOptions(tiers=tiers, min_image_px=min_px, max_aspect=max_aspect),
        vocabulary=VocabularyOptions(tokenizer=tokenizer, vocab_size=600),
        tagging=TaggingOptions(tagger=tagger),
        writer=WriterOptions(
            out=str(out), overwrite=overwrite, shard_samples=shard_samples, shard_bytes=shard_bytes
        ),
    )


def write_tar(path: Path, content: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
