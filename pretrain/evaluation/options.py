"""What is evaluated, on which data, and how often. No torch: a mistake costs no import of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pretrain.base.checks import check_positive
from pretrain.batches.options import Resize
from pretrain.engine.options import WeightsKind
from pretrain.evaluation.prompts import check_prompts

Axis = Literal["image_px", "keep_tokens", "text_tokens"]
LongReading = Literal["cut", "first_sentence", "pieces"]
PLOT_FORMATS = (".svg", ".png", ".pdf")


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
class ClassificationOptions:
    """A labelled set of pictures, and the texts that stand for its classes."""

    images: Path
    """Folder with one sub-folder a class, WebDataset tar (or a folder of tars) with a .cls beside
    each picture, or folder that `datasets.Dataset.save_to_disk` wrote."""
    classes: Path | None = None
    """Class names, or `imagenet` for the 1,000 that come with this package. Text: one name a line,
    matched by name where every label is one, else in the order of the sorted folders (of the
    numbers in .cls). YAML: a list, the same, or a mapping from label to name. By default the
    labels themselves, `_` as a space."""
    templates: Path | None = None
    """Prompt templates, one a line or a YAML list, each with one {} (or {c}) for the class name, or
    `openai_imagenet` for the 80 that come with this package. By default `a photo of a {}.`."""
    resize: Resize = "shortest_side_crop"
    """shortest_side_crop: centre square, bicubic. squash: the whole picture stretched to a square,
    bilinear, as CLIPA v2 evaluates."""
    batch_samples: int = 256
    """Samples per forward on each rank."""

    def __post_init__(self) -> None:
        check_positive({"classification.batch_samples": self.batch_samples})


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Two labelled sets: one to fit on frozen features, one to judge by."""

    train: Path
    """Labelled set to fit on, of any kind that classification.images takes."""
    test: Path
    """Labelled set to judge by; its labels are among those of the first."""
    resize: Resize = "shortest_side_crop"
    """As classification.resize."""
    inverse_penalty: float | None = None
    """C of scikit-learn's LogisticRegression (L2); null tries 0.1 to 100,000 by tens on a fifth of
    the training set, held out by class, and fits all of it by the best (the smallest of equals)."""
    neighbours: int = 20
    """Nearest training pictures that vote (DINO, arXiv 2104.14294: 20)."""
    temperature: float = 0.07
    """A neighbour's vote counts exp(cosine / temperature) (DINO: 0.07)."""
    batch_samples: int = 256
    """Pictures per forward on each rank."""

    def __post_init__(self) -> None:
        names = ("inverse_penalty", "neighbours", "temperature", "batch_samples")
        check_positive({f"probe.{name}": getattr(self, name) for name in names})


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
class LongTextsOptions:
    """Retrieval by texts that are longer than the context, read in several ways."""

    sets: dict[str, Path]
    """Dataset directories with long captions, by the name they get in the results."""
    caption: str | None = None
    """Name of the caption that is the text; by default each set's first."""
    readings: list[LongReading] = field(default_factory=lambda: [*get_args(LongReading)])
    """How a text is read: cut at the context; its first_sentence alone; or whole, in pieces that
    end with a sentence where one ends in the context, as the mean of their embeddings."""
    batch_samples: int = 256
    """Pictures, or pieces of texts, per forward on each rank."""

    def __post_init__(self) -> None:
        check_positive({"long_texts.batch_samples": self.batch_samples})
        if not self.sets:
            raise ValueError("long_texts.sets={}: give --long_texts.sets.NAME DIR")
        if not self.readings:
            raise ValueError("long_texts.readings=[]: name at least one, or leave it out")


