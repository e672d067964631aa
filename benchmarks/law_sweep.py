"""What a sweep over model sizes, token lengths and reducers is: its cells, in their order."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.dataset.manifest import read_manifest, tier_for
from pretrain.dataset.reader import Dataset
from pretrain.evaluation.evaluator import Evaluator
from pretrain.plan.flops import stage_flops
from pretrain.recipe.parsing import parse
from pretrain.recipe.recipe import Recipe, check_ranks
from pretrain.recipe.stages import plan_stages
from pretrain.tokens.image_reduction import ImageReduction
from pretrain.tokens.text_reduction import TextReduction

RESIZE, TRUNCATE = "resize", "truncate"
_FORWARDS = 3  # what training costs: a forward, and twice as much backward


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training: a model size, the lengths of its reduced stage, how they came about, a seed."""

    size: str
    image_tokens: int
    text_tokens: int
    image_reduction: str = RESIZE
    text_reduction: str = TRUNCATE
    seed: int = 0

    @property
    def name(self) -> str:
        """Its name in files and run folders."""
        image = "" if self.image_reduction == RESIZE else self.image_reduction
        text = "" if self.text_reduction == TRUNCATE else self.text_reduction
        return f"{self.size}_i{self.image_tokens}{image}_t{self.text_tokens}{text}_s{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Middle:
    """The cell that every axis goes through."""

    size: str
    """One of sizes."""
    image_tokens: int
    """One of image_tokens; what a sweep over text tokens has."""
    text_tokens: int
    """One of text_tokens; what a sweep over image tokens has."""


@dataclass(frozen=True, kw_only=True)
class Reducers:
    """Ways of reduction that stand beside resize and truncation, at the middle's size."""

    image_tokens: int
    """Image tokens that each mask keeps of the full stage's; one of image_tokens."""
    image: list[ImageReduction] = field(default_factory=list)
    """Masks: random, grid, block."""
    text_tokens: int
    """Text tokens that each way keeps; one of text_tokens."""
    text: list[TextReduction] = field(default_factory=list)
    """Ways beside truncation: random, block, syntax."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: every size at every length, one axis varied at a time, and reducers at one size."""

    recipe: Path
    """Recipe of two stages, the reduced one and the full one, in that order."""
    runs: Path
    """Where the run folders go."""
    common: dict[str, Any] = field(default_factory=dict)
    """Options of the recipe that every cell has: how long the stages are, how often is saved."""
    sizes: dict[str, dict[str, Any]]
    """Model sizes by name, the smallest first, each as options of the recipe."""
    image_tokens: list[int]
    """Image tokens of the reduced stage, all squares; the drop is counted from the longest."""
    text_tokens: list[int]
    """Text tokens of the reduced stage, special ones included; likewise."""
    middle: Middle
    """The cell that every axis goes through."""
    reducers: Reducers | None = None
    """Ways of reduction beside resize and truncation."""
    noise_seeds: list[int] = field(default_factory=list)
    """Further seeds of the middle cell: what a difference may be by chance."""
    drawn_set: str
    """Evaluation set whose R@1 the picture shows; the rows hold all sets."""

    def __post_init__(self) -> None:
        _check_in("middle.size", self.middle.size, list(self.sizes), "sizes")
        lengths = {"image_tokens": self.image_tokens, "text_tokens": self.text_tokens}
        for part, options in (("middle", self.middle), ("reducers", self.reducers)):
            for name, values in lengths.items():
                if options is not None:
                    _check_in(f"{part}.{name}", getattr(options, name), values, name)
        for tokens in self.image_tokens:
            if tokens < 1 or math.isqrt(tokens) ** 2 != tokens:
                raise ValueError(
                    f"image_tokens: {tokens} is no square grid of patches: choose a square number"
                )

    def identity(self) -> dict[str, Any]:
        """What makes it this sweep, as plain data; where its run folders lie does not."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        del plain["runs"]
        return plain


def _check_in(option: str, value: Any, known: list[Any], where: str) -> None:
    if value not in known:
        raise ValueError(f"{option}={value} is none of {where}={known}: choose one of them")


def cells(sweep: Sweep) -> list[Cell]:
    """All cells, from the middle of the grid outwards, so that a part of them is a picture.

    Round by round: the middle; each axis's longest length, which drops are counted from; its
    shortest; what lies between. A size beside the middle one comes a round later. The noise
    follows the shortest lengths, the reducers come last.
    """
    ranked = sorted(_ranked(sweep), key=lambda pair: pair[0])
    return list(dict.fromkeys(cell for _, cell in ranked))


def _ranked(sweep: Sweep) -> Iterator[tuple[float, Cell]]:
    names, middle = list(sweep.sizes), sweep.middle
    centre = names.index(middle.size)
    for size in sorted(names, key=lambda name: abs(names.index(name) - centre)):
        away = abs(names.index(size) - centre)
        for tokens in sweep.image_tokens:
            cell = Cell(size=size, image_tokens=tokens, text_tokens=middle.text_tokens)
            yield away + _axis_rank(tokens, middle.image_tokens, sweep.image_tokens), cell
        for tokens in sweep.text_tokens:
            cell = Cell(size=size, image_tokens=middle.image_tokens, text_tokens=tokens)
            yield away + _axis_rank(tokens, middle.text_tokens, sweep.text_tokens), cell
    at = Cell(size=middle.size, image_tokens=middle.image_tokens, text_tokens=middle.text_tokens)
    for seed in sweep.noise_seeds:
        yield 2.5, replace(at, seed=seed)
    if (of := sweep.reducers) is not None:
        last = len(names) + 3
        for mask in of.image:
            yield last, replace(at, image_tokens=of.image_tokens, image_reduction=mask)
        for way in of.text:
            yield last, replace(at, text_tokens=of.text_tokens, text_reduction=way)


def _axis_rank(tokens: int, middle: int, lengths: list[int]) -> int:
    order = [middle, max(lengths), min(lengths)]
    return order.index(tokens) if tokens in order else len(order)


@dataclass(frozen=True, kw_only=True)
class Training:
    """A cell as the trainer gets it."""

    cell: Cell
    arguments: list[str]  # of python -m pretrain.train, before its run folder
    recipe: Recipe
    samples: dict[str, int]  # by stage
    flops: float


def resolve(sweep: Sweep, ranks: int) -> list[Training]:
    """All cells' trainings. ValueError or OSError on the first that cannot be, or on its data."""
    base, _ = parse(_arguments(sweep, _dotted(sweep.common)))
    if len(base.stages) != 2:
        raise ValueError(
            f"recipe={sweep.recipe} has the stages {list(base.stages)}: a sweep needs two, the "
            "reduced one and the full one"
        )
    _check_in("drawn_set", sweep.drawn_set, list(base.evaluation.sets), "evaluation.sets")
    sized = {size: parse(_arguments(sweep, _sized(sweep, size)))[0] for size in sweep.sizes}
    trainings = [_training(sweep, sized[cell.size], cell) for cell in cells(sweep)]
    for one in trainings:
        check_ranks(one.recipe, ranks)
    _check_data(trainings)
    return trainings


