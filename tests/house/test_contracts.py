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

from pretrain.cli import parser
from pretrain.engine.ds_config import read_ds_config
from pretrain.engine.options import EngineOptions, OptimizerOptions
from pretrain.evaluation.options import EvaluationOptions
from pretrain.models.options import ModelOptions
from pretrain.recipe.parsing import TRAIN, parse
from pretrain.recipe.recipe import DataOptions, check_ranks
from pretrain.recipe.run_options import LogOptions

ROOT = Path(__file__).resolve().parents[2]
OWN = ["--data.train", "data/mine/train", "--run_dir", "runs/mine"]
COMPLETE = ("demo", "tiny")  # every other recipe needs a dataset and a run folder to be named
RECIPES = sorted((ROOT / "pretrain/recipes").glob("*.yaml"))
TINY = str(ROOT / "pretrain/recipes/tiny.yaml")

# The rooms of pretrain, lowest first: a file imports only from its own room and those before it.
# Files of no room are what a user starts, and stand above all.
ROOMS = ("base", "cli", "tokens", "dataset", "models", "batches", "losses", "engine", "evaluation")
ROOMS += ("recipe", "plan", "run", "report", "export", "search", "commands")


def modules(package: str) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Names of modules, and of what is in packages, that a file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def room(module: str) -> int:
    """The place of a module's room among ROOMS."""
    parts = module.split(".")
    return ROOMS.index(parts[1] if len(parts) > 1 and parts[1] in ROOMS else "commands")


def test_imports_go_down_from_room_to_room():
    known = modules("pretrain")
    for name, path in known.items():
        if name != "pretrain":
            for imported in imports(path) & known.keys() - {"pretrain"}:
                assert room(imported) <= room(name), f"{name} imports {imported}, a room above it"


@pytest.mark.parametrize("package", ["pretrain", "data_prep", "benchmarks"])
def test_no_imports_run_in_a_circle(package):
    known = modules(package)
    graph = {name: imports(path) & known.keys() - {name} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules


def test_only_the_engine_room_imports_deepspeed():
    users = {
        name
        for name, path in modules("pretrain").items()
        if any(i == "deepspeed" or i.startswith("deepspeed.") for i in imports(path))
    }
    assert {name.rpartition(".")[0] for name in users} == {"pretrain.engine"}


def test_data_preparation_imports_no_model_and_of_training_only_what_both_share():
    shared = (
        "pretrain.base",
        "pretrain.cli",
        "pretrain.dataset",
        "pretrain.tokens",
        "pretrain.report",
    )
    for name, path in modules("data_prep").items():
        for imported in imports(path):
            # Tiers are shrunk by torch's filter, which is imported when a build needs it.
            assert imported.split(".")[0] != "torch" or path.name == "tiers.py", path
            # Embeddings are a trained model's, so one command runs one, when it runs.
            if imported.startswith("pretrain.") and path.name != "embed.py":
                assert imported.startswith(shared), (name, imported)


def test_what_both_packages_share_of_a_dataset_needs_no_torch():
    code = (
        "import sys, data_prep.__main__, pretrain.dataset.reader; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


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
        (
            ["--stages.full.epochs=2", "--stages.full.steps=2"],
            r"stages\.full\.steps, samples, epochs",
        ),
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
    shown = " ".join(parser(TRAIN).format_help().split())
    for kind in (
        DataOptions,
        LogOptions,
        ModelOptions,
        OptimizerOptions,
        EngineOptions,
        EvaluationOptions,
    ):
        source = "".join(inspect.getsource(base) for base in kind.__mro__[:-1])
        for option in dataclasses.fields(kind):
            if not dataclasses.is_dataclass(option.default_factory):
                text = source.split(f"    {option.name}: ", 1)[1].split('"""')[1]
                assert " ".join(text.split())[:40] in shown, option.name
    assert "--stages.NAME.OPTION" in shown


def test_a_mistake_is_one_line_under_both_ways_of_starting_and_costs_seconds(tmp_path):
    wrong = ["-m", "pretrain.train", "--config", TINY, "--stages.full.stepz", "3"]
    two = ["-m", "pretrain.launch", "torchrun", "--standalone", "--nproc_per_node", "2", *wrong]
    for start in (wrong, two):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        result = subprocess.run([sys.executable, *start], cwd=ROOT, capture_output=True, text=True)
        seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        lines = [line for line in result.stderr.splitlines() if "stepz" in line]
        assert lines == ["error: --stages.full.stepz: there is no option 'stepz' in stages.full; "
                         "did you mean 'steps'?"]  # fmt: skip
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert start is two or seconds < 5, f"{seconds:.1f} s of CPU"


def test_a_rank_that_is_killed_is_told_in_one_line():
    code = "import os; os.kill(os.getpid(), 9)"
    two = ["-m", "pretrain.launch", "torchrun", "--standalone", "--nproc_per_node", "2"]
    words = [sys.executable, *two, "--no-python", sys.executable, "-c", code]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: rank ") and "ended by SIGKILL" in line, line
    assert ended.returncode != 0


def test_a_batch_that_does_not_divide_names_its_neighbours():
    recipe, _ = parse(["--config", TINY])
    with pytest.raises(ValueError, match="choose 15 or 18"):
        check_ranks(recipe, 3)
