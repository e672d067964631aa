"""The token-reduction collator: rows of a dataset to one batch, by arithmetic alone.

Everything random in a batch (which caption, crop, kept tokens) is drawn here, from the seed and
each sample's position; the model obeys. So a batch is the same whoever builds it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from pretrain.data.augment import AUGMENT_DRAWS
from pretrain.data.dataset import Dataset, Sample, SampleError
from pretrain.data.images import CROP_DRAWS, CropOptions, crop_box, decode, resize
from pretrain.seeding import Purpose, hashes, uniforms
from pretrain.tokens.context import Specials, add_specials, special_count
from pretrain.tokens.image_reduction import draws_needed, keep_index
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.text_reduction import reduce_tokens

_SUBSTITUTES = 16  # tries to replace an unusable sample before the batch is given up


@dataclass(frozen=True, kw_only=True)
class FailureOptions:
    """When unusable samples stop the run instead of being replaced."""

    max_share: float = 0.001
    """Largest share of samples that may be replaced, counted once 10,000 samples were read."""
    max_in_a_row: int = 100
    """Largest number of unusable samples in a row."""


class Batch(TypedDict):
    """One rank's part of a global batch, as numpy arrays."""

    positions: NDArray[np.int64]  # (B,) place in the run's sample stream
    rows: NDArray[np.int64]  # (B,) row in the dataset's index, after any substitution
    images: NDArray[np.uint8]  # (B, H, W, 3)
    text_ids: NDArray[np.int64]  # (B, T), padded with 0
    keep_index: NDArray[np.int64] | None  # (B, K) kept patch tokens, None for all
    augment: NDArray[np.float32]  # (B, AUGMENT_DRAWS) uniform draws for the device's part
    replaced: dict[str, int]  # unusable samples by reason


@dataclass(kw_only=True)
class Collator:
    """Builds batches of one stage from a dataset."""

    dataset: Dataset
    tokens: TokenOptions
    patch_px: int
    specials: Specials
    crop: CropOptions
    caption_weights: dict[str, float]
    seed: int
    failures: FailureOptions = field(default_factory=FailureOptions)
    _in_a_row: int = 0
    _bad: int = 0
    _seen: int = 0

    def __post_init__(self) -> None:
        names = self.dataset.manifest.captions
        unknown = sorted(set(self.caption_weights) - set(names))
        if unknown or (self.caption_weights and not any(self.caption_weights.values())):
            raise ValueError(
                f"data.caption_weights={self.caption_weights}, the dataset has captions {names}: "
                "name some of these with a positive weight, or leave the option out"
            )
        weights = self.caption_weights or dict.fromkeys(names, 1.0)
        self._weights = np.asarray([weights.get(name, 0.0) for name in names])
        self.grid = self.tokens.image_px // self.patch_px

    def __call__(self, positions: NDArray[np.int64], rows: NDArray[np.int64]) -> Batch:
        """The batch of these positions, whose samples lie at these rows."""
        tokens = self.tokens
        rows = rows.copy()
        crops = uniforms(self.seed, positions, Purpose.CROP, CROP_DRAWS)
        images = np.empty((len(rows), tokens.image_px, tokens.image_px, 3), np.uint8)
        samples: list[Sample] = []
        replaced: dict[str, int] = {}
        for i in range(len(rows)):
            sample, picture, rows[i] = self._usable(int(positions[i]), int(rows[i]), replaced)
            box = crop_box(picture.shape[0], picture.shape[1], self.crop, crops[i])
            images[i] = resize(picture, box, tokens.image_px)
            samples.append(sample)
        draws = uniforms(
            self.seed,
            positions,
            Purpose.IMAGE_TOKENS,
            draws_needed(tokens.image_reduction, self.grid),
        )
        return Batch(
            positions=positions,
            rows=rows,
            images=images,
            text_ids=self._text(positions, rows, samples),
            keep_index=keep_index(
                tokens.image_reduction, self.grid, tokens.image_keep_tokens, draws
            ),
            augment=uniforms(self.seed, positions, Purpose.AUGMENT, AUGMENT_DRAWS).astype(
                np.float32
            ),
            replaced=replaced,
        )

    def _usable(
        self, position: int, row: int, replaced: dict[str, int]
    ) -> tuple[Sample, NDArray[np.uint8], int]:
        """(sample, picture, row): a substitute by (seed, position) where the row is unusable."""
        for candidate in self._candidates(position, row):
            self._seen += 1
            try:
                sample = self.dataset.read(candidate)
                picture = decode(sample.jpeg)
            except (SampleError, ValueError, OSError) as error:
                reason = error.reason if isinstance(error, SampleError) else "undecodable"
                replaced[reason] = replaced.get(reason, 0) + 1
                self._count_failure(candidate, error)
                continue
            self._in_a_row = 0
            return sample, picture, candidate
        raise RuntimeError(
            f"position {position}: {_SUBSTITUTES} substitutes in a row are unusable; the dataset "
            f"{self.dataset.directory} is damaged, rebuild it"
        )

    def _candidates(self, position: int, row: int) -> Iterator[int]:
        yield row
        draws = hashes(self.seed, np.asarray([position]), Purpose.SUBSTITUTE, _SUBSTITUTES)[0]
        for draw in draws % np.uint64(len(self.dataset)):
            yield int(draw)

    def _count_failure(self, row: int, error: Exception) -> None:
        self._bad += 1
        self._in_a_row += 1
        too_many = self._seen >= 10_000 and self._bad > self.failures.max_share * self._seen
        if too_many or self._in_a_row > self.failures.max_in_a_row:
            raise RuntimeError(
                f"{self._bad} of {self._seen} samples unusable ({self._in_a_row} in a row), last "
                f"{self.dataset.key(row)}: {error}; repair {self.dataset.directory}, or raise "
                "data.failures.max_share / max_in_a_row"
            ) from error

    def _text(
        self, positions: NDArray[np.int64], rows: NDArray[np.int64], samples: list[Sample]
    ) -> NDArray[np.int64]:
        """Draw one caption a sample by weight, reduce it, add the special ids: (B, T)."""
        counts = self.dataset.index["tokens"][rows].astype(np.int64)
        weights = np.where(counts > 0, self._weights, 0.0)
        # A sample without any of the wanted captions takes one of those that it has.
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, counts > 0)
        ladder = np.cumsum(weights, axis=1)
        draw = uniforms(self.seed, positions, Purpose.CAPTION, 1) * ladder[:, -1:]
        choice = (draw >= ladder).sum(axis=1)
        lengths = np.take_along_axis(counts, choice[:, None], 1)[:, 0]
        starts = np.take_along_axis(np.cumsum(counts, axis=1), choice[:, None], 1)[:, 0] - lengths
        ids = np.zeros((len(rows), max(int(lengths.max()), 1)), np.int64)
        classes = np.zeros_like(ids)
        for i, sample in enumerate(samples):
            mine = slice(starts[i], starts[i] + lengths[i])
            ids[i, : lengths[i]] = sample.ids[mine]
            classes[i, : lengths[i]] = sample.classes[mine]
        keep = self.tokens.text_tokens - special_count(self.specials)
        draws = uniforms(self.seed, positions, Purpose.TEXT_TOKENS, ids.shape[1])
        kept, kept_lengths = reduce_tokens(
            self.tokens.text_reduction, ids, classes, lengths, keep, draws
        )
        return add_specials(kept, kept_lengths, self.specials)
