"""What gallery.json holds: examples of the first evaluation set, for the report."""

from typing import Any

from pretrain.evaluation import examples
from pretrain.evaluation.features import Subject
from pretrain.evaluation.options import EvaluationOptions
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.zero_shot import ZeroShot


def gallery(
    options: EvaluationOptions, sets: Sets, zero_shot: ZeroShot | None, subject: Subject, seed: int
) -> dict[str, Any]:
    """Random pictures and captions with their five nearest, the classes and captions confused
    most. Collective."""
    name, one = next(iter(sets.at(subject.model.image.image_px).items()))
    images, texts = subject.embed_set(one, options.batch_samples)
    shown = examples.Embedded(
        dataset=one.dataset,
        captions=one.captions,
        matches=one.matches.to(images.device),
        images=images,
        texts=texts,
    )
    columns = {} if zero_shot is None else zero_shot.classes
    confused = []
    if zero_shot is not None:
        for column, names in columns.items():
            matrix, own = zero_shot.classifier(subject, column), zero_shot.class_index(one, column)
            confused.append(examples.confusions(shown, column, matrix, names, own.numpy()))
    confused.append(
        examples.confusions(shown, "captions", texts, one.captions, shown.first_captions)
    )
    count = options.gallery_images
    return {
        "set": name,
        "images": examples.nearest_captions(shown, count, seed),
        "texts": examples.nearest_pictures(shown, (count + 1) // 2, seed),
        "confusions": confused,
    }
