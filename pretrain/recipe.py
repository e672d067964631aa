"""The recipe: every option of a training job, composed; YAML files under dotted overrides."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser

from pretrain.data.augment import AugmentOptions, Normalisation
from pretrain.data.collate import FailureOptions
from pretrain.data.images import CropOptions
from pretrain.data.loader import LoaderOptions
from pretrain.engine.ds_config import EngineOptions
from pretrain.engine.optimizers import OptimizerOptions
from pretrain.engine.schedule import peak_learning_rate
from pretrain.evaluation.options import EvaluationOptions
from pretrain.losses.contrastive import LossOptions
from pretrain.models.clip import ModelOptions
from pretrain.tokens.context import special_count
from pretrain.tokens.image_reduction import kept_count
from pretrain.tokens.options import TokenOptions


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What is trained on."""

    train: Path
    """Dataset directory made by `python -m data_prep build`."""
    tier: str = "full"
    """Image tier to read; a stage may name another."""
    caption_weights: dict[str, float] = field(default_factory=dict)
    """How often each named caption of a picture is drawn; empty draws all alike."""
    normalisation: Normalisation = "imagenet"
    """Pixel mean and std: imagenet (CLIPA v2) or openai (clipa_torch v1)."""
    loader: LoaderOptions = field(default_factory=LoaderOptions)
    """Background building of batches."""
    failures: FailureOptions = field(default_factory=FailureOptions)
    """When unusable samples stop the run."""


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """One stage: few tokens for long, or all tokens for short."""

    steps: int
    """Optimizer steps of this stage."""
    global_batch_samples: int
    """Samples of one step over all ranks; all of them are each other's negatives."""
    micro_batch_samples: int | None = None
    """Samples of a rank in one forward; less than its share costs a second forward (GradCache)."""
    base_learning_rate: float
    """Peak learning rate per 256 samples of global batch (CLIPA: 8e-6 to pretrain with AdamW)."""
    warmup_steps: int = 0
    """Steps of linear warmup."""
    tokens: TokenOptions
    """How many image and text tokens, and which."""
    tier: str | None = None
    """Image tier of this stage, where it is not data.tier."""
    crop: CropOptions = field(default_factory=CropOptions)
    """Random resized crop."""
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    """Augmentation on the device."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.global_batch_samples < 1 or self.base_learning_rate <= 0:
            raise ValueError(
                f"stage with steps={self.steps}, global_batch_samples="
                f"{self.global_batch_samples}, base_learning_rate={self.base_learning_rate}: "
                "all must be positive"
            )

    @property
    def samples(self) -> int:
        return self.steps * self.global_batch_samples

    @property
    def peak_learning_rate(self) -> float:
        return peak_learning_rate(self.base_learning_rate, self.global_batch_samples)


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What is written for a resume, and when."""

    every_steps: int = 1000
    """Steps between checkpoints; one is always written at the end of a stage."""
    keep: int = 2
    """Newest checkpoints kept; older ones are removed."""


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What is written for people."""

    every_steps: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = True
    """Mirror metrics.jsonl into TensorBoard events."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training job from random weights to the last stage's end."""

    run_dir: Path
    """Run folder: everything the run writes; the same command on it resumes."""
    data: DataOptions
    """What is trained on."""
    stages: dict[str, StageOptions]
    """Stages by name, run in order as one job."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """The two towers."""
    loss: LossOptions = field(default_factory=LossOptions)
    """The contrastive loss."""
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
    seed: int = 0
    """Seeds weights, sample order and every draw."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("the recipe has no stages: give at least one under `stages`")
        for name, stage in self.stages.items():
            tokens, image = stage.tokens, self.model.image
            if tokens.image_px % image.patch_px:
                raise ValueError(
                    f"stages.{name}.tokens.image_px={tokens.image_px} is not divisible by "
                    f"model.image.patch_px={image.patch_px}: choose a multiple"
                )
            kept_count(
                tokens.image_reduction, tokens.image_px // image.patch_px, tokens.image_keep_tokens
            )
            if tokens.text_tokens <= special_count(self.model.text.specials):
                raise ValueError(
                    f"stages.{name}.tokens.text_tokens={tokens.text_tokens} leaves no room beside "
                    f"the special tokens ({self.model.text.specials}): choose a larger one"
                )

    @property
    def samples(self) -> int:
        return sum(stage.samples for stage in self.stages.values())

    def temperature_learning_rate(self, stage: StageOptions) -> float:
        """Peak learning rate of the log scale in a stage."""
        base = self.temperature_base_learning_rate or stage.base_learning_rate
        return peak_learning_rate(base, stage.global_batch_samples)


def image_tokens(recipe: Recipe, stage: StageOptions) -> tuple[int, int]:
    """(kept, full) patch tokens of a stage's pictures, without CLS; full is of its image_px."""
    grid = stage.tokens.image_px // recipe.model.image.patch_px
    kept = kept_count(stage.tokens.image_reduction, grid, stage.tokens.image_keep_tokens)
    return kept, grid * grid


def check_ranks(recipe: Recipe, world_size: int) -> None:
    """ValueError unless every stage's global batch divides evenly over the ranks."""
    for name, stage in recipe.stages.items():
        if stage.global_batch_samples % world_size:
            below = stage.global_batch_samples // world_size * world_size
            above = math.ceil(stage.global_batch_samples / world_size) * world_size
            raise ValueError(
                f"stages.{name}.global_batch_samples={stage.global_batch_samples} is not divisible "
                f"by the {world_size} ranks: choose {below or above} or {above}"
            )


def parser() -> ArgumentParser:
    """The command line: `--config FILE` (later files over earlier) and dotted overrides."""
    result = ArgumentParser(
        description="CLIPA pretraining on DeepSpeed. The same command resumes a stopped run.",
        default_config_files=[],
    )
    result.add_argument("--config", action="config", help="Recipe YAML; may be given again.")
    result.add_class_arguments(Recipe, as_group=False)
    return result


def parse(arguments: list[str] | None = None) -> tuple[Recipe, str]:
    """(recipe, resolved YAML) of a command line. Errors name the option and exit with code 2."""
    options = parser()
    parsed = options.parse_args(arguments)
    resolved = options.dump(parsed, skip_none=False)
    try:
        values = options.instantiate(parsed)
        fields = {name: getattr(values, name) for name in Recipe.__dataclass_fields__}
        return Recipe(**fields), resolved
    except ValueError as error:
        options.error(str(error))
        raise


def read_recipe(run: Path) -> Recipe:
    """The resolved recipe of a run folder, wherever that folder lies now."""
    path = run / "recipe.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"no recipe.yaml in {run}: not a run folder; check --run")
    recipe, _ = parse(["--config", str(path), "--run_dir", str(run)])
    return recipe


def fingerprint(recipe: Recipe) -> str:
    """sha256 over every option that decides the numbers; a resume with another one is refused."""
    data = recipe.data
    decisive = (
        recipe.seed,
        recipe.model,
        recipe.stages,
        recipe.loss,
        recipe.optimizer,
        recipe.temperature_base_learning_rate,
        recipe.engine.precision,
        (data.tier, data.caption_weights, data.normalisation),
    )
    return hashlib.sha256(repr(decisive).encode()).hexdigest()
