"""The evaluator: every task on every evaluation set, as plain numbers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.options import Normalisation
from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.reader import Dataset
from pretrain.evaluation import examples
from pretrain.evaluation.abilities.judge import open_abilities
from pretrain.evaluation.features import KeptTokens, image_features, text_features
from pretrain.evaluation.options import EvaluationOptions, ZeroShotOptions
from pretrain.evaluation.retrieval import retrieval
from pretrain.evaluation.zero_shot import class_embeddings, zero_shot
from pretrain.models.clip import CLIP
from pretrain.tokens.tokenizer import Tokenizer


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
    matches: Tensor  # (P, 2) pairs of a picture and a caption of its own, by picture
    meta: list[dict[str, Any]]  # (n,)

    @classmethod
    def open(
        cls, directory: Path, tier: str, names: Sequence[str] | None = None
    ) -> "EvaluationSet":
        """names: captions that count, where a sample has them; None is the dataset's first."""
        dataset = Dataset(directory, tier)
        known = list(dataset.manifest.captions)
        wanted = known[:1] if names is None else list(names)
        if absent := [name for name in wanted if name not in known]:
            raise ValueError(
                f"{directory} has captions {known}, none named {absent[0]!r}: change "
                "evaluation.captions"
            )
        place: dict[str, int] = {}
        ids: list[NDArray[np.integer]] = []
        matches: list[tuple[int, int]] = []
        meta = []
        for row in range(len(dataset)):
            record = dataset.read_json(row)
            own = [name for name in wanted if record["captions"].get(name) is not None]
            if not own:
                raise ValueError(
                    f"{directory}: sample {dataset.key(row)} has no caption {' or '.join(wanted)}, "
                    "which evaluation matches pictures with: change evaluation.captions, or "
                    "rebuild the set"
                )
            pairs = []
            for name in own:
                text = record["captions"][name]
                if text not in place:
                    place[text] = len(place)
                    start, end = np.cumsum([0, *dataset.index[row]["tokens"]])[
                        known.index(name) : known.index(name) + 2
                    ]
                    ids.append(dataset.read_ids(row)[start:end])
                pairs.append((row, place[text]))
            matches += dict.fromkeys(pairs)  # two captions may be the same text
            meta.append(record["meta"])
        return cls(
            dataset=dataset,
            captions=list(place),
            caption_ids=ids,
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


class Evaluator:
    """Evaluates plain CLIP models on the recipe's sets; opens the data once."""

    def __init__(
        self,
        options: EvaluationOptions,
        *,
        image_sizes: Collection[int],
        tokenizer: Tokenizer,
        normalisation: Normalisation,
    ) -> None:
        """image_sizes: picture sizes in px that models will have; their tiers are opened now."""
        self.options = options
        self.tokenizer = tokenizer
        self.normalisation = normalisation
        self.sets = {
            name: self._open(f"evaluation.sets.{name}", path, options.captions)
            for name, path in options.sets.items()
        }
        self._ensembles = {
            column: self._open(f"evaluation.zero_shot.{column}.label_ensemble", task.label_ensemble)
            for column, task in options.zero_shot.items()
            if task.label_ensemble is not None
        }
        for column, ensemble in self._ensembles.items():
            ensemble.classes(column)
        self.classes = {
            column: sorted({c for one in self.sets.values() for c in one.classes(column)})
            for column in options.zero_shot
        }
        self._abilities = open_abilities(options.abilities)
        self._of_tier: dict[tuple[str, str], EvaluationSet] = {}
        for name in self.sets:
            for image_px in image_sizes:
                self._sized(name, image_px)

    def _open(
        self, option: str, directory: Path, captions: Sequence[str] | None = None
    ) -> EvaluationSet:
        """Captions and classes of a dataset, by its smallest tier: no picture is looked at."""
        try:
            opened = EvaluationSet.open(directory, tier_for(read_manifest(directory), 1), captions)
        except (ValueError, OSError) as error:
            raise ValueError(f"{option}: {error}") from error
        if opened.dataset.manifest.tokenizer.sha256 != self.tokenizer.sha256:
            raise ValueError(
                f"{option}: {directory} was tokenized by another tokenizer than the training "
                f"set: rebuild it with `data_prep build --tokenizer {self.tokenizer.file}`"
            )
        return opened

    def _sized(self, name: str, image_px: int) -> EvaluationSet:
        """A set with pictures of the tier for this size."""
        one = self.sets[name]
        tier = self.options.tier or tier_for(one.dataset.manifest, image_px)
        if tier not in one.dataset.manifest.tiers:
            raise ValueError(
                f"evaluation.tier={tier!r} asked for, evaluation.sets.{name} has "
                f"{sorted(one.dataset.manifest.tiers)}: name one of these, or leave it null"
            )
        if (name, tier) not in self._of_tier:
            self._of_tier[name, tier] = one.at_tier(tier)
        return self._of_tier[name, tier]

    @property
    def judges(self) -> bool:
        """Whether there is anything to evaluate at a stage's end."""
        return bool(self.sets) or self._abilities is not None

    def abilities(self, model: CLIP, kept: KeptTokens | None = None) -> dict[str, Any]:
        """The figures of each ability, none where they are not asked for. Collective."""
        if self._abilities is None:
            return {}
        return self._abilities.evaluate(model, self.tokenizer, self.normalisation, kept)

    def evaluate(self, model: CLIP, kept: KeptTokens | None = None) -> dict[str, Any]:
        """{set: {image_to_text, text_to_image, zero_shot: {column: …}, tier}}. Collective."""
        model.eval()
        classifiers = {
            column: self._classifier(model, column, task)
            for column, task in self.options.zero_shot.items()
        }
        results = {}
        for name in self.sets:
            one = self._sized(name, model.image.image_px)
            images, texts = self._features(model, one, kept)
            results[name] = retrieval(images, texts, one.matches.to(images.device))
            results[name]["zero_shot"] = {
                column: zero_shot(images, self._class_index(one, column).to(images.device), matrix)
                for column, matrix in classifiers.items()
            }
            results[name]["tier"] = one.dataset.tier
        return results

    def gallery(self, model: CLIP, seed: int) -> dict[str, Any]:
        """Examples of the first set: random pictures and captions with their five nearest, the
        classes and captions confused most, a map of the embeddings. Collective."""
        model.eval()
        name = next(iter(self.sets))
        one = self._sized(name, model.image.image_px)
        images, texts = self._features(model, one)
        shown = examples.Embedded(
            dataset=one.dataset,
            captions=one.captions,
            matches=one.matches.to(images.device),
            images=images,
            texts=texts,
        )
        tasks = [
            (column, self._classifier(model, column, task), self.classes[column])
            for column, task in self.options.zero_shot.items()
        ]
        confused = [
            examples.confusions(
                shown, column, matrix, names, self._class_index(one, column).numpy()
            )
            for column, matrix, names in tasks
        ]
        confused.append(
            examples.confusions(shown, "captions", texts, one.captions, shown.first_captions)
        )
        count = self.options.gallery_images
        coarsest = min(self.classes, key=lambda column: len(self.classes[column]), default=None)
        classes = None if coarsest is None else one.classes(coarsest)
        return {
            "set": name,
            "images": examples.nearest_captions(shown, count, seed),
            "texts": examples.nearest_pictures(shown, (count + 1) // 2, seed),
            "confusions": confused,
            "map": examples.embedding_map(shown, coarsest, classes, seed),
        }

    def _features(
        self, model: CLIP, one: EvaluationSet, kept: KeptTokens | None = None
    ) -> tuple[Tensor, Tensor]:
        batch = self.options.batch_samples
        return (
            image_features(model, one.dataset, self.normalisation, batch, kept),
            text_features(model, one.caption_ids, batch),
        )

    def _class_index(self, one: EvaluationSet, column: str) -> Tensor:
        place = {name: index for index, name in enumerate(self.classes[column])}
        return torch.tensor([place[name] for name in one.classes(column)])

    def _classifier(self, model: CLIP, column: str, task: ZeroShotOptions) -> Tensor:
        """(C, E) from prompts, or from the captions of each class in the ensemble's dataset."""
        names = self.classes[column]
        if task.label_ensemble is None:
            pairs = [
                (np.asarray(self.tokenizer.encode(prompt.format(name))), index)
                for index, name in enumerate(names)
                for prompt in task.prompts
            ]
        else:
            ensemble = self._ensembles[column]
            place = {name: index for index, name in enumerate(names)}
            classes = ensemble.classes(column)
            seen = {
                (caption, place[classes[row]])
                for row, caption in ensemble.matches.tolist()
                if classes[row] in place
            }
            pairs = [(ensemble.caption_ids[caption], index) for caption, index in sorted(seen)]
        features = text_features(model, [ids for ids, _ in pairs], self.options.batch_samples)
        owners = torch.tensor([index for _, index in pairs], device=features.device)
        return class_embeddings(features, owners, len(names))
