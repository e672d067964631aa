"""What all parts of a run share, so that none of them needs the loop."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.data.dataset import Dataset
from pretrain.distributed import Runtime
from pretrain.evaluation.evaluator import Evaluator
from pretrain.recipe import Recipe
from pretrain.run.metrics import RunLog
from pretrain.run_folder import CHECKPOINTS
from pretrain.stages import Stage


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every stage of a run shares."""

    recipe: Recipe
    stages: list[Stage]
    runtime: Runtime
    precision: Literal["bf16", "fp32"]
    datasets: dict[str, Dataset]  # by image tier
    evaluator: Evaluator
    log: RunLog

    @property
    def checkpoints(self) -> Path:
        return self.recipe.run_dir / CHECKPOINTS

    @property
    def dataset(self) -> Dataset:
        """The dataset, where its pictures do not matter."""
        return self.datasets[self.recipe.data.tier]

    def pictures(self, stage: Stage) -> Dataset:
        """The dataset with the pictures that a stage trains on."""
        return self.datasets[stage.options.tier or self.recipe.data.tier]
