"""The house: layers, recipes and configurations that parse, and errors that name the remedy."""

import ast
import dataclasses
import graphlib
import inspect
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.engine.ds_config import EngineOptions, read_ds_config
from pretrain.engine.optimizers import OptimizerOptions
from pretrain.evaluation.options import EvaluationOptions
from pretrain.models.clip import ModelOptions
from pretrain.recipe import DataOptions, LogOptions, check_ranks, parse, parser

ROOT = Path(__file__).resolve().parents[1]
OWN = ["--data.train", "data/mine/train", "--run_dir", "runs/mine"]
COMPLETE = ("demo", "tiny")  # every other recipe needs a dataset and a run folder to be named
RECIPES = sorted((ROOT / "pretrain/recipes").glob("*.yaml"))
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")

# Lower layers first; a module imports only from its own row's left, or from rows above it.
LAYERS = [
    ["compat", "checks", "files", "remote", "pictures", "progress", "launched", "faults",
     "run_folder", "shard_format", "pictures_in_place", "seeding", "launcher", "distributed",
     "spelling"],
    ["tokens.vocabulary", "tokens.sentence_pieces", "tokens.json_tokenizer", "tokens.tokenizer",
     "tokens.given",
     "tokens.context", "tokens.image_reduction", "tokens.text_reduction",
     "tokens.options"],
    ["models.positions", "models.image_tower", "models.text_tower", "models.presets", "models.clip",
     "models.build", "models.starting"],
    ["data.weights", "data.order", "data.images", "data.augment", "data.shards", "data.recaptions",
     "data.embeddings", "data.cache", "data.index", "data.dataset", "data.collate", "data.ahead",
     "data.workers", "data.loader", "data.feed", "data.bench"],
    ["losses.objective", "losses.pairs", "losses.softmax", "losses.sigmoid", "losses.options",
     "losses.build"],
    ["engine.precision", "engine.ds_config", "engine.schedule", "engine.optimizers",
     "engine.gradient_norm", "engine.state", "engine.stopwatch", "engine.engine"],
    ["evaluation.prompts", "evaluation.options", "evaluation.retrieval", "evaluation.zero_shot",
     "evaluation.features", "evaluation.labelled", "evaluation.classification", "evaluation.probe",
     "evaluation.abilities.drawing", "evaluation.abilities.sets", "evaluation.abilities.judge",
     "evaluation.examples", "evaluation.evaluator", "evaluation.table", "evaluation.sweep"],
    ["run.watchdog", "run.spikes", "run.trackers"],
    ["stages", "recipe"],
    ["plan.hardware", "plan.flops", "plan.memory", "plan.communication", "plan.estimate",
     "plan.forecast", "plan.budget", "plan.table", "plan.__main__"],
    ["run.meter", "run.expectation", "run.profile", "run.signals", "run.metrics", "run.lock",
     "run.weights", "run.checkpoint", "run.saver", "run.continuation", "run.job",
     "run.skips", "run.start", "run.stage_evaluation", "run.stage_log"],
    ["report.theme", "report.figures", "report.table", "report.chart",
     "report.histogram", "report.template", "report.run_folder",
     "report.summary", "report.overview", "report.results", "report.abilities",
     "report.comparison", "report.curves",
     "report.several", "report.gallery", "report.confusions", "report.embedding_map",
     "report.page", "report.__main__"],
    ["export.native", "export.tokenizer", "export.bundle", "export.hub_classes", "export.hub",
     "export.open_clip", "export.onnx", "export.card", "export.push", "export.command",
     "export.__main__",
     "export.source", "export.siglip_tokenizer", "export.timm_tower",
     "export.transformers_weights",
     "export.from_open_clip", "export.from_transformers", "export.source_ids", "export.importing"],
    ["inference"],
    ["search.index", "search.collection", "search.page", "search.__main__"],
    ["subject", "watch", "evaluate", "train", "launch", "preflight", "convert"],
]  # fmt: skip
ORDER = {name: place for place, name in enumerate(name for row in LAYERS for name in row)}


