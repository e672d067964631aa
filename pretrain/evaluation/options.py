"""What is evaluated, on which data, and how often."""

from dataclasses import dataclass, field
from pathlib import Path

from pretrain.base.checks import check_positive
from pretrain.evaluation.prompts import check_prompts


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions:
    """One zero-shot classification: a metadata column holds the class of each picture."""

    prompts: list[str] = field(default_factory=list)
    """Prompt templates with one {} for the class name, averaged (a prompt ensemble)."""
    label_ensemble: Path | None = None
    """Dataset directory whose first captions of a class are averaged as its classifier, instead
    of prompts: for classes whose bare names never occur in captions."""

    def __post_init__(self) -> None:
        if bool(self.prompts) == (self.label_ensemble is not None):
            raise ValueError(
                f"zero-shot with prompts={self.prompts} and label_ensemble={self.label_ensemble}: "
                "give exactly one of them"
            )
        if self.prompts:
            check_prompts("zero-shot prompt", self.prompts)


@dataclass(frozen=True, kw_only=True)
class AbilitiesOptions:
    """Zero-shot choices on pictures that are drawn here: docs/abilities.md."""

    seed: int = 0
    """Seed of everything that is drawn."""
    pictures: int = 240
    """Pictures an ability; a multiple of 40 asks for every answer evenly often."""
    batch_samples: int = 240
    """Pictures per forward on each rank."""

    def __post_init__(self) -> None:
        names = ("pictures", "batch_samples")
        check_positive({f"abilities.{name}": getattr(self, name) for name in names})
        if self.seed < 0:
            raise ValueError(f"abilities.seed={self.seed}: it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """Evaluation sets and tasks."""

    sets: dict[str, Path] = field(default_factory=dict)
    """Dataset directories to evaluate on, by the name they get in the results."""
    zero_shot: dict[str, ZeroShotOptions] = field(default_factory=dict)
    """Zero-shot tasks, by the metadata column that holds the class."""
    captions: list[str] | None = None
    """Names of the captions that count as a picture's own, where it has them: several captions a
    picture, each a query and an answer, as COCO and Flickr30k are judged. Null: the first alone."""
    tier: str | None = None
    """Image tier of all sets; by default each set's smallest tier that is no smaller than the
    evaluated picture size, whatever tier was trained on, and its largest where none is."""
    abilities: AbilitiesOptions | bool = False
    """Judge counting, digits, words, position, binding, size, rotation and texture at the end of
    each stage, on pictures that are drawn for it; true, or a mapping of its options."""
    every_steps: int | None = None
    """Steps between evaluations during a stage; one is always made at its end."""
    batch_samples: int = 256
    """Samples per forward on each rank."""
    gallery_images: int = 24
    """Pictures of the first set shown with their nearest captions in the report, and half as many
    captions with their nearest pictures."""

    def __post_init__(self) -> None:
        names = ("every_steps", "batch_samples", "gallery_images")
        check_positive({f"evaluation.{name}": getattr(self, name) for name in names})
        if taken := self.sets.keys() & {"classification", "probe", "abilities"}:
            raise ValueError(
                f"evaluation.sets.{min(taken)}: the results have another task's figures under this "
                "name; give the set another one"
            )
        if self.captions is not None and not self.captions:
            raise ValueError("evaluation.captions=[]: name at least one caption, or give null")
