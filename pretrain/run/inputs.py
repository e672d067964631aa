"""What a run reads, opened and checked before anything else: dataset, order, evaluation sets."""

from dataclasses import dataclass

import torch

from pretrain.base.distributed import Runtime
from pretrain.batches.balance import Balance
from pretrain.batches.collate import caption_shares, text_counts, text_edges
from pretrain.batches.order import SampleOrder
from pretrain.dataset.captions import Recaption, count_ids, open_recaptions
from pretrain.dataset.concepts import read_concepts
from pretrain.dataset.manifest import side_of, tier_for
from pretrain.dataset.reader import Dataset
from pretrain.dataset.sample_weights import SampleWeights, open_weights
from pretrain.evaluation.evaluator import Evaluator
from pretrain.models.build import build_model
from pretrain.models.options import StartOptions
from pretrain.models.starting import check_start, find_start
from pretrain.recipe.recipe import Recipe, check_ranks
from pretrain.recipe.stages import Stage, plan_stages
from pretrain.run.trackers import check_tracker


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a run reads, and the stages that follow from it."""

    datasets: dict[str, Dataset]  # by image tier
    weights: SampleWeights | None
    balance: Balance | None
    order: SampleOrder
    recaptions: tuple[Recaption, ...]  # those that are drawn
    evaluator: Evaluator
    stages: list[Stage]


def open_inputs(recipe: Recipe, runtime: Runtime) -> Inputs:
    """All that a recipe names, checked; ValueError or an OSError name the option."""
    check_ranks(recipe, runtime.world_size)
    check_tracker(recipe.log.tracker)
    datasets = _open_datasets(recipe, runtime)
    dataset = datasets[recipe.data.tier]
    dataset.check_ids()
    find_start(recipe.start)
    if runtime.is_main:
        _check_start(recipe, dataset)
    train, manifest = recipe.data.train, dataset.manifest
    recaptions = open_recaptions(train, manifest, recipe.data.caption_weights)
    if recipe.loss.classification_weight is not None:
        count_ids(train, manifest, recaptions)
    names = [*manifest.captions, *(one.name for one in recaptions)]
    caption_shares(names, recipe.data.caption_weights)
    asked = recipe.data.weights
    weights = None if asked is None else open_weights(train, asked, manifest)
    balance = _open_balance(recipe, dataset, weights)
    order = SampleOrder(
        samples=len(dataset),
        seed=recipe.seed,
        window_samples=recipe.data.shuffle_window_samples,
        weights=weights,
        balance=balance,
    )
    stages = plan_stages(recipe.stages, order.epoch_samples)
    evaluator = Evaluator(
        recipe.evaluation,
        image_sizes={stage.tokens.image_px for stage in recipe.stages.values()},
        tokenizer=dataset.tokenizer(),
        normalisation=recipe.data.normalisation,
    )
    return Inputs(
        datasets=datasets,
        weights=weights,
        balance=balance,
        order=order,
        recaptions=recaptions,
        evaluator=evaluator,
        stages=stages,
    )


def enlarged_pictures(recipe: Recipe, datasets: dict[str, Dataset]) -> list[str]:
    """A line for each stage that is shown larger pictures than its tier holds."""
    said = []
    for name, stage in recipe.stages.items():
        tier = stage.tier or recipe.data.tier
        manifest = datasets[tier].manifest
        held, image_px = manifest.tiers[tier].shortest_px, stage.tokens.image_px
        if held is None or image_px <= held:
            continue
        better = tier_for(manifest, image_px)
        remedy = f"build the dataset with a tier of {image_px} px or more (--tiers)"
        if side_of(manifest.tiers[better].shortest_px) >= image_px:
            remedy = f"set stages.{name}.tier={better}"
        said.append(
            f"warning: stages.{name}.tokens.image_px={image_px} enlarges the pictures of tier "
            f"{tier}, whose shorter side is {held} px at most: {remedy}"
        )
    return said


def _open_datasets(recipe: Recipe, runtime: Runtime) -> dict[str, Dataset]:
    """The dataset by each tier that a stage reads."""
    train, tier, shards = recipe.data.train, recipe.data.tier, recipe.data.shards
    looks = runtime.local_rank == 0  # for its node; what it finds stops all
    datasets = {tier: Dataset(train, tier, shards=shards, looks=looks)}
    for name, stage in recipe.stages.items():
        if stage.tier is not None and stage.tier not in datasets:
            option = f"stages.{name}.tier"
            datasets[stage.tier] = Dataset(train, stage.tier, option, shards, looks)
        option = f"stages.{name}.tokens.text_reduction"
        text_counts(datasets[tier], stage.tokens.text_reduction, option)
        text_edges(datasets[tier], stage.tokens, f"stages.{name}.tokens.syntax_unit")
    return datasets


def _open_balance(
    recipe: Recipe, dataset: Dataset, weights: SampleWeights | None
) -> Balance | None:
    options = recipe.data.balance
    if options.concepts is None:
        return None
    concepts, sha256 = read_concepts(
        recipe.data.train, options.concepts, dataset.manifest, "data.balance.concepts"
    )
    return Balance(concepts, candidates=options.candidates, weights=weights, sha256=sha256)


def _check_start(recipe: Recipe, dataset: Dataset) -> None:
    """ValueError where the first stage's model cannot start from the given weights."""
    if recipe.start == StartOptions():
        return
    meta = torch.device("meta")
    with meta:
        model = build_model(
            recipe.model,
            tokens=next(iter(recipe.stages.values())).tokens,
            vocabulary=dataset.vocabulary,
            device=meta,
        )
    sha256, normalisation = dataset.manifest.tokenizer.sha256, recipe.data.normalisation
    check_start(recipe.start, model, sha256, normalisation)
