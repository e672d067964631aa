"""Embeddings of pictures and texts by a plain CLIP, shared out over the ranks by accelerate."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from pretrain.base import progress
from pretrain.base.distributed import cores_of_a_rank
from pretrain.base.seeding import Purpose, uniforms
from pretrain.batches.augment import prepare
from pretrain.batches.images import evaluation_pixels
from pretrain.batches.options import AugmentOptions, Normalisation
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.sets import EvaluationSet
from pretrain.models.clip import CLIP
from pretrain.tokens.context import context
from pretrain.tokens.image_reduction import ImageReduction, draws_needed, keep_index
from pretrain.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class KeptTokens:
    """Which patch tokens an evaluated picture keeps: by its row, so the same ones on any ranks."""

    reduction: ImageReduction
    count: int | None

    def index(self, rows: Sequence[int], grid: int) -> Tensor | None:
        """(B, K) of rows (B,)."""
        needed = draws_needed(self.reduction, grid)
        draws = uniforms(0, np.asarray(rows, np.int64), Purpose.IMAGE_TOKENS, needed)
        kept = keep_index(self.reduction, grid, self.count, draws)
        return None if kept is None else torch.from_numpy(kept)


@torch.inference_mode()
def embed_pixels(
    model: CLIP,
    pixels: NDArray[np.uint8],
    rows: Sequence[int],
    normalisation: Normalisation,
    kept: KeptTokens | None,
) -> Tensor:
    """(B, E) of pixels (B, H, W, 3) in the model's size, which are the set's rows (B,)."""
    device = model.device
    images = prepare(
        torch.from_numpy(pixels).to(device), None, AugmentOptions(), normalisation, model.dtype
    )
    index = None if kept is None else kept.index(rows, model.image.grid)
    return model.encode_image(images, None if index is None else index.to(device))


def distribute_rows(count: int, batch: int, embed: Callable[[list[int]], Tensor]) -> Tensor:
    """(count, E): embed(rows) of every row 0…count-1, each computed on one rank. Collective."""
    # accelerate takes seconds to import, which a mistake in an option need not wait for.
    from accelerate import PartialState
    from accelerate.utils import gather

    state = PartialState()
    with state.split_between_processes(list(range(count)), apply_padding=True) as mine:
        parts = []
        with progress.Bar(what="evaluate", unit="rows", total=len(mine), stays=False) as bar:
            bar.disable = bar.disable or state.process_index > 0
            for at in range(0, len(mine), batch):
                progress.doing(f"evaluating, row {at} of {len(mine)}")
                parts.append(embed(mine[at : at + batch]))
                bar.update(batch)
    own = torch.cat(parts)
    if state.num_processes == 1:
        return own
    # Accelerate pads the last ranks' rows by repeating; put each row where it belongs.
    rows = gather(torch.tensor(mine, device=own.device))
    features = gather(own.contiguous())
    out = torch.empty(count, own.shape[1], device=own.device)
    out[rows] = features
    return out


def _decode(dataset: Dataset, row: int) -> NDArray[np.uint8]:
    try:
        return decode(dataset.read(row).jpeg)
    except ValueError as error:  # in training another sample takes its place; a figure cannot
        raise ValueError(
            f"evaluation set {dataset.directory}, tier {dataset.tier}, sample {dataset.key(row)}: "
            f"{error}; copy or build it again"
        ) from error


def image_features(
    model: CLIP,
    dataset: Dataset,
    normalisation: Normalisation,
    batch: int,
    kept: KeptTokens | None = None,
) -> Tensor:
    """(n, E) fp32 unit vectors of all pictures: centre square, resized to the model's size."""
    image_px = model.image.image_px

    def square(row: int) -> NDArray[np.uint8]:
        return evaluation_pixels(_decode(dataset, row), image_px)

    return squares_features(model, len(dataset), square, normalisation, batch, kept)


def squares_features(
    model: CLIP,
    count: int,
    square: Callable[[int], NDArray[np.uint8]],
    normalisation: Normalisation,
    batch: int,
    kept: KeptTokens | None = None,
) -> Tensor:
    """(count, E) of square(row), (H, W, 3) in the model's size, for every row. Collective.

    Squares are made by as many threads as the rank has cores.
    """
    with ThreadPoolExecutor(cores_of_a_rank(), thread_name_prefix="pictures") as pool:

        def embed(rows: list[int]) -> Tensor:
            pixels = np.stack(list(pool.map(square, rows)))
            return embed_pixels(model, pixels, rows, normalisation, kept)

        return distribute_rows(count, batch, embed)


@torch.inference_mode()
def text_features(model: CLIP, texts: Sequence[NDArray[np.integer]], batch: int) -> Tensor:
    """(m, E) fp32 unit vectors of texts given as content ids, truncated to the model's context."""
    device = model.device
    specials, tower = model.options.text.specials, model.text

    def embed(rows: list[int]) -> Tensor:
        ids = context([texts[row] for row in rows], tower.text_tokens, specials, tower.vocabulary)
        return model.encode_text(torch.from_numpy(ids).to(device))

    return distribute_rows(len(texts), batch, embed)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model as tasks judge it, at its own lengths."""

    model: CLIP
    tokenizer: Tokenizer
    normalisation: Normalisation
    kept: KeptTokens | None = None
    """Image tokens that are kept; None is all."""
    _embedded: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def is_main(self) -> bool:
        return not dist.is_initialized() or dist.get_rank() == 0

    def embed_set(self, one: EvaluationSet, batch: int) -> tuple[Tensor, Tensor]:
        """(pictures (n, E), captions (m, E)) of a set, computed once for all tasks. Collective."""
        key = (id(one), batch)
        if key not in self._embedded:
            self._embedded[key] = (
                image_features(self.model, one.dataset, self.normalisation, batch, self.kept),
                text_features(self.model, one.caption_ids, batch),
            )
        return self._embedded[key]
