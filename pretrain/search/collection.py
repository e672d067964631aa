"""A dataset that can be searched: its pictures, captions and keys, and the index of its vectors."""

import io
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pretrain.base.progress import Bar
from pretrain.dataset.embeddings import fitting_embeddings
from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.pictures import decode, is_plain_jpeg, open_picture, upright_rgb
from pretrain.dataset.reader import Dataset
from pretrain.dataset.rows import space_rows
from pretrain.export.inference import Model
from pretrain.search.index import Blocks, build_index, nearest, space_vectors

THUMBNAIL_PX = 320  # longest side: a card is at most 250 wide
_COMPARED = 1000  # pictures at equal distances whose cosines stand for all


@dataclass(frozen=True, kw_only=True)
class Match:
    """One picture that was found."""

    row: int
    key: str
    caption: str
    score: float  # cosine


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The pictures nearest to a query, best first, and what the others score."""

    matches: list[Match]
    median: float
    """Cosine that half of the dataset's pictures exceed, by COMPARED of them."""

    def share(self, match: Match) -> float:
        """Where a picture lies from the median (0) to the best (1)."""
        best = self.matches[0].score
        return max((match.score - self.median) / max(best - self.median, 1e-9), 0.0)


class Collection:
    """A model and a dataset. Queries may come from many threads; the model answers one by one."""

    def __init__(self, model: Model, directory: Path, embeddings: str | None, batch: int) -> None:
        """Embeds the pictures, with a progress bar, where no embeddings of this model are there.

        ValueError or FileNotFoundError name what to change.
        """
        manifest = read_manifest(directory)
        self._model, self._lock = model, threading.Lock()
        self.decoding = threading.Lock()  # a picture of 64 MP takes over a gigabyte
        self._shown = Dataset(directory, tier_for(manifest, THUMBNAIL_PX))
        self._whole = Dataset(directory, tier_for(manifest, model.image_px))
        found = fitting_embeddings(directory, manifest, model.fingerprint(), embeddings)
        self.source = "pictures embedded now" if found is None else f"embeddings {found.folder}"
        embedded = [(0, _embed(model, self._whole, batch))] if found is None else []

        def blocks() -> Blocks:
            return embedded if found is None else found.shards("image")

        self._index = build_index(blocks, manifest.samples, model.embed_dim)
        self._compared = space_vectors(blocks(), manifest.samples, min(manifest.samples, _COMPARED))

    def __len__(self) -> int:
        return len(self._shown)

    def search(self, query: str | Image.Image, top: int) -> Answer:
        """The pictures nearest to a text or a picture."""
        with self._lock:
            if isinstance(query, str):
                vector = self._model.encode_text([query])
            else:
                vector = self._model.encode_image([query])
        query_vector = vector[0].cpu().numpy()
        pairs = nearest(self._index, query_vector, top)
        matches = [
            Match(row=row, key=self._shown.key(row), caption=self.caption(row), score=score)
            for row, score in pairs
        ]
        return Answer(matches=matches, median=float(np.median(self._compared @ query_vector)))

    def picture(self, row: int) -> Image.Image:
        """A picture to search by. ValueError where it is damaged."""
        return _picture(self._whole, row)

    def samples(self, count: int) -> list[int]:
        """Rows at equal distances."""
        return [row for rows in space_rows(len(self), count) for row in rows.tolist()]

    def thumbnail(self, row: int) -> bytes:
        """JPEG of at most THUMBNAIL_PX, upright. ValueError or OSError where the picture is
        damaged."""
        jpeg = self._shown.read(row).jpeg
        picture = open_picture(jpeg)
        if is_plain_jpeg(jpeg) and max(picture.size) <= THUMBNAIL_PX:
            return jpeg
        with self.decoding:
            picture.draft("RGB", (THUMBNAIL_PX, THUMBNAIL_PX))
            shown = upright_rgb(picture)
        shown.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        content = io.BytesIO()
        shown.save(content, "JPEG", quality=88)
        return content.getvalue()

    def caption(self, row: int) -> str:
        """The sample's first caption."""
        captions = self._shown.read_json(row)["captions"]
        return next((captions[n] for n in self._shown.manifest.captions if captions.get(n)), "")


def _embed(model: Model, dataset: Dataset, batch: int) -> NDArray[np.float32]:
    """(samples, E) of all pictures. ValueError names a sample whose picture cannot be read."""
    vectors = np.empty((len(dataset), model.embed_dim), np.float32)
    with Bar(total=len(dataset), unit="pictures", what="embed") as bar:
        for first in range(0, len(dataset), batch):
            rows = range(first, min(first + batch, len(dataset)))
            pictures = [_picture(dataset, row) for row in rows]
            vectors[first : rows.stop] = model.encode_image(pictures).cpu().numpy()
            bar.update(len(rows))
    return vectors


def _picture(dataset: Dataset, row: int) -> Image.Image:
    try:
        return Image.fromarray(decode(dataset.read(row).jpeg))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{dataset.directory}, tier {dataset.tier}, sample {dataset.key(row)}: {error}; copy "
            "the dataset again or build it again"
        ) from error
