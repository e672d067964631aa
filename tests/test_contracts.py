"""The house: layers, recipes and configurations that parse, and errors that name the remedy."""

import ast
from pathlib import Path

import pytest

from pretrain.engine.ds_config import read_ds_config
from pretrain.recipe import check_ranks, parse

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "pretrain/recipes").glob("*.yaml"))
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")

# Lower layers first; a module imports only from its own row's left, or from rows above it.
LAYERS = [
    ["compat", "checks", "files", "shard_format", "seeding", "distributed", "spelling"],
    ["tokens.tokenizer", "tokens.context", "tokens.image_reduction", "tokens.text_reduction",
     "tokens.options"],
    ["models.positions", "models.image_tower", "models.text_tower", "models.clip", "models.build"],
    ["data.order", "data.images", "data.augment", "data.shards", "data.index", "data.dataset",
     "data.collate", "data.loader"],
    ["losses.objective", "losses.contrastive", "losses.build"],
    ["engine.precision", "engine.ds_config", "engine.schedule", "engine.optimizers",
     "engine.gradient_norm", "engine.engine"],
    ["evaluation.options", "evaluation.retrieval", "evaluation.zero_shot", "evaluation.features",
     "evaluation.evaluator"],
    ["stages", "recipe"],
    ["run.metrics", "run.lock", "run.weights", "run.checkpoint", "run.continuation", "run.job",
     "run.skips", "run.start", "run.stage_evaluation", "run.stage_log"],
    ["report.markup", "report.figures", "report.chart", "report.run_folder", "report.summary",
     "report.overview", "report.results", "report.comparison", "report.curves", "report.gallery",
     "report.page", "report.__main__"],
    ["export", "evaluate", "train"],
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


def test_only_the_engine_room_imports_deepspeed():
    users = {
        name
        for name, path in modules().items()
        if any(i == "deepspeed" or i.startswith("deepspeed.") for i in imports(path))
    }
    assert users == {"engine.engine", "engine.gradient_norm"}


def test_data_preparation_imports_no_torch_and_of_training_only_the_contract():
    allowed = {"shard_format", "files", "tokens", "tokens.tokenizer"}
    for path in (ROOT / "data_prep").rglob("*.py"):
        for imported in imports(path):
            assert imported.split(".")[0] != "torch", path
            if imported.startswith("pretrain."):
                ours = imported.removeprefix("pretrain.")
                assert any(ours == a or ours.startswith(a + ".") for a in allowed), (path, ours)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses_and_its_resolved_form_is_the_same_recipe(path, tmp_path):
    recipe, resolved = parse(["--config", str(path)])
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
    ],
)
def test_a_wrong_option_is_named_before_anything_starts(options, named, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(["--config", TINY, *options])
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err


def test_a_batch_that_does_not_divide_names_its_neighbours():
    recipe, _ = parse(["--config", TINY])
    with pytest.raises(ValueError, match="choose 15 or 18"):
        check_ranks(recipe, 3)
