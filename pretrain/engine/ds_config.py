"""Execution options, and reading of DeepSpeed JSON: each number has one owner."""

import json
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[2]
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


def read_ds_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON. ValueError where it repeats a number that the recipe owns, or asks for
    what cannot run here: ZeRO 0, keys that DeepSpeed does not know, states on an NVMe disk."""
    if not path.is_file() and (_CHECKOUT / path).is_file():
        path = _CHECKOUT / path  # ds_configs/zero1.json, wherever the command is given
    if not path.is_file():
        raise FileNotFoundError(
            f"engine.ds_config={path} not found: choose one of ds_configs/*.json"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"engine.ds_config={path} is not JSON: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise ValueError(f"engine.ds_config={path} holds no JSON object: see ds_configs/zero1.json")
    for key, option in _RECIPE_OWNS.items():
        if key in config:
            raise ValueError(
                f"{path} sets {key!r}, which the recipe owns as {option}: remove it from the JSON"
            )
    stage = zero_stage(config)
    if stage not in (1, 2, 3):
        # ZeRO 0 keeps no fp32 master in bf16, applies a gradient that is not finite in fp32, and
        # has no norm to log; ZeRO 1 computes the same with less memory.
        raise ValueError(
            f"{path} asks for ZeRO stage {stage!r}: set zero_optimization.stage to 1, 2 or 3, as "
            "in ds_configs/zero1.json (a run that stands inside a stage under ZeRO 0 has to be "
            "finished by the version that began it)"
        )
    if stage == 1 and config["zero_optimization"].get("overlap_comm"):
        raise ValueError(
            f"{path} sets zero_optimization.overlap_comm with stage 1, which DeepSpeed has for "
            "stages 2 and 3 alone here: remove it, or set stage to 2"
        )
    for kind in ("offload_optimizer", "offload_param"):
        device = (config["zero_optimization"].get(kind) or {}).get("device", "none")
        if device not in ("none", "cpu"):
            raise ValueError(
                f"{path} sets zero_optimization.{kind}.device={device!r}: cpu or none can be used"
            )
    return config


def zero_stage(config: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed configuration."""
    return config.get("zero_optimization", {}).get("stage", 0)


def offloads_optimizer(config: dict[str, Any]) -> bool:
    """Whether the optimizer's states live in host memory."""
    return (config["zero_optimization"].get("offload_optimizer") or {}).get("device") == "cpu"