@dataclass(frozen=True, kw_only=True)
class DataCompOptions:
    """DataComp's 38 evaluation sets, as many as there are."""

    folder: Path
    """Folder that holds their folders, wds_NAME_test or wds_NAME, as DataComp's
    download_evalsets.py and clip_benchmark_export_wds write them."""
    results: Path | None = None
    """JSON lines to write, a line a set, as DataComp's eval_results.jsonl."""
    batch_samples: int = 256
    """Samples per forward on each rank."""

    def __post_init__(self) -> None:
        check_positive({"datacomp.batch_samples": self.batch_samples})


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What a model can be asked: each task by its own field, None or empty where it is not."""

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
    classification: ClassificationOptions | None = None
    """Zero-shot classification of a labelled set."""
    probe: ProbeOptions | None = None
    """Linear probe and k-nearest neighbours on frozen features of two labelled sets."""
    abilities: AbilitiesOptions | bool = False
    """Judge counting, digits, words, position, binding, size, rotation and texture, on pictures
    that are drawn for it; true, or a mapping of its options."""
    long_texts: LongTextsOptions | None = None
    """Retrieval by texts longer than the context: cut, their first sentence, in pieces."""
    datacomp: DataCompOptions | None = None
    """The sets of DataComp's evaluation that a folder holds, and the mean over them."""

    def __post_init__(self) -> None:
        if self.captions is not None and not self.captions:
            raise ValueError("evaluation.captions=[]: name at least one caption, or give null")

    @property
    def asks(self) -> bool:
        """Whether there is anything to evaluate."""
        others = (self.classification, self.probe, self.long_texts)
        return bool(self.sets or self.abilities) or any(one is not None for one in others)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(TaskOptions):
    """Evaluation sets and tasks: `sets` and `zero_shot` during a stage, all at each stage's end."""

    every_steps: int | None = None
    """Steps between evaluations during a stage; one is always made at its end."""
    batch_samples: int = 256
    """Samples per forward on each rank."""
    gallery_images: int = 24
    """Pictures of the first set shown with their nearest captions in the report, and half as many
    captions with their nearest pictures."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("every_steps", "batch_samples", "gallery_images")
        check_positive({f"evaluation.{name}": getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Lengths to evaluate at, one axis at a time, the others as the model's own."""

    image_px: list[int] | None = None
    """Picture sizes, all image tokens kept."""
    keep_tokens: list[int] | None = None
    """Image tokens kept at random of the model's own picture size, the same ones at each call."""
    text_tokens: list[int] | None = None
    """Context lengths; longer texts are cut."""
    plot: Path | None = None
    """Picture of the result: .svg, .png or .pdf."""

    def __post_init__(self) -> None:
        for name in get_args(Axis):
            for value in getattr(self, name) or []:
                check_positive({f"tokens.{name}": value})
        if not any(getattr(self, name) for name in get_args(Axis)):
            raise ValueError(
                "tokens: there is nothing to compare: give --tokens.image_px, --tokens.keep_tokens "
                "or --tokens.text_tokens, each a list such as [32,64]"
            )
        if self.plot is not None and self.plot.suffix not in PLOT_FORMATS:
            raise ValueError(
                f"tokens.plot={self.plot}: name a file ending in {', '.join(PLOT_FORMATS)}"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TaskOptions):
    """What is evaluated, on what. Without `sets` and other tasks it is a run's own evaluation."""

    model: Path | None = None
    """Folder of an exported model (native or transformers), or of a run."""
    run_dir: Path | None = None
    """Run folder of a training run: the same as --model."""
    watch: Path | None = None
    """Run folder whose checkpoints to judge, each once, until the run has ended."""
    poll_s: float = 30.0
    """With --watch, seconds between two looks for a new checkpoint."""
    stage: str | None = None
    """Stage whose weights to evaluate; by default the recipe's last."""
    weights: WeightsKind = "plain"
    """plain, or ema: their moving average, of a run with engine.ema; its figures are of the sets
    SET.ema."""
    image_px: int | None = None
    """Picture size; by default the stage's own."""
    text_tokens: int | None = None
    """Context length; by default the stage's own."""
    tokens: SweepOptions | None = None
    """Lengths to compare the same weights at, with a plot."""
    out: Path | None = None
    """JSON file to write the figures to; by default those of a run join its evaluation.json, which
    the report reads. With --watch a file of JSON lines to append to, by default watched.jsonl in
    the run folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive({"poll_s": self.poll_s})
        folders = {"model": self.model, "run_dir": self.run_dir, "watch": self.watch}
        if sum(folder is not None for folder in folders.values()) != 1:
            asked = ", ".join(f"--{name} {folder}" for name, folder in folders.items())
            raise ValueError(
                f"{asked}: give one of them, the folder of an exported model or of a run, or of a "
                "run to watch"
            )
        if (
            self.datacomp is not None
            and self.datacomp.results is not None
            and (self.tokens is not None or self.watch is not None)
        ):
            raise ValueError(
                f"datacomp.results={self.datacomp.results} holds one model at one length: leave it "
                "out with --tokens and --watch, whose --out has the same figures"
            )
        is_whole = self.stage is None and self.tokens is None and self.weights == "plain"
        if self.watch is not None and not is_whole:
            raise ValueError(
                "--watch judges each checkpoint's plain weights at its own stage's lengths, or at "
                "--image_px and --text_tokens: leave --stage, --tokens and --weights out"
            )
