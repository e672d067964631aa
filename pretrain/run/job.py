"""What all parts of a run share, so that none of them needs the loop."""

from dataclasses import dataclass
from pathlib import Path

from pretrain.base.distributed import Runtime
from pretrain.base.run_files import CHECKPOINTS
from pretrain.batches.order import SampleOrder
from pretrain.dataset.captions import Recaption
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights
from pretrain.engine.options import TrainedIn
from pretrain.evaluation.evaluator import Evaluator
from pretrain.recipe.recipe import Recipe
from pretrain.recipe.stages import Stage
from pretrain.run.expectation import Expectation
from pretrain.run.metrics import RunLog
from pretrain.run.profile import Profile
from pretrain.run.saver import Saver


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every stage of a run shares."""

    recipe: Recipe
    stages: list[Stage]
    runtime: Runtime
    precision: TrainedIn
    datasets: dict[str, Dataset]  # by image tier
    order: SampleOrder  # the same in every stage
    weights: SampleWeights | None
    recaptions: tuple[Recaption, ...]
    evaluator: Evaluator
    log: RunLog
    saver: Saver
    expectation: Expectation
    profile: Profile

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
