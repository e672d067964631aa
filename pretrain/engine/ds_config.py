"""Execution options, and reading of DeepSpeed JSON: each number has one owner."""

import difflib
import json
import math
from pathlib import Path
from typing import Any

_CHECKOUT = Path(__file__).resolve().parents[2]
# What a JSON may say: kinds of values, and objects in objects.
_SWITCHES = ("contiguous_gradients", "reduce_scatter", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "overlap_comm", "parameter_alignment",
    "ignore_unused_parameters", "stage3_use_all_reduce_for_fetch_params",
    "stage3_allgather_sequential", "memory_efficient_linear", "log_trace_cache_warnings",
    "enable_sanity_checks")  # fmt: skip
_NUMBERS = ("stage", "reduce_bucket_size", "allgather_bucket_size", "sub_group_size",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_model_persistence_threshold", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_module_granularity_threshold",
    "zero_hpz_partition_size")  # fmt: skip
_OFFLOAD = {"device": str, "pin_memory": bool}
_KEYS: dict[str, Any] = {
    "zero_optimization": {
        **dict.fromkeys(_SWITCHES, bool),
        **dict.fromkeys(_NUMBERS, float),
        "offload_optimizer": _OFFLOAD,
        "offload_param": {**_OFFLOAD, "max_in_cpu": float},
    },
    "comms_logger": {
        **dict.fromkeys(("enabled", "prof_all", "verbose", "debug"), bool),
        "prof_ops": list,
    },
    **dict.fromkeys(("wall_clock_breakdown", "memory_breakdown", "dump_state"), bool),
}
_KINDS = {bool: "true or false", float: "a number from 0", str: "a text", list: "a list"}
# Numbers that the recipe owns: a DeepSpeed JSON that repeats one is refused.
_RECIPE_OWNS = {
    "train_batch_size": "stages.NAME.global_batch_samples",
    "train_micro_batch_size_per_gpu": "stages.NAME.micro_batch_samples",
    "gradient_accumulation_steps": "stages.NAME.micro_batch_samples",
    "optimizer": "optimizer",
    "scheduler": "stages.NAME.base_learning_rate / warmup_steps",
    "gradient_clipping": "optimizer.gradient_clip",
    **dict.fromkeys(
        ("bf16", "bfloat16", "fp16", "amp", "torch_autocast", "data_types"), "engine.precision"
    ),
    **dict.fromkeys(
        ("communication_data_type", "seq_parallel_communication_data_type"), "engine.reduce_dtype"
    ),
    "curriculum_learning": "stages",
    "data_efficiency": "stages.NAME.tokens",
    "activation_checkpointing": "engine.checkpoint_image / checkpoint_text",
    "compile": "engine.compile",
    "checkpoint": "checkpoint",
    "dataloader_drop_last": "data.loader",
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet", "steps_per_print"), "log"),
}  # fmt: skip
# What would change the numbers of a run, or what is there without DeepSpeed.
_NOT_HERE = {
    "elasticity": "any number of ranks resumes a run without it",
    **dict.fromkeys(
        ("prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
         "sparse_gradients"),
        "the loss needs the plain mean of the ranks' gradients",
    ),
    **dict.fromkeys(
        ("progressive_layer_drop", "eigenvalue", "compression_training", "quantize_training",
         "weight_quantization", "zero_quantized_weights", "zero_quantized_gradients",
         "zero_quantized_nontrainable_weights", "zenflow", "zeropp_loco_param"),
        "it would train another model than the recipe says",
    ),
    **dict.fromkeys(
        ("tensor_parallel", "pipeline", "expert_parallel", "sequence_parallel_size",
         "mics_shard_size", "hybrid_engine", "autotuning"),
        "training divides the batch alone over the ranks",
    ),
    "round_robin_gradients": "DeepSpeed then keeps parameters in another order than it says, and "
    "weights read back by name would be wrong",
    **dict.fromkeys(
        ("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
         "elastic_checkpoint", "load_from_fp32_weights", "nebula", "datastates_ckpt",
         "use_node_local_storage", "checkpoint_parallel_write_pipeline"),
        "checkpoints and weights are written here, whole and in fp32",
    ),
    **dict.fromkeys(
        ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"), "it is set automatically"
    ),
    "flops_profiler": "log.profile_steps traces steps, `python -m pretrain.plan` counts FLOPs",
    **dict.fromkeys(
        ("ratio", "fast_init", "super_offload", "save_muon_momentum_buffer_in_memory",
         "leaf_module", "override_module_apply", "mics_hierarchical_params_gather"),
        "training here has not been tried with it",
    ),
    **dict.fromkeys(
        ("aio", "nvme_path", "buffer_count", "buffer_size", "pipeline_read", "pipeline_write"),
        "states on an NVMe disk cannot be used",
    ),
}  # fmt: skip


def read_ds_config(path: Path) -> dict[str, Any]:
    """A DeepSpeed JSON. ValueError where it repeats a number that the recipe owns, or asks for
    what cannot run here: ZeRO 0, keys that are not known here, states on an NVMe disk."""
    if not path.is_file() and (_CHECKOUT / path).is_file():
        path = _CHECKOUT / path  # ds_configs/zero1.json, wherever the command is given
    if not path.is_file():
        raise FileNotFoundError(
            f"engine.ds_config={path} not found: choose one of ds_configs/*.json"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"engine.ds_config={path} is not JSON: {error}") from error
    _check(config, _KEYS, path, "")
    stage = zero_stage(config)
    if type(stage) is not int or stage not in (1, 2, 3):
        # ZeRO 0 keeps no fp32 master in bf16, applies a gradient that is not finite in fp32, and
        # has no norm to log; ZeRO 1 computes the same with less memory.
        raise ValueError(
            f"{path} asks for ZeRO stage {stage!r}: set zero_optimization.stage to 1, 2 or 3, as "
            "in ds_configs/zero1.json"
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON; ValueError for a key that it has twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return found


def _check(found: Any, known: dict[str, Any], path: Path, where: str) -> None:
    """ValueError for the first key of an object that is not `known`, or whose value cannot be."""
    if not isinstance(found, dict):
        raise ValueError(
            f"engine.ds_config={path} holds no JSON object{where and ' as ' + where.rstrip('.')}: "
            "see ds_configs/zero1.json"
        )
    for key, value in found.items():
        name = where + key
        if key in known:
            kind = known[key]
            if isinstance(kind, dict):
                if value is not None or not where:
                    _check(value, kind, path, f"{name}.")
            elif value is not None and not _is_of(value, kind):
                raise ValueError(f"{path} sets {name}={value!r}: give {_KINDS[kind]}")
        elif key in _RECIPE_OWNS:
            raise ValueError(
                f"{path} sets {name!r}, which the recipe owns as {_RECIPE_OWNS[key]}: remove it "
                "from the JSON"
            )
        elif key in _NOT_HERE:
            raise ValueError(f"{path} sets {name!r}: remove it, {_NOT_HERE[key]}")
        else:
            close = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"there are {sorted(known)}"
            raise ValueError(f"{path} sets {name!r}, which is not a known key; {remedy}")


def _is_of(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf and value == int(value)
    return isinstance(value, kind)


def zero_stage(config: dict[str, Any]) -> int:
    """ZeRO stage of a DeepSpeed configuration."""
    return config.get("zero_optimization", {}).get("stage", 0)


def offloads_optimizer(config: dict[str, Any]) -> bool:
    """Whether the optimizer's states live in host memory."""
    return (config["zero_optimization"].get("offload_optimizer") or {}).get("device") == "cpu"
