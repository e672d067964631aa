"""The recipe: every option of a training job, composed; YAML files under dotted overrides."""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from pretrain.base.checks import check_local
from pretrain.batches.options import BalanceOptions, FailureOptions, LoaderOptions, Normalisation
from pretrain.batches.order import WINDOW_SAMPLES
from pretrain.dataset.shards import ShardOptions
from pretrain.engine.options import EngineOptions, OptimizerOptions
from pretrain.evaluation.options import EvaluationOptions
from pretrain.losses.options import LossOptions
from pretrain.models.options import KEPT_TEXT_POSITIONS, ModelOptions, StartOptions
from pretrain.recipe.run_options import CheckpointOptions, LogOptions, WatchdogOptions
from pretrain.recipe.stages import StageOptions
from pretrain.tokens.context import special_count
from pretrain.tokens.image_reduction import kept_count


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on."""

    train: Path
    """Dataset directory made by `python -m data_prep build`."""
    tier: str = "full"
    """Image tier to read; a stage may name another."""
    caption_weights: dict[str, float] = field(default_factory=dict)
    """How often each named caption of a picture is drawn; empty draws all of the manifest alike.
    Names of captions/NAME in the dataset count too: `python -m data_prep recaption` makes one."""
    weights: str | None = None
    """Name of weights/NAME.npy in the dataset: how often each sample is shown an epoch; null shows
    each once. `python -m data_prep weigh` makes one."""
    balance: BalanceOptions = field(default_factory=BalanceOptions)
    """Choice of each batch's samples by their concepts; off by default."""
    max_repeated_share: float = 0.5
    """Share of a global batch that may be repeats of its own samples, which are then negatives of
    themselves: over the border of an epoch, or by weights. The first batch of a stage and those
    over its first epochs' borders are looked at; no batch may be larger than the dataset."""
    shuffle_window_samples: int = WINDOW_SAMPLES
    """Samples shuffled into each other: at least 16 of the largest global batch."""
    normalisation: Normalisation = "imagenet"
    """Pixel mean and std: imagenet (CLIPA v2), openai (clipa_torch v1), or inception (SigLIP: -1
    to 1)."""
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    """Background building of batches."""
    shards: ShardOptions = field(default_factory=ShardOptions)
    """Shards that lie far away, and copies of them on the node's own disk."""
    failures: FailureOptions = field(default_factory=FailureOptions)
    """When unusable samples stop the run."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_repeated_share <= 1:
            raise ValueError(
                f"data.max_repeated_share={self.max_repeated_share}: it must be from 0 to 1"
            )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training job from random or given weights to the last stage's end."""

    run_dir: Path
    """Run folder: everything the run writes; the same command on it resumes."""
    data: DataOptions
    """What is trained on."""
    stages: dict[str, StageOptions]
    """Stages by name, run in order as one job."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The two towers."""
    start: StartOptions = field(default_factory=StartOptions)
    """Weights that the first stage starts from."""
    loss: LossOptions = field(default_factory=LossOptions)
    """The loss over the global batch: softmax or sigmoid."""
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    """The optimizer, fresh in each stage."""
    temperature_base_learning_rate: float | None = None
    """Peak learning rate of the log scale per 256 samples; by default the stage's own."""
    engine: EngineOptions = field(default_factory=EngineOptions)
    """DeepSpeed, precision, activation checkpointing."""
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    """Checkpoints."""
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    """Evaluation during and after training."""
    log: LogOptions = field(default_factory=LogOptions)
    """Metrics."""
    watchdog: WatchdogOptions = field(default_factory=WatchdogOptions)
    """The end of a run that stands still."""
    seed: int = 0
    """Seeds weights, sample order and every draw."""

    def __post_init__(self) -> None:
        check_local({"--run_dir": self.run_dir})
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed={self.seed}: it must be from 0 to 2^63 - 1")
        if not self.stages:
            raise ValueError("the recipe has no stages: give at least one under `stages`")
        rate = self.temperature_base_learning_rate
        if rate is not None and not rate >= 0:
            raise ValueError(
                f"temperature_base_learning_rate={rate}: 0 (freeze), a positive rate, or null"
            )
        window = self.data.shuffle_window_samples
        for name, stage in self.stages.items():
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):  # it names a file
                raise ValueError(
                    f"stages: the name {name!r} is not allowed: use letters, digits, _ and -"
                )
            stage.check(f"stages.{name}")
            if (batch := stage.global_batch_samples) * 16 > window:
                raise ValueError(
                    f"data.shuffle_window_samples={window} holds fewer than 16 batches of "
                    f"stages.{name}.global_batch_samples={batch}: choose {batch * 16} or more"
                )
            tokens, image = stage.tokens, self.model.image
            if tokens.image_px < 1 or tokens.image_px % image.patch_px:
                raise ValueError(
                    f"stages.{name}.tokens.image_px={tokens.image_px} is not a positive multiple "
                    f"of model.image.patch_px={image.patch_px}: choose a multiple"
                )
            if stage.fixed_positions and image.positions.startswith("sincos"):
                raise ValueError(
                    f"stages.{name}.fixed_positions=True with model.image.positions="
                    f"{image.positions}, which are always fixed: set it to false, or positions to "
                    "learned_from_sincos"
                )
            if stage.fixed_positions and stage.locked == "image":
                raise ValueError(
                    f"stages.{name}.fixed_positions=True with stages.{name}.locked=image, which "
                    "keeps the whole tower as it is: leave one of them out"
                )
            is_random = image.positions == "learned" and self.start == StartOptions()
            if stage.fixed_positions and is_random and name == next(iter(self.stages)):
                raise ValueError(
                    f"stages.{name}.fixed_positions=True with model.image.positions=learned: the "
                    "table would stay as random as it begins; set positions to learned_from_sincos"
                )
            try:
                image_tokens(self, stage)
            except ValueError as error:
                raise ValueError(f"stages.{name}.tokens: {error}") from error
            if tokens.text_tokens <= special_count(self.model.text.specials):
                raise ValueError(
                    f"stages.{name}.tokens.text_tokens={tokens.text_tokens} leaves no room beside "
                    f"the special tokens ({self.model.text.specials}): choose a larger one"
                )
        _check_text_positions(self)


