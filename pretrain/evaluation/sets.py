"""Evaluation sets: dataset directories with their captions, opened once for all tasks."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.options import EvaluationOptions
from pretrain.tokens.tokenizer import Tokenizer
from pretrain.tokens.word_classes import SENTENCE_START


def metadata_columns(option: str, directory: Path) -> set[str]:
    """Metadata of a dataset's first sample; ValueError names the option that asked for it."""
    try:
        return set(Dataset(directory, tier_for(read_manifest(directory), 1)).read_json(0)["meta"])
    except (ValueError, OSError) as error:
        raise ValueError(f"{option}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """One dataset directory with its captions and classes in memory, its pictures on disk."""

    dataset: Dataset  # of the tier whose pictures are read
    captions: list[str]  # distinct captions
    caption_ids: list[NDArray[np.integer]]
    sentences: list[NDArray[np.integer]]  # of each caption, places of tokens that begin a sentence
    matches: Tensor  # (P, 2) pairs of a picture and a caption of its own, by picture
    meta: list[dict[str, Any]]  # (n,)

    @classmethod
    def open(
        cls,
        directory: Path,
        tier: str,
        names: Sequence[str] | None = None,
        option: str = "evaluation.captions",
    ) -> "EvaluationSet":
        """names: captions that count, where a sample has them, as `option` says; None is the
        dataset's first."""
        dataset = Dataset(directory, tier)
        known = list(dataset.manifest.captions)
        wanted = known[:1] if names is None else list(names)
        if absent := [name for name in wanted if name not in known]:
            raise ValueError(
                f"{directory} has captions {known}, none named {absent[0]!r}: change {option}"
            )
        place: dict[str, int] = {}
        ids: list[NDArray[np.integer]] = []
        sentences: list[NDArray[np.integer]] = []
        matches: list[tuple[int, int]] = []
        meta = []
        for row in range(len(dataset)):
            record = dataset.read_json(row)
            own = [name for name in wanted if record["captions"].get(name) is not None]
            if not own:
                raise ValueError(
                    f"{directory}: sample {dataset.key(row)} has no caption {' or '.join(wanted)}, "
                    f"which evaluation matches pictures with: change {option}, or rebuild the set"
                )
            pairs = []
            for name in own:
                text = record["captions"][name]
                if text not in place:
                    place[text] = len(place)
                    start, end = np.cumsum([0, *dataset.index[row]["tokens"]])[
                        known.index(name) : known.index(name) + 2
                    ]
                    all_ids, classes = dataset.read_text(row)
                    ids.append(all_ids[start:end])
                    sentences.append(np.flatnonzero(classes[start:end] & SENTENCE_START))
                pairs.append((row, place[text]))
            matches += dict.fromkeys(pairs)  # two captions may be the same text
            meta.append(record["meta"])
        return cls(
            dataset=dataset,
            captions=list(place),
            caption_ids=ids,
            sentences=sentences,
            matches=torch.tensor(matches),
            meta=meta,
        )

    def at_tier(self, tier: str) -> "EvaluationSet":
        """The same samples with the pictures of another tier."""
        if tier == self.dataset.tier:
            return self
        return replace(self, dataset=Dataset(self.dataset.directory, tier))

    def classes(self, column: str) -> list[str]:
        """Class of each picture (n,)."""
        for row, record in enumerate(self.meta):
            if column not in record:
                raise ValueError(
                    f"evaluation.zero_shot.{column}: sample {self.dataset.key(row)} of "
                    f"{self.dataset.directory} has metadata {sorted(record)}; name one of these"
                )
        return [str(record[column]) for record in self.meta]


class Sets:
    """The sets of `evaluation.sets`, and those that a task opens beside them."""

    def __init__(
        self, options: EvaluationOptions, image_sizes: Collection[int], tokenizer: Tokenizer
    ) -> None:
        """image_sizes: picture sizes in px that models will have; their tiers are opened now."""
        self.tokenizer = tokenizer
        self._tier = options.tier
        self._image_sizes = image_sizes
        self._of_tier: dict[tuple[str, str], EvaluationSet] = {}
        self.named = self.open_all("evaluation.sets", options.sets, options.captions)

    def open_all(
        self,
        option: str,
        folders: dict[str, Path],
        captions: Sequence[str] | None = None,
        captions_option: str = "evaluation.captions",
    ) -> dict[str, EvaluationSet]:
        """Sets whose pictures will be looked at, by name."""
        found = {
            name: self.open(f"{option}.{name}", path, captions, captions_option)
            for name, path in folders.items()
        }
        for name, one in found.items():
            for image_px in self._image_sizes:
                self.sized(f"{option}.{name}", one, image_px)
        return found

    def open(
        self,
        option: str,
        directory: Path,
        captions: Sequence[str] | None = None,
        captions_option: str = "evaluation.captions",
    ) -> EvaluationSet:
        """Captions and classes of a dataset, by its smallest tier: no picture is looked at."""
        try:
            tier = tier_for(read_manifest(directory), 1)
            opened = EvaluationSet.open(directory, tier, captions, captions_option)
        except (ValueError, OSError) as error:
            raise ValueError(f"{option}: {error}") from error
        if opened.dataset.manifest.tokenizer.sha256 != self.tokenizer.sha256:
            raise ValueError(
                f"{option}: {directory} was tokenized by another tokenizer than the training "
                f"set: rebuild it with `data_prep build --tokenizer {self.tokenizer.file}`"
            )
        return opened

    def sized(self, option: str, one: EvaluationSet, image_px: int) -> EvaluationSet:
        """A set with pictures of the tier for this size, the same object again at each call."""
        tier = self._tier or tier_for(one.dataset.manifest, image_px)
        if tier not in one.dataset.manifest.tiers:
            raise ValueError(
                f"evaluation.tier={tier!r} asked for, {option} has "
                f"{sorted(one.dataset.manifest.tiers)}: name one of these, or leave it null"
            )
        if (option, tier) not in self._of_tier:
            self._of_tier[option, tier] = one.at_tier(tier)
        return self._of_tier[option, tier]

    def at(self, image_px: int) -> dict[str, EvaluationSet]:
        """The sets of `evaluation.sets`, with pictures for this size."""
        return {
            name: self.sized(f"evaluation.sets.{name}", one, image_px)
            for name, one in self.named.items()
        }
