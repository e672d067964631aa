"""The doors of training and of models; see the data's."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_doors import PREP, Door, make_dataset, refusing, sha256

ROOT = Path(__file__).resolve().parents[2]
_EXPORT = ("pretrain.export.importing", "pretrain.export.native", "PIL.Image", "sentencepiece")
_FOREIGN = ("open_clip", "transformers", "tokenizers", "siglip_folders", "test_convert")
_TRAIN = (
    *("pretrain.loop", "pretrain.recipe.parsing", "pretrain.engine.engine", "deepspeed"),
    *("pretrain.models.clip", "pretrain.run.start", "pretrain.report.command"),
)


def make_recipe(folder: Path) -> int:
    folder.mkdir()
    shutil.copy(ROOT / "pretrain/recipes/tiny.yaml", folder / "recipe.yaml")
    shutil.copy(ROOT / "ds_configs/zero1.json", folder / "zero.json")
    text = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(text.replace("ds_configs/zero1.json", "zero.json"))
    return 0


def open_recipe(folder: Path, draw: random.Random) -> int:
    """Read and checked as training does before it opens the data, or planned."""
    from pretrain.plan.__main__ import main as plan
    from pretrain.recipe.parsing import parse

    os.chdir(folder)
    if draw.random() < 0.4:
        return plan(["--config", "recipe.yaml", "--gpus", "8", "--gpu", "h100"])

    def check() -> None:
        from pretrain.engine.engine import check_engine
        from pretrain.recipe.stages import plan_stages

        recipe, _ = parse(["--config", "recipe.yaml", "--run_dir", "run"])
        check_engine(recipe.engine, recipe.optimizer)
        plan_stages(recipe.stages, 1000)

    return refusing(check)


def make_export(folder: Path) -> int:
    from tiny_models import write_untrained

    make_dataset(folder.parent / "trained_on")
    write_untrained(folder, folder.parent / "trained_on")
    return 0


def seal_export(folder: Path) -> None:
    with suppress(Exception):
        config = json.loads((folder / "config.json").read_bytes())
        config["tokenizer_sha256"] = sha256(folder / "text.tokenizer")
        (folder / "config.json").write_text(json.dumps(config))


def open_export(folder: Path, draw: random.Random) -> int:
    def use() -> None:
        from PIL import Image

        import pretrain

        model = pretrain.load(folder)
        model.encode_text(["a red dog", ""])
        model.encode_image([Image.new("L", (9, 7))])

    return refusing(use)


def make_foreign(kind: str) -> Callable[[Path], int]:
    def make(folder: Path) -> int:
        import siglip_folders
        import test_convert

        if kind == "clip":
            test_convert.a_clip_model_folder(folder, 513)
        elif kind == "siglip":
            siglip_folders.a_siglip_folder(folder)
        elif kind == "open_clip":
            test_convert.an_open_clip_folder(folder, test_convert.CLIPA, test_convert.PREPARE)
        else:
            siglip_folders.an_open_clip_siglip_folder(folder)
        return 0

    return make


def open_foreign(folder: Path, draw: random.Random) -> int:
    from pretrain.convert import main

    os.environ |= {"HF_HUB_OFFLINE": "1"}
    return main([str(folder), str(folder.parent / "converted")])


def make_run(folder: Path) -> int:
    """A finished run; its data lies beside it."""
    from pretrain.train import main

    make_dataset(folder.parent / "data", 24)
    return main(_train_words(folder))


def _train_words(folder: Path) -> list[str]:
    return [
        *("--config", str(ROOT / "pretrain/recipes/tiny.yaml"), "--run_dir", str(folder)),
        *("--data.train", str(folder.parent / "data"), "--data.loader.workers", "0"),
        *("--data.tier", "32", "--log.tensorboard", "false", "--data.max_repeated_share", "1"),
        *("--stages.full.tokens.image_px", "32", "--checkpoint.late_files_s", "0"),
    ]


def seal_run(folder: Path) -> None:
    with suppress(Exception):
        for path in folder.rglob("state.json"):
            record = json.loads(path.read_bytes())
            record.pop("record_sha256")
            for name in record["files"]:
                file = path.parent / name
                record["files"][name] = {"sha256": sha256(file), "bytes": file.stat().st_size}
            for name, told in record["state"]["stage_weights"].items():
                file = next(folder.glob(f"**/{name}*.safetensors"))
                told |= {"sha256": sha256(file), "bytes": file.stat().st_size}
            digest = hashlib.sha256(json.dumps(record).encode()).hexdigest()
            path.write_text(json.dumps({**record, "record_sha256": digest}, indent=2))


def open_run(folder: Path, draw: random.Random) -> int:
    from pretrain.evaluate import main as evaluate
    from pretrain.export.__main__ import main as export
    from pretrain.report.__main__ import main as report
    from pretrain.train import main as train

    match draw.randrange(6):
        case 0 | 1:
            return report(["--run_dir", str(folder)])
        case 2:
            return export(["--run_dir", str(folder)])
        case 3:
            return evaluate(["--run_dir", str(folder), "--sets.x", str(folder.parent / "data")])
        case _:
            return train(_train_words(folder))


MODEL_DOORS = {
    "recipe": Door(modules=(*_TRAIN, "pretrain.plan.command"), make=make_recipe, open=open_recipe),
    "run": Door(modules=(*_TRAIN, *PREP, *_EXPORT), make=make_run, open=open_run, seal=seal_run),
    "export": Door(modules=(*PREP, *_EXPORT), make=make_export, open=open_export, seal=seal_export),
    **{
        kind: Door(modules=(*_EXPORT, *_FOREIGN), make=make_foreign(kind), open=open_foreign)
        for kind in ("clip", "siglip", "open_clip", "open_clip_siglip")
    },
}
