"""The evaluator: every task that is asked for, one after another, as a list of figures."""

from collections.abc import Collection
from typing import Any

from pretrain.batches.options import Normalisation
from pretrain.evaluation.abilities.task import Abilities
from pretrain.evaluation.classification import Classification
from pretrain.evaluation.datacomp.task import DataComp
from pretrain.evaluation.features import KeptTokens, Subject
from pretrain.evaluation.gallery import gallery
from pretrain.evaluation.long_texts import LongTexts
from pretrain.evaluation.options import EvaluationOptions
from pretrain.evaluation.probe import Probe
from pretrain.evaluation.retrieval import Retrieval
from pretrain.evaluation.sets import Sets
from pretrain.evaluation.task import Figure, Task
from pretrain.evaluation.zero_shot import ZeroShot
from pretrain.models.clip import CLIP
from pretrain.tokens.tokenizer import Tokenizer

# All there are, in the order of the results: a new one is its own file, and a line here.
TASKS: tuple[type[Task], ...] = (
    Retrieval,
    ZeroShot,
    Classification,
    Probe,
    Abilities,
    LongTexts,
    DataComp,
)


class Evaluator:
    """Judges plain CLIP models by the tasks of some options; opens the data once."""

    def __init__(
        self,
        options: EvaluationOptions,
        *,
        image_sizes: Collection[int],
        tokenizer: Tokenizer,
        normalisation: Normalisation,
    ) -> None:
        """image_sizes: picture sizes in px that models will have; their tiers are opened now."""
        self.options = options
        self.tokenizer = tokenizer
        self.normalisation = normalisation
        self.sets = Sets(options, image_sizes, tokenizer)
        opened = [task.open(options, self.sets) for task in TASKS]
        self.tasks = [task for task in opened if task is not None]

    @property
    def rows(self) -> int:
        """Pictures of the named sets, each of which every evaluation embeds."""
        return sum(len(one.dataset) for one in self.sets.named.values())

    def judges(self, *, final: bool) -> bool:
        """Whether there is anything to evaluate: at a stage's end, or during one."""
        return any(final or task.is_quick for task in self.tasks)

    def evaluate(
        self, model: CLIP, kept: KeptTokens | None = None, *, final: bool = True
    ) -> list[Figure]:
        """The figures of all tasks, or of the quick ones alone. Collective."""
        subject = self._subject(model, kept)
        asked = [task for task in self.tasks if final or task.is_quick]
        return [figure for task in asked for figure in task.evaluate(subject)]

    def gallery(self, model: CLIP, seed: int) -> dict[str, Any] | None:
        """Examples of the first set for the report; None where there is no set. Collective."""
        if not self.sets.named:
            return None
        zero_shot = next((task for task in self.tasks if isinstance(task, ZeroShot)), None)
        return gallery(self.options, self.sets, zero_shot, self._subject(model), seed)

    def _subject(self, model: CLIP, kept: KeptTokens | None = None) -> Subject:
        return Subject(
            model=model.eval(),
            tokenizer=self.tokenizer,
            normalisation=self.normalisation,
            kept=kept,
        )