def _check_text_positions(recipe: Recipe) -> None:
    """ValueError where a stage's table of text positions cannot be stretched to the next one's."""
    if recipe.model.text.positions_resize != "stretch_tail":
        return
    lengths = [(name, stage.tokens.text_tokens) for name, stage in recipe.stages.items()]
    for (before, short), (name, long) in pairwise(lengths):
        if short < min(long, KEPT_TEXT_POSITIONS + 2):
            raise ValueError(
                f"stages.{name}.tokens.text_tokens={long} after {short} of stages.{before}, with "
                "model.text.positions_resize=stretch_tail, which stretches what lies behind the "
                f"first {KEPT_TEXT_POSITIONS} places: give {before} {KEPT_TEXT_POSITIONS + 2} or "
                "more, or choose interpolate"
            )


def image_tokens(recipe: Recipe, stage: StageOptions) -> tuple[int, int]:
    """(kept, full) patch tokens of a stage's pictures, without CLS; full is of its image_px."""
    grid = stage.tokens.image_px // recipe.model.image.patch_px
    kept = kept_count(stage.tokens.image_reduction, grid, stage.tokens.image_keep_tokens)
    return kept, grid * grid


def check_ranks(recipe: Recipe, world_size: int) -> None:
    """ValueError unless every stage's batch divides evenly over the ranks and their passes."""
    for name, stage in recipe.stages.items():
        batch, micro = stage.global_batch_samples, stage.micro_batch_samples
        if batch % world_size:
            below, above = batch // world_size * world_size, -(-batch // world_size) * world_size
            raise ValueError(
                f"stages.{name}.global_batch_samples={batch} is not divisible "
                f"by the {world_size} ranks: choose {below or above} or {above}"
            )
        if micro is not None and (batch // world_size) % micro:
            raise ValueError(
                f"stages.{name}.micro_batch_samples={micro} does not divide the "
                f"{batch // world_size} samples of each of the {world_size} ranks: choose a divisor"
            )
