"""A trained model in use: embeddings, classification and search from an exported folder alone."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pretrain.base.files import file_sha256
from pretrain.dataset.pictures import decode
from pretrain.evaluation.prompts import check_prompts
from pretrain.evaluation.zero_shot import class_embeddings
from pretrain.export.native import load as load_export
from pretrain.models.starting import CONFIG_FILE, WEIGHTS_FILE

Picture = Image.Image | Path | str
DEFAULT_TEMPLATES = ("a photo of a {}.",)


class Model:
    """An exported CLIP. Pictures are PIL pictures of any mode or paths; each is treated as in
    training: upright by EXIF, white under transparency, the centre square.

    >>> model = pretrain.load("runs/demo/export")
    >>> model.classify(["cat.png"], ["cat face", "red apple"], templates=["{}"])
    """

    def __init__(self, folder: Path | str, *, device: str = "cpu", batch: int = 64) -> None:
        """batch: pictures or texts per forward. device: torch's name, or "auto": CUDA if there."""
        if batch < 1:
            raise ValueError(f"batch={batch}: it must be positive")
        self._export = load_export(folder)
        self._folder = Path(folder)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._export.model.to(torch.device(device))
        except (RuntimeError, AssertionError) as error:  # torch's ways of saying there is none
            raise ValueError(
                f"device={device!r} asked for: {' '.join(str(error).split())[:200]}; use 'cpu', or "
                "a device of this machine"
            ) from error
        self._batch = batch

    @property
    def embed_dim(self) -> int:
        return self._export.model.options.embed_dim

    @property
    def image_px(self) -> int:
        return self._export.model.image.image_px

    def fingerprint(self) -> str:
        """sha256 over the export's weights and config, which names the tokenizer's: equal only for
        the same embeddings."""
        digests = [file_sha256(self._folder / name) for name in (WEIGHTS_FILE, CONFIG_FILE)]
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def encode_image(self, images: Sequence[Picture]) -> Tensor:
        """(n, E) fp32 unit vectors on the model's device. ValueError names what cannot be read."""
        _refuse_one("images", images)
        parts = [
            self._export.encode_images([_open(image, place) for place, image in some])
            for some in _batches(list(enumerate(images)), self._batch)
        ]
        return torch.cat(parts) if parts else self._nothing()

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(n, E) fp32 unit vectors on the model's device; longer texts are cut to the context."""
        _refuse_one("texts", texts)
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"texts: {text[:40]!r} holds half a character (a lone surrogate), which no "
                    "tokenizer reads; read the text as UTF-8, or take it out"
                ) from error
        parts = [self._export.encode_texts(some) for some in _batches(list(texts), self._batch)]
        return torch.cat(parts) if parts else self._nothing()

    def classify(
        self,
        images: Sequence[Picture],
        classes: Sequence[str],
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        top: int = 5,
    ) -> list[list[tuple[str, float]]]:
        """For each picture the `top` classes as (class, probability), the likeliest first.

        Each class is the mean of its templates' embeddings; probabilities are the softmax over the
        classes at the trained temperature (after the sigmoid loss too: its bias cancels).
        """
        _refuse_one("classes", classes)
        if not classes:
            raise ValueError("classes is empty: name at least one class to choose from")
        check_prompts("templates", templates)
        texts = self.encode_text([text.format(name) for name in classes for text in templates])
        owners = torch.arange(len(classes), device=texts.device).repeat_interleave(len(templates))
        classifier = class_embeddings(texts, owners, len(classes))
        logits = self._export.logit_scale * self.encode_image(images) @ classifier.T
        best = logits.softmax(dim=1).topk(min(top, len(classes)), dim=1)
        return [
            [(classes[place], share) for share, place in zip(shares, places, strict=True)]
            for shares, places in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def search(
        self, query: str | Image.Image | Path, images: Sequence[Picture] | Tensor, *, top: int = 5
    ) -> list[tuple[int, float]]:
        """The `top` pictures nearest to a text (str) or a picture (PIL or Path), best first.

        images: pictures, or their embeddings (n, E) by `encode_image`, for many queries over the
        same pictures. Returns (place in images, cosine).
        """
        features = images if isinstance(images, Tensor) else self.encode_image(images)
        if features.ndim != 2 or features.shape[1] != self.embed_dim:
            raise ValueError(
                f"images are embeddings of shape {tuple(features.shape)}, this model's have "
                f"(n, {self.embed_dim}): embed the pictures with this model's encode_image"
            )
        one = self.encode_text([query]) if isinstance(query, str) else self.encode_image([query])
        scores = features @ one[0].to(features)
        best = scores.topk(min(top, len(scores)))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _nothing(self) -> Tensor:
        return torch.empty(0, self.embed_dim, device=self._export.device)


def _refuse_one(name: str, values: object) -> None:
    """A single text is a sequence of its letters, which nobody means."""
    if isinstance(values, str | Path | Image.Image):
        raise ValueError(f"{name}={str(values)[:80]!r} is one: give a list of them")


def _batches(values: list, size: int) -> list[list]:
    return [values[at : at + size] for at in range(0, len(values), size)]


def _open(image: Picture, place: int) -> Image.Image:
    """A picture with its pixels read, so that a damaged one is named by its path or place."""
    try:
        if not isinstance(image, Image.Image):
            return Image.fromarray(decode(Path(image).read_bytes()))
        image.load()
        return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = f"picture {place}" if isinstance(image, Image.Image) else f"picture {image}"
        raise ValueError(
            f"{name} cannot be read ({' '.join(str(error).split())}): repair it or leave it out"
        ) from error
