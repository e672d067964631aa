"""Execution options, and reading of DeepSpeed JSON: each number has one owner."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.engine.precision import Precision

# Numbers that the recipe owns: a DeepSpeed JSON that repeats one is refused.
_RECIPE_OWNS = {
    "train_batch_size": "stages.NAME.global_batch_samples",
    "train_micro_batch_size_per_gpu": "stages.NAME.micro_batch_samples",
    "gradient_accumulation_steps": "stages.NAME.micro_batch_samples",
    "optimizer": "optimizer",
    "scheduler": "stages.NAME.base_learning_rate / warmup_steps",
    "gradient_clipping": "optimizer.gradient_clip",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "torch_autocast": "engine.precision",
    "data_types": "engine.precision",
}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How training is executed; nothing here changes what is computed but for rounding."""

    ds_config: Path = Path("ds_configs/zero1.json")
    """DeepSpeed JSON: ZeRO stage, offload, communication."""
    precision: Precision = "auto"
    """auto is bf16 where the machine computes in it, else fp32."""
    checkpoint_image: bool = False
    """Recompute the image tower's blocks in the backward pass (less memory, ~1.3x compute)."""
    checkpoint_text: bool = False
    """Recompute the text tower's blocks in the backward pass."""
    compile: bool = False
    """torch.compile the model (slower start, faster steps on CUDA)."""


def read_ds_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON, refused where it repeats a number that the recipe owns."""
    if not path.is_file():
        raise FileNotFoundError(
            f"engine.ds_config={path} not found: choose one of ds_configs/*.json"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"engine.ds_config={path} is not JSON: {error}") from error
    for key, option in _RECIPE_OWNS.items():
        if key in config:
            raise ValueError(
                f"{path} sets {key!r}, which the recipe owns as {option}: remove it from the JSON"
            )
    return config
