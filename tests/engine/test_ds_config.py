"""A DeepSpeed JSON says how a run is executed and nothing that the recipe owns: all else is refused
by one line that names the key."""

import json
from pathlib import Path

import pytest

from pretrain.engine.ds_config import _KEYS, read_ds_config
from pretrain.engine.options import EngineOptions, OptimizerOptions

ZERO = {"zero_optimization": {"stage": 1}}


def test_a_ds_config_that_repeats_the_recipe_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": 1.0}))
    with pytest.raises(ValueError, match=r"gradient_clipping.*optimizer\.gradient_clip"):
        read_ds_config(path)
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}}))
    with pytest.raises(ValueError, match=r"set zero_optimization\.stage to 1, 2 or 3"):
        read_ds_config(path)
    with pytest.raises(FileNotFoundError, match="ds_configs"):
        read_ds_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"zero_optimisation": {"stage": 1}}, ["'zero_optimisation'", "'zero_optimization'?"]),
        (
            {"zero_optimization": {"stage": 2, "overlap_com": True}},
            ["'zero_optimization.overlap_com'", "'overlap_comm'?"],
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            ["'zero_optimization.offload_optimizer.devise'", "'device'?"],
        ),
        ({**ZERO, "comms_logger": {"enable": True}}, ["'comms_logger.enable'", "'enabled'?"]),
        ({**ZERO, "communication_data_type": "fp16"}, ["engine.reduce_dtype"]),
        ({**ZERO, "amp": {"enabled": True}}, ["engine.precision"]),
        ({**ZERO, "gradient_clipping": 1}, ["optimizer.gradient_clip"]),
        ({**ZERO, "elasticity": {"enabled": True}}, ["'elasticity'", "any number of ranks"]),
        ({**ZERO, "curriculum_learning": {}}, ["'curriculum_learning'", "stages"]),
        ({**ZERO, "progressive_layer_drop": {}}, ["another model"]),
        ({**ZERO, "eigenvalue": {}}, ["another model"]),
        ({**ZERO, "compression_training": {}}, ["another model"]),
        ({**ZERO, "tensor_parallel": {}}, ["'tensor_parallel'", "batch alone"]),
        ({**ZERO, "prescale_gradients": True}, ["plain mean"]),
        ({**ZERO, "flops_profiler": {}}, ["log.profile_steps"]),
        ({**ZERO, "zero_allow_untested_optimizer": True}, ["set automatically"]),
        (
            {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
            ["round_robin_gradients", "would be wrong"],
        ),
        (
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}},
            ["written here"],
        ),
        ({"zero_optimization": {"stage": 1, "xyzzy": 1}}, ["xyzzy'", "there are ["]),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            ["'zero_optimization.zero_quantized_weights'", "another model"],
        ),
        ({"zero_optimization": {"stage": True}}, ["stage=True", "a number"]),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": "auto"}}, ["'auto'"]),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": -1}}, ["=-1"]),
        ({"zero_optimization": {"stage": 1, "overlap_comm": "yes"}}, ["true or false"]),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": "cpu"}}, ["no JSON object"]),
        ({"zero_optimization": None}, ["no JSON object"]),
        ([], ["no JSON object"]),
        (None, ["no JSON object"]),
    ],
)
def test_every_key_is_known_or_named(tmp_path, config, named):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError) as caught:
        read_ds_config(path)
    said = str(caught.value)
    assert "\n" not in said and all(part in said for part in [str(path), *named]), said


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe{}", b"[" * 100_000, b'{"zero_optimization": {"stage": 1, "stage": 2}}'],
    ids=["empty", "no text", "deep", "a key twice"],
)
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"engine.ds_config={path} is not JSON"):
        read_ds_config(path)


def test_the_keys_are_deepspeeds_own():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    theirs = {field.alias or name for name, field in fields.items()}
    assert set(_KEYS["zero_optimization"]) <= theirs


def test_compiled_towers_are_refused_with_zero_3_and_a_budget_without_them():
    from pretrain.engine.engine import check_engine

    third = EngineOptions(ds_config=Path("ds_configs/zero3.json"), compile=True)
    with pytest.raises(ValueError, match=r"engine\.compile with .*zero3\.json.*stage 1 or 2"):
        check_engine(third, OptimizerOptions())
    check_engine(EngineOptions(compile=True), OptimizerOptions())
    with pytest.raises(ValueError, match=r"activation_memory_budget=0.5 without engine\.compile"):
        EngineOptions(activation_memory_budget=0.5)
