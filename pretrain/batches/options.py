"""Options of what batches are made of, and of who makes them. No torch."""

import math
import sys
from dataclasses import dataclass
from typing import Literal

from pretrain.base.checks import check_positive

Normalisation = Literal["imagenet", "openai", "inception"]
# shortest_side_crop: the centre square, bicubic. squash: the whole picture stretched to the square,
# bilinear, which CLIPA v2's configs evaluate by ("works better").
Resize = Literal["shortest_side_crop", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """Augmentation of training pictures, drawn per sample; all off by default, as in CLIPA B/16."""

    scale_min: float = 1.0
    """Smallest random zoom of the picture's content; below 1 shrinks it."""
    scale_max: float = 1.0
    """Largest random zoom."""
    rotate_rad: float = 0.0
    """Largest random rotation either way, in radians."""
    shift: float = 0.0
    """Largest random shift either way, as a share of the picture's side."""
    flip: float = 0.0
    """Probability of a left-right flip (CLIPA: never; captions may name a side)."""
    brightness: float = 0.0
    """Brightness factor is uniform in 1 ± this."""
    contrast: float = 0.0
    """Contrast factor is uniform in 1 ± this."""
    saturation: float = 0.0
    """Saturation factor is uniform in 1 ± this."""
    channel: float = 0.0
    """Each colour channel's factor is uniform in 1 ± this."""
    hue: float = 0.0
    """Hue is turned by a share of the colour circle, uniform in ± this (SimCLR at CLIPA's strength:
    0.08), in HSV, after the factors. torchvision and SimCLR draw the order of the four anew."""
    jitter: float = 1.0
    """Probability that these factors and the hue change at all (SimCLR, CLIPA L/16 and v2: 0.8)."""
    grey: float = 0.0
    """Probability that a picture loses its colours (CLIPA L/16 and v2: 0.2)."""

    def mistake(self) -> str | None:
        """What is wrong with these numbers, beginning with the option's name; None if nothing."""
        if not 0 < self.scale_min <= self.scale_max < math.inf:
            return f"scale_min={self.scale_min}: needs 0 < scale_min <= scale_max={self.scale_max}"
        if not 0 <= self.rotate_rad <= 2 * math.pi:
            return f"rotate_rad={self.rotate_rad}: it must be from 0 to 2 pi"
        if not 0 <= self.hue <= 0.5:
            return f"hue={self.hue}: it must be from 0 to 0.5, half the colour circle either way"
        shares = ("flip", "grey", "jitter", "brightness", "contrast", "saturation", "channel")
        for name in (*shares, "shift"):
            if not 0 <= getattr(self, name) <= 1:
                return f"{name}={getattr(self, name)}: it must be from 0 to 1"
        return None

    @property
    def moves(self) -> bool:
        return bool(
            self.rotate_rad
            or self.shift
            or self.flip
            or self.scale_min != 1.0
            or self.scale_max != 1.0
        )

    @property
    def recolours(self) -> bool:
        factors = self.brightness or self.contrast or self.saturation or self.channel
        return bool(factors or self.hue or self.grey)


@dataclass(frozen=True, kw_only=True)
class CropOptions:
    """Random resized crop of training pictures."""

    area_min: float = 0.4
    """Smallest share of the picture's area that a crop covers (CLIPA: 0.4)."""
    area_max: float = 1.0
    """Largest share of the picture's area that a crop covers."""
    aspect_max: float = 4 / 3
    """Widest aspect ratio of a crop; the narrowest is its inverse (CLIPA torch: 4/3)."""
    interpolation: Interpolation = "bicubic"
    """How a crop is resized, antialiased: bicubic (clipa_torch) or bilinear (CLIPA JAX)."""

    def mistake(self) -> str | None:
        """What is wrong with these numbers, beginning with the option's name; None if nothing."""
        if not 0 < self.area_min <= self.area_max <= 1:
            return f"area_min={self.area_min}: needs 0 < area_min <= area_max={self.area_max} <= 1"
        if not 1 <= self.aspect_max < math.inf:
            return f"aspect_max={self.aspect_max}: it must be 1 or more"
        return None


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """Batches that have alike many samples of each concept, as far as there are (CABS-DM)."""

    concepts: str | None = None
    """Name of concepts/NAME.npy in the dataset: each sample's cluster, or its value of a column.
    null takes all samples as they come. `python -m data_prep weigh` makes one beside its
    weights."""
    candidates: int = 5
    """Samples of the stream that each sample of a batch is chosen of; the others are skipped (CABS:
    5, a filter ratio of 0.8). The dataset passes so many times in what counts as an epoch."""

    def __post_init__(self) -> None:
        check_positive({"data.balance.candidates": self.candidates})


@dataclass(frozen=True, kw_only=True)
class FailureOptions:
    """When unusable samples stop the run instead of being replaced."""

    max_share: float = 0.001
    """Largest share of samples that may be replaced, over all ranks, from 10,000 samples on."""
    max_in_a_row: int = 100
    """Most samples in a row, in one rank's part of a batch, that may all be replaced."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share}: needs 0 <= max_share <= 1")
        check_positive({"data.failures.max_in_a_row": self.max_in_a_row})


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How batches are built ahead of the training step."""

    kind: Literal["auto", "threads", "processes"] = "auto"
    """Threads of the training process, or processes beside it (Linux). auto takes processes on a
    GPU: threads would slow down the one that gives it work (docs/speed.md)."""
    workers: int | None = None
    """How many of them build batches; 0 builds each batch when it is needed. By default 2, on a GPU
    the rank's share of the node's cores less 2, at most 16."""
    prefetch_batches: int = 2
    """Batches built ahead of the step, at least; of small ones as many as keep all workers busy."""
    read_ahead: bool = True
    """Fetch the next shuffle window's pieces of the disk while this one is trained on, where
    windows fit in memory or data.shards.cache is set. Needs workers."""

    def __post_init__(self) -> None:
        check_positive({"data.loader.prefetch_batches": self.prefetch_batches})
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"data.loader.workers={self.workers}: it must be 0 or more")
        if self.kind == "processes" and sys.platform != "linux":
            raise ValueError(
                "data.loader.kind=processes needs shared memory, which only Linux has: set it to "
                "threads"
            )
