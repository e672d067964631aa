"""Command lines of the tiny recipe."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def train_command(run_dir: Path, dataset: Path, *more: str, ranks: int = 2) -> list[str]:
    """torchrun of the tiny recipe on a dataset."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(ranks), "-m", "pretrain.train"),
        *("--config", str(ROOT / "pretrain/recipes/tiny.yaml")),
        *("--run_dir", str(run_dir), "--data.train", str(dataset), *more),
    ]


def evaluation_options(evaluation_set: Path) -> list[str]:
    return [
        *("--evaluation.sets", f"{{held_out: {evaluation_set}}}", "--evaluation.every_steps", "2"),
        *("--evaluation.zero_shot", "{subgroup: {prompts: ['a drawing of {}']}}"),
    ]
