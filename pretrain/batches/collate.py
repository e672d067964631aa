"""The token-reduction collator: rows of a dataset to one batch, by arithmetic alone.

Everything random in a batch (which caption, crop, kept tokens) is drawn here, from the seed and
each sample's position; the model obeys. So a batch is the same whoever builds it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from pretrain.base.seeding import Purpose, hashes, uniforms
from pretrain.batches.augment import AUGMENT_DRAWS
from pretrain.batches.images import CROP_DRAWS, crop_box, resize
from pretrain.batches.options import CropOptions
from pretrain.dataset.captions import Recaption, count_ids
from pretrain.dataset.pictures import decode, decode_jpeg
from pretrain.dataset.reader import Dataset, Sample, SampleError
from pretrain.dataset.sample_weights import SampleWeights
from pretrain.tokens.context import Specials, add_specials, special_count
from pretrain.tokens.image_reduction import draws_needed, keep_index
from pretrain.tokens.options import TokenOptions
from pretrain.tokens.text_reduction import TextReduction, reduce_tokens
from pretrain.tokens.word_edges import word_edges

_SUBSTITUTES = 16  # tries to replace an unusable sample before the batch is given up


def caption_shares(
    names: list[str], weights: dict[str, float], option: str = "data.caption_weights"
) -> NDArray[np.float64]:
    """(C,) how often each of a dataset's captions is drawn; ValueError names the option."""
    unknown = sorted(set(weights) - set(names))
    wrong = {n: w for n, w in weights.items() if not (math.isfinite(w) and w >= 0)}
    if unknown or wrong or (weights and not any(weights.values())):
        raise ValueError(
            f"{option}={weights}, the dataset has captions {names}: name some of these with finite "
            "weights of at least 0, one of them positive, or leave the option out"
        )
    weights = weights or dict.fromkeys(names, 1.0)
    return np.asarray([weights.get(name, 0.0) for name in names], np.float64)


def text_counts(
    dataset: Dataset,
    reduction: TextReduction,
    option: str = "tokens.text_reduction",
    recaptions: Sequence[Recaption] = (),
) -> NDArray[np.uint64] | None:
    """The counts of token ids, where a text reduction needs them; ValueError, naming the option,
    where the dataset has not what it needs."""
    try:
        if reduction == "frequency":
            return count_ids(dataset.directory, dataset.manifest, recaptions)[0]
    except ValueError as error:
        raise ValueError(f"{option}={reduction}: {error}, or change {option}") from error
    return None


def text_edges(
    dataset: Dataset, tokens: TokenOptions, option: str = "tokens.syntax_unit"
) -> NDArray[np.uint8] | None:
    """Which ids begin or end a word, where a text reduction needs it; ValueError as above."""
    if tokens.text_reduction != "syntax" or tokens.syntax_unit != "word":
        return None
    try:
        return word_edges(dataset.tokenizer().pieces())
    except (OSError, ValueError) as error:
        raise ValueError(f"{option}=word: {error}; or set {option} to token") from error


def _longest_run(marked: NDArray[np.bool_]) -> int:
    """Most neighbours that are all marked."""
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    return int((edges[1::2] - edges[::2]).max(initial=0))


class Batch(TypedDict):
    """One rank's part of a global batch, as numpy arrays."""

    positions: NDArray[np.int64]  # (B,) place in the run's sample stream
    rows: NDArray[np.int64]  # (B,) row in the dataset's index, after any substitution
    images: NDArray[np.uint8]  # (B, H, W, 3)
    text_ids: NDArray[np.int64]  # (B, T), padded
    keep_index: NDArray[np.int64] | None  # (B, K) kept patch tokens, None for all
    augment: NDArray[np.float32]  # (B, AUGMENT_DRAWS) uniform draws for the device's part
    replaced: dict[str, int]  # unusable samples by reason
    replaced_first: dict[str, str]  # by reason, what was wrong with the first, and its key
    replaced_in_a_row: int  # the longest run of samples that were replaced