def modules() -> dict[str, Path]:
    """Every module of pretrain by its name inside the package."""
    found = {}
    for path in (ROOT / "pretrain").rglob("*.py"):
        parts = path.relative_to(ROOT / "pretrain").with_suffix("").parts
        if parts[-1] != "__init__":
            found[".".join(parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Names of our modules, and of packages, that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_every_module_has_its_layer():
    assert set(modules()) == set(ORDER)


def test_imports_go_downward_only():
    for name, path in modules().items():
        for imported in imports(path):
            target = imported.removeprefix("pretrain.")
            if imported.startswith("pretrain.") and target in ORDER:
                assert ORDER[target] < ORDER[name], f"{name} imports {target}, a layer above it"


@pytest.mark.parametrize("room", ["data_prep", "benchmarks"])
def test_the_other_rooms_have_no_cycles(room):
    graph: dict[str, set[str]] = {}
    for path in (ROOT / room).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        graph[".".join(part for part in parts if part != "__init__")] = imports(path)
    order = graphlib.TopologicalSorter(
        {name: found & graph.keys() - {name} for name, found in graph.items()}
    )
    order.prepare()  # CycleError names the modules


def test_only_the_engine_room_imports_deepspeed():
    users = {
        name
        for name, path in modules().items()
        if any(i == "deepspeed" or i.startswith("deepspeed.") for i in imports(path))
    }
    assert users == {"engine.engine", "engine.gradient_norm", "engine.state"}


def test_data_preparation_imports_no_model_and_of_training_only_the_contract():
    drawing = {f"report.{name}" for name in ("figures", "table", "chart", "histogram", "template")}
    allowed = {
        "shard_format",
        "pictures_in_place",
        "files",
        "remote",
        "checks",
        "pictures",
        "tokens",
    }
    allowed |= {"data.weights", "data.recaptions", "data.embeddings"}
    allowed |= drawing
    # Embeddings are a trained model's, so one command runs one; it imports torch only when it runs.
    runs_a_model = {"embed.py": {"load", "inference"}}
    for path in (ROOT / "data_prep").rglob("*.py"):
        for imported in imports(path):
            # Tiers are shrunk by torch's filter, which is imported when a build needs it.
            assert imported.split(".")[0] != "torch" or path.name == "tiers.py", path
            if imported.startswith("pretrain."):
                ours = imported.removeprefix("pretrain.")
                mine = allowed | runs_a_model.get(path.name, set())
                assert any(ours == a or ours.startswith(a + ".") for a in mine), (path, ours)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_its_resolved_form_is_the_same_recipe(path, tmp_path):
    recipe, resolved = parse(["--config", str(path), *([] if path.stem in COMPLETE else OWN)])
    (tmp_path / "resolved.yaml").write_text(resolved)
    again, _ = parse(["--config", str(tmp_path / "resolved.yaml")])
    assert again == recipe
    read_ds_config(ROOT / recipe.engine.ds_config)


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_every_ds_config_is_accepted(path):
    assert read_ds_config(path)["zero_optimization"]["stage"] == int(path.stem[4])


def test_later_files_and_dotted_options_override(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 7\noptimizer: {eps: 1.0e-8}\n")
    recipe, _ = parse(
        ["--config", TINY, "--config", str(tmp_path / "mine.yaml"), "--stages.full.steps", "9"]
    )
    assert (recipe.seed, recipe.optimizer.eps, recipe.stages["full"].steps) == (7, 1e-8, 9)
    assert recipe.optimizer.weight_decay == 0.1  # of the first file


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--stages.full.stepz", "3"], "stepz"),
        (["--stages.full.steps", "many"], "steps"),
        (["--stages.full.tokens.image_px", "50"], "patch_px"),
        (["--stages.reduced.tokens.image_keep_tokens", "17"], "image_keep_tokens"),
        (["--stages.full.tokens.text_tokens", "1"], "text_tokens"),
        (["--optimizer.kind", "muon", "--optimizer.gradient_clip", "1.0"], "gradient_clip"),
        (["--model.text.pool", "eos"], "specials"),
        (["--model.image.heads", "3"], "heads"),
        (["--no_such.option", "1"], "no_such"),
        (["--stages.ful.steps", "3"], "stages has"),
        (["--engine.precision", "fp16"], "auto, bf16, autocast, fp32"),
        (["--stages.full.steps", "-3"], r"stages\.full\.steps=-3"),
        (["--stages.full.epochs", "2"], r"stages\.full\.steps, samples, epochs"),
        (["--stages.full.warmup_steps", "-5"], r"stages\.full\.warmup_steps=-5"),
        (["--stages.full.warmup_steps", "5"], "only 4 steps"),
        (["--stages.full.tokens.image_px", "0"], r"stages\.full\.tokens\.image_px=0"),
        (["--model.image.depth", "0"], r"model\.image\.depth=0"),
        (["--data.loader.workers", "-1"], r"data\.loader\.workers=-1"),
        (["--log.every_steps", "0"], r"log\.every_steps=0"),
        (["--evaluation.every_steps", "0"], r"evaluation\.every_steps=0"),
        (["--checkpoint.keep", "0"], r"checkpoint\.keep=0"),
        (["--optimizer.beta2", "2"], r"optimizer\.beta2=2"),
        (["--seed", "x"], "whole number"),
        (["--config", "no.yaml"], "pretrain/recipes"),
    ],
)
def test_a_wrong_option_is_named_before_anything_starts(options, named):
    with pytest.raises((ValueError, FileNotFoundError), match=named) as raised:
        parse(["--config", TINY, *options])
    assert "\n" not in str(raised.value)


def test_help_says_what_every_option_means():
    shown = " ".join(parser().format_help().split())
    for kind in (
        DataOptions,
        LogOptions,
        ModelOptions,
        OptimizerOptions,
        EngineOptions,
        EvaluationOptions,
    ):
        source = inspect.getsource(kind)
        for option in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(option.default_factory):
                text = source.split(f"    {option.name}: ", 1)[1].split('"""')[1]
                assert " ".join(text.split())[:40] in shown, option.name
    assert "--stages.NAME.OPTION" in shown


def test_a_mistake_is_one_line_under_both_ways_of_starting_and_costs_seconds(tmp_path):
    wrong = ["-m", "pretrain.train", "--config", TINY, "--stages.full.stepz", "3"]
    two = [*("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"), *wrong]
    for start in (wrong, two):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result = subprocess.run([sys.executable, *start], cwd=ROOT, capture_output=True, text=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        lines = [line for line in result.stderr.splitlines() if "stepz" in line]
        assert lines == ["error: stages.full.stepz: there is no option 'stepz' in stages.full; "
                         "did you mean 'steps'?"]  # fmt: skip
        assert result.returncode != 0
        if start is wrong:
            assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
            assert seconds < 5, f"{seconds:.1f} s of CPU"


def test_a_batch_that_does_not_divide_names_its_neighbours():
    recipe, _ = parse(["--config", TINY])
    with pytest.raises(ValueError, match="choose 15 or 18"):
        check_ranks(recipe, 3)
