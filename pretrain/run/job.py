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
    dataset: Dataset  # of data.tier
    evaluator: Evaluator
    log: RunLog

    @property
    def checkpoints(self) -> Path:
        return self.recipe.run_dir / CHECKPOINTS

    def tier(self, stage: Stage) -> tuple[str, str]:
        """(image tier that a stage reads, the option that says so)."""
        if stage.options.tier is not None:
            return stage.options.tier, f"stages.{stage.name}.tier"
        return self.recipe.data.tier, "data.tier"
