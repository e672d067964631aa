"""Stages: few tokens for long, then all tokens for short; their options and their lengths."""

import math
from dataclasses import dataclass, field
from fractions import Fraction

from pretrain.base.checks import check_at_most, check_between, check_positive
from pretrain.base.decimals import exact
from pretrain.batches.options import AugmentOptions, CropOptions
from pretrain.engine.options import TowerName
from pretrain.engine.schedule import ScheduleOptions, learning_rate, peak_learning_rate
from pretrain.tokens.options import TokenOptions

# Far beyond any run: a position in the stream is a 64-bit integer.
_MOST_SAMPLES, _MOST_BATCH, _MOST_TOKENS = 10**15, 1 << 24, 1 << 14


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """One stage: few tokens for long, or all tokens for short."""

    steps: int | None = None
    """Optimizer steps of this stage; or give samples or epochs instead."""
    samples: int | None = None
    """Samples of this stage, rounded up to whole steps."""
    epochs: float | None = None
    """Passes over the dataset, rounded up to whole steps."""
    global_batch_samples: int
    """Samples of one step over all ranks; all of them are each other's negatives."""
    micro_batch_samples: int | None = None
    """Samples of a rank in one forward; less than its share costs a second forward (GradCache)."""
    base_learning_rate: float
    """Peak learning rate per 256 samples of global batch (CLIPA: 8e-6 to pretrain with AdamW)."""
    warmup_steps: int | None = None
    """Steps of linear warmup; or give warmup_share instead."""
    warmup_share: float | None = None
    """Linear warmup as a share of the stage's steps."""
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    """How the rate goes on after the warmup."""
    locked: TowerName | None = None
    """Tower that stays as it is (LiT, arXiv 2111.07991): no gradients, no optimizer state, no
    activations kept. Its projection is trained; the other tower too."""
    fixed_positions: bool = False
    """The image tower's table of positions stays as it is in this stage: clipa_torch pretrains with
    fixed sin-cos ones, whose resized table its tuning learns (positions: learned_from_sincos)."""
    layer_decay: float | None = None
    """For tuning: the rate of each layer over that of the layer above it (BEiT, FT-CLIP: 0.6 to
    0.75); null gives all layers the same."""
    tokens: TokenOptions
    """How many image and text tokens, and which."""
    tier: str | None = None
    """Image tier of this stage, where it is not data.tier."""
    crop: CropOptions = field(default_factory=CropOptions)
    """Random resized crop."""
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    """Augmentation on the device."""

    @property
    def length(self) -> tuple[str, float] | None:
        """(steps, samples or epochs, how many); None unless exactly one is given."""
        named = [(name, getattr(self, name)) for name in ("steps", "samples", "epochs")]
        given = [(name, value) for name, value in named if value is not None]
        return given[0] if len(given) == 1 else None

    def check(self, option: str) -> None:
        """ValueError for the first number that cannot be; `option` is this stage's full name."""
        if self.length is None:
            raise ValueError(f"{option}.steps, samples, epochs: give exactly one of them")
        names = ("global_batch_samples", "micro_batch_samples", "base_learning_rate")
        numbers = {name: getattr(self, name) for name in names}
        numbers[self.length[0]] = self.length[1]
        check_positive({f"{option}.{name}": value for name, value in numbers.items()})
        check_at_most({f"{option}.{self.length[0]}": self.length[1]}, _MOST_SAMPLES)
        check_at_most({f"{option}.global_batch_samples": self.global_batch_samples}, _MOST_BATCH)
        sides = {"image_px": self.tokens.image_px, "text_tokens": self.tokens.text_tokens}
        check_at_most({f"{option}.tokens.{name}": n for name, n in sides.items()}, _MOST_TOKENS)
        check_between({f"{option}.warmup_steps": self.warmup_steps}, 0, math.inf)
        self.schedule.check(option, self.warmup_share)
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(
                f"{option}.layer_decay={self.layer_decay}: it must be above 0 and at most 1, or "
                "null for one rate"
            )
        if self.warmup_steps is not None and self.warmup_share is not None:
            raise ValueError(
                f"{option}.warmup_steps={self.warmup_steps}: drop it, or "
                f"warmup_share={self.warmup_share}"
            )
        for name, part in (("crop", self.crop), ("augment", self.augment)):
            if mistake := part.mistake():
                raise ValueError(f"{option}.{name}.{mistake}")
        if self.steps is not None:
            _check_warmup(option, self.schedule, self.warmup_steps or 0, self.steps)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of a run whose dataset is known, and with it the stage's length in steps."""

    name: str
    options: StageOptions
    first_sample: int  # position in the run's sample stream
    steps: int
    warmup_steps: int

    @property
    def samples(self) -> int:
        return self.steps * self.options.global_batch_samples

    def schedule(self, step: int) -> float:
        """Share of the peak learning rate at a step of the stage, from 0."""
        return learning_rate(
            step=step,
            steps=self.steps,
            warmup_steps=self.warmup_steps,
            peak=1.0,
            schedule=self.options.schedule,
        )

    def peak(self, base_learning_rate: float | None = None) -> float:
        """Peak learning rate of a base rate, by default the stage's own."""
        base = self.options.base_learning_rate if base_learning_rate is None else base_learning_rate
        return peak_learning_rate(base, self.options.global_batch_samples)


def plan_stages(stages: dict[str, StageOptions], dataset_samples: int) -> list[Stage]:
    """The stages on a dataset of so many samples. ValueError names the option to change."""
    planned: list[Stage] = []
    first = 0
    for name, options in stages.items():
        if options.global_batch_samples > dataset_samples:
            raise ValueError(
                f"stages.{name}.global_batch_samples={options.global_batch_samples}, the dataset "
                f"has {dataset_samples} samples, which would be their own negatives: choose "
                f"{dataset_samples} or less"
            )
        steps = _steps(options, dataset_samples)
        warmup = options.warmup_steps or 0
        if options.warmup_share is not None:
            warmup = round(exact(options.warmup_share) * steps)
        _check_warmup(f"stages.{name}", options.schedule, warmup, steps)
        planned.append(
            Stage(name=name, options=options, first_sample=first, steps=steps, warmup_steps=warmup)
        )
        first += planned[-1].samples
    return planned


def _check_warmup(option: str, schedule: ScheduleOptions, warmup: int, steps: int) -> None:
    if warmup > steps:
        raise ValueError(
            f"{option}.warmup_steps={warmup}: the stage has only {steps} steps; choose fewer, or "
            "give warmup_share"
        )
    # One step may be lost to rounding both shares.
    if schedule.kind == "wsd" and warmup + (decay := schedule.decay_steps(steps)) > steps + 1:
        raise ValueError(
            f"{option}.warmup_steps={warmup} and the {decay} steps of schedule.decay_share="
            f"{schedule.decay_share} are more than the stage's {steps}: lower one of them"
        )


def _steps(options: StageOptions, dataset_samples: int) -> int:
    if options.steps is not None:
        return options.steps
    samples: int | Fraction | None = options.samples
    if samples is None:
        assert options.epochs is not None
        samples = exact(options.epochs) * dataset_samples
    return int(-(-samples // options.global_batch_samples))