def join(parts: list[Batch], asked: NDArray[np.int64], images: NDArray[np.uint8]) -> Batch:
    """One batch of its parts, in order, whose pictures lie in `images` already. Equal however it
    was parted, but for which fault is told first of those of one reason.

    asked: the rows as the order has them, before any substitution.
    """

    def whole(name: Literal["positions", "rows", "text_ids", "augment", "keep_index"]) -> Any:
        return np.concatenate([part[name] for part in parts])

    replaced: dict[str, int] = {}
    told: dict[str, str] = {}
    for part in parts:
        for reason, count in part["replaced"].items():
            replaced[reason] = replaced.get(reason, 0) + count
        for reason, fault in part["replaced_first"].items():
            told.setdefault(reason, fault)
    return Batch(
        positions=whole("positions"),
        rows=(rows := whole("rows")),
        images=images,
        text_ids=whole("text_ids"),
        keep_index=None if parts[0]["keep_index"] is None else whole("keep_index"),
        augment=whole("augment"),
        replaced=replaced,
        replaced_first=told,
        replaced_in_a_row=_longest_run(rows != asked),
    )


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
    weights: SampleWeights | None = None  # substitutes are drawn by these
    recaptions: tuple[Recaption, ...] = ()  # captions that caption_weights names beside the shards

    def __post_init__(self) -> None:
        self._counts = text_counts(
            self.dataset, self.tokens.text_reduction, recaptions=self.recaptions
        )
        self._edges = text_edges(self.dataset, self.tokens)
        self._captions = len(self.dataset.manifest.captions)
        names = [*self.dataset.manifest.captions, *(one.name for one in self.recaptions)]
        self._weights = caption_shares(names, self.caption_weights)
        self._vocabulary = self.dataset.vocabulary
        self._decode = decode if self.dataset.in_place else decode_jpeg
        self.grid = self.tokens.image_px // self.patch_px

    def __call__(
        self,
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        images: NDArray[np.uint8] | None = None,
    ) -> Batch:
        """The batch of these positions, whose samples lie at these rows.

        images (B, H, W, 3) is where the pictures are written; by default memory of their own.
        """
        tokens = self.tokens
        rows = rows.copy()
        crops = uniforms(self.seed, positions, Purpose.CROP, CROP_DRAWS)
        if images is None:
            images = np.empty((len(rows), tokens.image_px, tokens.image_px, 3), np.uint8)
        samples: list[Any] = [None] * len(rows)
        replaced: dict[str, int] = {}
        told: dict[str, str] = {}
        asked = rows.copy()
        candidates = [self._candidates(*p) for p in zip(positions, rows.tolist(), strict=True)]
        wanted = list(range(len(rows)))
        while wanted:
            for i in wanted:
                rows[i], samples[i], picture = self._usable(
                    candidates[i], positions[i], replaced, told
                )
                box = crop_box(picture.shape[0], picture.shape[1], self.crop, crops[i])
                images[i] = resize(picture, box, tokens.image_px, self.crop.interpolation)
            wanted = self._invalid_ids(rows, samples)
            if wanted:
                replaced["ids_invalid"] = replaced.get("ids_invalid", 0) + len(wanted)
                key = self.dataset.key(int(rows[wanted[0]]))
                told.setdefault("ids_invalid", f"sample {key}: ids beyond the vocabulary")
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
            text_ids=self.text(positions, rows, samples, replaced),
            keep_index=keep_index(
                tokens.image_reduction, self.grid, tokens.image_keep_tokens, draws
            ),
            augment=uniforms(self.seed, positions, Purpose.AUGMENT, AUGMENT_DRAWS).astype(
                np.float32
            ),
            replaced=replaced,
            replaced_first=told,
            replaced_in_a_row=_longest_run(rows != asked),
        )

    def _usable(
        self,
        candidates: Iterator[int],
        position: np.int64,
        replaced: dict[str, int],
        told: dict[str, str],
    ) -> tuple[int, Sample, NDArray[np.uint8]]:
        """(row, sample, picture) of the next candidate that can be read and decoded."""
        for row in candidates:
            # Only these two are the sample's fault. An OSError is the storage's, and stops the run.
            try:
                sample = self.dataset.read(row)
                return row, sample, self._decode(sample.jpeg)
            except SampleError as error:
                reason, fault = error.reason, str(error)
            except ValueError as error:
                reason, fault = "undecodable", f"sample {self.dataset.key(row)}: {error}"
            told.setdefault(reason, fault)
            replaced[reason] = replaced.get(reason, 0) + 1
        raise RuntimeError(
            f"position {position}: its sample and {_SUBSTITUTES} substitutes in a row are unusable "
            f"({replaced}); the dataset {self.dataset.directory} is damaged, rebuild it"
        )

    def _candidates(self, position: np.int64, row: int) -> Iterator[int]:
        """The position's row, then substitutes by (seed, position)."""
        yield row
        draws = hashes(self.seed, np.asarray([position]), Purpose.SUBSTITUTE, _SUBSTITUTES)[0]
        if self.weights is None:
            substitutes = draws % np.uint64(len(self.dataset))
        else:
            substitutes = self.weights.pick(draws * 2.0**-64)
        yield from map(int, substitutes)

    def _invalid_ids(self, rows: NDArray[np.int64], samples: list[Sample]) -> list[int]:
        """Places in the batch whose ids no tokenizer of this dataset wrote: wrong writers, which
        a crc32 does not catch, and which on a device would end in an assertion without a name."""
        lengths = np.asarray([len(sample.ids) for sample in samples])
        told = self.dataset.index["tokens"][rows].sum(1)
        wrong = (lengths != told) | (lengths == 0)
        # The whole batch at once: the single samples are looked at only where it is over.
        if (
            np.concatenate([sample.ids for sample in samples]).max(initial=0)
            >= self._vocabulary.size
        ):
            wrong |= [sample.ids.max(initial=0) >= self._vocabulary.size for sample in samples]
        return np.flatnonzero(wrong).tolist()

    def text(
        self,
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
        samples: list[Sample],
        replaced: dict[str, int] | None = None,
    ) -> NDArray[np.int64]:
        """Draw one caption a sample by weight, reduce it, add the special ids: (B, T).

        A drawn recaption that is damaged counts as one that the sample lacks, in `replaced` too.
        """
        counts = self._token_counts(rows)
        while True:
            choice = self._draw(positions, counts)
            drawn, damaged = self._read_recaptions(rows, choice)
            if not damaged:
                break
            counts[damaged, choice[damaged]] = 0
            if replaced is not None:
                reason = "recaption_damaged"
                replaced[reason] = replaced.get(reason, 0) + len(damaged)
        lengths = np.take_along_axis(counts, choice[:, None], 1)[:, 0]
        inside = counts[:, : self._captions]
        starts = np.cumsum(inside, axis=1) - inside
        ids = np.zeros((len(rows), max(int(lengths.max()), 1)), np.int64)
        classes = np.zeros_like(ids)
        for i, sample in enumerate(samples):
            if i in drawn:
                ids[i, : lengths[i]], classes[i, : lengths[i]] = drawn[i]
                continue
            start = starts[i, choice[i]]
            mine = slice(start, start + lengths[i])
            ids[i, : lengths[i]] = sample.ids[mine]
            classes[i, : lengths[i]] = sample.classes[mine]
        keep = self.tokens.text_tokens - special_count(self.specials)
        draws = uniforms(self.seed, positions, Purpose.TEXT_TOKENS, ids.shape[1])
        kept, kept_lengths = reduce_tokens(
            *(self.tokens.text_reduction, ids, classes, lengths, keep, draws),
            counts=self._counts,
            edges=self._edges,
        )
        return add_specials(kept, kept_lengths, self.specials, self._vocabulary)

    def _token_counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, C) tokens of each caption, those of the shards first; 0 where a sample lacks it."""
        counts = [self.dataset.index["tokens"][rows].astype(np.int64)]
        counts += [one.index["tokens"][rows].astype(np.int64)[:, None] for one in self.recaptions]
        return np.concatenate(counts, axis=1)

    def _draw(self, positions: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) the caption of each sample, by weight among those that it has."""
        weights = np.where(counts > 0, self._weights, 0.0)
        # A sample without any of the wanted captions takes one of those that it has.
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, counts > 0)
        ladder = np.cumsum(weights, axis=1)
        draw = uniforms(self.seed, positions, Purpose.CAPTION, 1) * ladder[:, -1:]
        return (draw >= ladder).sum(axis=1)

    def _read_recaptions(
        self, rows: NDArray[np.int64], choice: NDArray[np.int64]
    ) -> tuple[dict[int, tuple[NDArray[np.integer], NDArray[np.uint8]]], list[int]]:
        """((ids, classes) by place in the batch, places whose text is damaged) of those drawn."""
        found: dict[int, tuple[NDArray[np.integer], NDArray[np.uint8]]] = {}
        damaged: list[int] = []
        for place in np.flatnonzero(choice >= self._captions).tolist():
            text = self.recaptions[choice[place] - self._captions].read(int(rows[place]))
            if text is None:
                damaged.append(place)
            else:
                found[place] = text
        return found, damaged