def _arguments(sweep: Sweep, options: list[str]) -> list[str]:
    """Of `python -m pretrain.train`; each training's own run folder is given after them."""
    return ["--config", str(sweep.recipe), f"--run_dir={sweep.runs}", *options]


def _sized(sweep: Sweep, size: str) -> list[str]:
    return _dotted(sweep.common) + _dotted(sweep.sizes[size])


def _training(sweep: Sweep, sized: Recipe, cell: Cell) -> Training:
    """sized: the recipe at the cell's size. ValueError if its lengths cannot be."""
    first, last = sized.stages
    manifest = read_manifest(sized.data.train)
    vocab_size = manifest.tokenizer.vocab_size
    try:
        tokens = _token_options(sized, cell, last)
        reduced = {"tokens": tokens, "tier": tier_for(manifest, tokens["image_px"])}
        own = [*_dotted({"stages": {first: reduced}}), f"--seed={cell.seed}"]
        arguments = _arguments(sweep, [*_sized(sweep, cell.size), *own])
        recipe, _ = parse(arguments)
        stages = plan_stages(recipe.stages, manifest.samples)
    except ValueError as error:
        raise ValueError(f"cell {cell.name}: {error}") from error
    return Training(
        cell=cell,
        arguments=arguments,
        recipe=recipe,
        samples={stage.name: stage.samples for stage in stages},
        flops=sum(
            _FORWARDS * stage_flops(recipe, s.options, vocab_size).forward * s.samples
            for s in stages
        ),
    )


def _token_options(recipe: Recipe, cell: Cell, last: str) -> dict[str, Any]:
    """The reduced stage's tokens. Resizing changes the picture; a mask has the full stage's."""
    full, patch_px = recipe.stages[last].tokens, recipe.model.image.patch_px
    asked_px = math.isqrt(cell.image_tokens) * patch_px
    if asked_px > full.image_px or cell.text_tokens > full.text_tokens:
        raise ValueError(
            f"longer than the full stage ({full.image_px // patch_px} x "
            f"{full.image_px // patch_px} image tokens, {full.text_tokens} text tokens): choose "
            f"shorter image_tokens or text_tokens, or a longer stages.{last}.tokens"
        )
    resized = cell.image_reduction == RESIZE
    return {
        "image_px": asked_px if resized else full.image_px,
        "image_reduction": "none" if resized else cell.image_reduction,
        "image_keep_tokens": None if resized else cell.image_tokens,
        "text_tokens": cell.text_tokens,
        "text_reduction": cell.text_reduction,
    }


def _check_data(trainings: list[Training]) -> None:
    """ValueError or OSError where the data, an evaluation set or one of its tasks cannot be."""
    recipe = trainings[0].recipe
    stages = [stage for one in trainings for stage in one.recipe.stages.values()]
    for tier in {recipe.data.tier, *(stage.tier for stage in stages if stage.tier is not None)}:
        dataset = Dataset(recipe.data.train, tier)
    Evaluator(
        recipe.evaluation,
        image_sizes={stage.tokens.image_px for stage in stages},
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
    )


def _dotted(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested options as the command line's dotted ones."""
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, dict) and value:
            words += _dotted(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            words.append(f"--{prefix}{name}={text}")
    return words
