"""WinoGAViL (arXiv 2207.12576): which of some pictures a word is associated with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.images import evaluation_pixels
from pretrain.dataset.pictures import decode
from pretrain.evaluation.datacomp.webdatasets import Measured
from pretrain.evaluation.features import Subject, squares_features, text_features

_COLUMNS = ("candidate_images", "candidates", "associations", "cue")


class Winogavil:
    """The test split, as `datasets.Dataset.save_to_disk` wrote it."""

    def __init__(self, option: str, directory: Path, batch: int) -> None:
        import datasets  # takes seconds to import

        try:
            saved: Any = datasets.load_from_disk(str(directory))
            missing = [name for name in _COLUMNS if name not in saved.features]
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{option}: {directory} is no saved split ({' '.join(str(error).split())}): save "
                "the test split of nlphuji/winogavil with save_to_disk"
            ) from error
        if missing:
            raise ValueError(
                f"{option}: {directory} has columns {sorted(saved.features)}, none named "
                f"{missing[0]}: save the test split of nlphuji/winogavil"
            )
        plain = datasets.Sequence(datasets.Image(decode=False))
        self._pictures = saved.select_columns(["candidate_images"]).cast_column(
            "candidate_images", plain
        )
        self._batch = batch
        self.cues: list[str] = list(saved["cue"])
        self.count = len(self.cues)
        self.is_associated: list[NDArray[np.bool_]] = [
            np.isin(candidates, associations)
            for candidates, associations in zip(
                saved["candidates"], saved["associations"], strict=True
            )
        ]

    def metrics(self, subject: Subject) -> dict[str, Measured]:
        """Mean Jaccard index, over all and by the number of candidates, as DataComp's wino_eval
        has it. Collective."""
        counts = [len(own) for own in self.is_associated]
        places = [(row, at) for row, count in enumerate(counts) for at in range(count)]
        image_px = subject.model.image.image_px

        def square(number: int) -> NDArray[np.uint8]:
            row, at = places[number]
            file = self._pictures[row]["candidate_images"][at]
            content = file["bytes"] or Path(file["path"]).read_bytes()
            return evaluation_pixels(decode(content), image_px)

        images = squares_features(
            subject.model, len(places), square, subject.normalisation, self._batch, subject.kept
        )
        ids = [np.asarray(subject.tokenizer.encode(cue_text(cue))) for cue in self.cues]
        texts = text_features(subject.model, ids, self._batch)
        return mean_scores(scores(images, texts, self.is_associated), counts)


def cue_text(cue: str) -> str:
    """The text of a cue: with an article, as WinoGAViL's authors compare it by CLIP."""
    cue = cue.lower()
    return f"{'An' if cue[:1] in tuple('aeiou') else 'A'} {cue}"


def scores(
    images: Tensor, texts: Tensor, is_associated: Sequence[NDArray[np.bool_]]
) -> NDArray[np.float64]:
    """(m,) Jaccard index of each cue's associated candidates and as many of the nearest ones.

    images (n, E): the candidates of all cues, one cue after another; texts (m, E).
    """
    found = []
    parts = images.split([len(own) for own in is_associated])
    for own, candidates, text in zip(is_associated, parts, texts, strict=True):
        chosen = np.zeros(len(own), bool)
        chosen[(candidates @ text).topk(int(own.sum())).indices.cpu().numpy()] = True
        found.append((own & chosen).sum() / max((own | chosen).sum(), 1))
    return np.array(found)


def mean_scores(found: NDArray[np.float64], counts: Sequence[int]) -> dict[str, Measured]:
    """Means over the cues with so many candidates, by DataComp's names, where there are some."""
    many = np.asarray(counts)
    groups = {
        "avg_jaccard_score": many > 0,
        **{f"jaccard_score_{count}": many == count for count in (5, 6, 10, 12)},
        "jaccard_score_5-6": many <= 6,
        "jaccard_score_10-12": many >= 10,
    }
    return {name: Measured(float(found[own].mean())) for name, own in groups.items() if own.any()}
