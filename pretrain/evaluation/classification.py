"""Zero-shot classification of any labelled set, with class names and templates from files."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from pretrain.batches.images import evaluation_pixels
from pretrain.batches.options import Resize
from pretrain.evaluation.features import Subject, squares_features, text_features
from pretrain.evaluation.labelled import LabelledSet, open_labelled
from pretrain.evaluation.options import ClassificationOptions, EvaluationOptions
from pretrain.evaluation.prompts import check_prompts
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure
from pretrain.evaluation.zero_shot import accuracy_figures, class_embeddings, zero_shot
from pretrain.models.clip import CLIP
from pretrain.tokens.tokenizer import Tokenizer

_OWN = Path(__file__).with_name("templates")
_SHIPPED = {"imagenet": "imagenet_classes.txt", "openai_imagenet": "openai_imagenet_templates.txt"}


class Classification:
    """A labelled set opened and checked before any model is built."""

    name = "classification"
    is_quick = False

    def __init__(self, options: ClassificationOptions) -> None:
        self.options = options
        self.set: LabelledSet = open_labelled("classification.images", options.images)
        self.names, place = class_names(self.set, options.classes)
        self.class_of_image = torch.tensor([place[label] for label in self.set.labels])
        self.templates = ["a photo of a {}."]
        if options.templates is not None:
            given = _texts("classification.templates", options.templates)
            self.templates = [text.replace("{c}", "{}") for text in given]  # clip-benchmark's
        check_prompts("classification.templates", self.templates)

    @classmethod
    def open(cls, options: EvaluationOptions, sets: Sets) -> "Classification | None":
        return None if options.classification is None else cls(options.classification)

    def evaluate(self, subject: Subject) -> list[Figure]:
        """The figures of `zero_shot`. Collective."""
        found = zero_shot(*self.compare(subject))
        return accuracy_figures(self.name, self.options.images.name, "", found, {})

    def compare(self, subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
        """(pictures (n, E), their classes (n,), classifier (C, E)). Collective."""
        images = picture_features(
            subject, self.set, self.options.resize, self.options.batch_samples
        )
        classifier = self.classifier(subject.model, subject.tokenizer)
        return images, self.class_of_image.to(images.device), classifier

    def classifier(self, model: CLIP, tokenizer: Tokenizer) -> Tensor:
        """(C, E): the normalised mean over the templates. Collective."""
        ids = [
            np.asarray(tokenizer.encode(template.format(name)))
            for name in self.names
            for template in self.templates
        ]
        features = text_features(model, ids, self.options.batch_samples)
        owners = torch.arange(len(self.names), device=features.device)
        return class_embeddings(
            features, owners.repeat_interleave(len(self.templates)), len(self.names)
        )


def picture_features(subject: Subject, pictures: LabelledSet, how: Resize, batch: int) -> Tensor:
    """(n, E) fp32 unit vectors of a labelled set's pictures. Collective."""
    image_px = subject.model.image.image_px

    def square(row: int) -> NDArray[np.uint8]:
        return evaluation_pixels(pictures.read(row), image_px, how)

    count = len(pictures.labels)
    return squares_features(
        subject.model, count, square, subject.normalisation, batch, subject.kept
    )


def class_names(pictures: LabelledSet, file: Path | None) -> tuple[list[str], dict[str, int]]:
    """(names of all classes, {label: its class}). ValueError where a label has no name."""
    option, order = "classification.classes", pictures.order
    numbered = all(label.isascii() and label.isdigit() for label in order)
    if file is None:
        if numbered:
            raise ValueError(
                f"{option}: the set's labels are numbers ({order[0]} to {order[-1]}): give a file "
                "with a name for each"
            )
        return [label.replace("_", " ") for label in order], {
            label: at for at, label in enumerate(order)
        }
    given = _read(option, file)
    if not given:
        raise ValueError(f"{option}={file} is empty: give a name for each class")
    if isinstance(given, dict):
        place = {str(label): at for at, label in enumerate(given)}
        names = [str(name) for name in given.values()]
    else:
        names = _texts(option, file)
        own = {name: at for at, name in enumerate(names)}
        if numbered:
            place = {label: int(label) for label in order if int(label) < len(names)}
        elif len(own) == len(names) and set(order) <= set(names):
            place = own
        elif len(names) == len(order):
            place = {label: at for at, label in enumerate(order)}
            if named := set(order) & set(names):
                print(
                    f"note: {option}={file} is taken in the order of the classes, though "
                    f"{len(named)} of {len(order)} classes are among its names; others are not, "
                    f"such as {sorted(set(order) - named)[0]!r}",
                    file=sys.stderr,
                )
        else:
            raise ValueError(
                f"{option}={file} has {len(names)} names, the set has {len(order)} classes that "
                f"are not all among them ({sorted(set(order) - set(names))[:3]}): give one name a "
                "class, or a YAML mapping from label to name"
            )
    missing = [label for label in order if label not in place]
    if missing:
        raise ValueError(
            f"{option}={file} names {len(names)} classes, none for {missing[:3]} of the set: add "
            "a name for each"
        )
    return names, place


def _read(option: str, file: Path) -> Any:
    """The content of a file of names: a list or a mapping."""
    path = file if file.is_file() else _OWN / _SHIPPED.get(str(file), "")
    if not path.is_file():
        raise ValueError(
            f"{option}={file}: there is no such file; name one, or one of {sorted(_SHIPPED)}"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows begin with a mark
        if path.suffix not in (".yaml", ".yml"):
            return [line.strip() for line in text.splitlines() if line.strip()]
        found = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{option}={file}: {' '.join(str(error).split())}") from error
    if not isinstance(found, list | dict):
        raise ValueError(f"{option}={file}: it is neither a list nor a mapping of names")
    wrong = [
        one
        for one in (found.values() if isinstance(found, dict) else found)
        if not isinstance(one, str | int | float) or isinstance(one, bool)
    ]
    if wrong:
        raise ValueError(f"{option}={file}: {wrong[0]!r} is not text: put it in quotation marks")
    return found


def _texts(option: str, file: Path) -> list[str]:
    found = _read(option, file)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{option}={file}: it is not a list of texts; give one per line")
    return [str(text) for text in found]
