"""The engine: DeepSpeed's optimizer step around CLIP and its loss. Sole importer of deepspeed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pretrain import compat

compat.tell_deepspeed_the_device()  # it looks while it is imported

import deepspeed  # noqa: E402
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param  # noqa: E402

from pretrain.distributed import Runtime, mean_over_ranks  # noqa: E402
from pretrain.engine.ds_config import EngineOptions, read_ds_config  # noqa: E402
from pretrain.engine.optimizers import OptimizerOptions, parameter_groups  # noqa: E402
from pretrain.losses.contrastive import ContrastiveLoss, Temperature  # noqa: E402
from pretrain.models.clip import CLIP  # noqa: E402

# DeepSpeed would compile this library when it joins the process group (half a minute, g++, and a
# lock file that a killed process leaves for all later ones to wait on), for inference only.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimizer step measured, averaged over ranks."""

    loss: float
    image_to_text_accuracy: float
    text_to_image_accuracy: float
    grad_norm: float | None


class NonFiniteLossError(RuntimeError):
    """The loss of a step is not finite on some rank; no rank has updated its weights."""


class Engine:
    """One stage's training engine: forward, loss, backward and update over all ranks."""

    def __init__(
        self,
        *,
        model: CLIP,
        loss: ContrastiveLoss,
        runtime: Runtime,
        options: EngineOptions,
        optimizer: OptimizerOptions,
        precision: Literal["bf16", "fp32"],
        local_batch_samples: int,
        micro_batch_samples: int | None,
    ) -> None:
        """micro_batch_samples: samples of this rank in one forward; less than the local batch
        means two passes with cached features (GradCache, arXiv 2101.06983), which gives the
        large batch's gradient: plain accumulation would lose its negatives."""
        deepspeed_logger.setLevel("WARNING")
        if runtime.device.type == "cpu" and not options.compile:
            # DeepSpeed compiles Muon's update for every matrix shape: a minute on a CPU, no gain.
            torch.compiler.set_stance("force_eager")
        self.runtime = runtime
        self.micro = micro_batch_samples or local_batch_samples
        if local_batch_samples % self.micro:
            raise ValueError(
                f"micro_batch_samples={self.micro} does not divide the {local_batch_samples} "
                "samples of each rank: choose a divisor"
            )
        self.loss = loss.to(runtime.device)
        self.temperature = Temperature(
            self.loss, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps
        )
        model.image.checkpoint_blocks = options.checkpoint_image
        if options.checkpoint_text:
            model.text.checkpoint_blocks()
        config = self._config(options, optimizer, precision)
        self.zero_stage: int = config.get("zero_optimization", {}).get("stage", 0)
        self.parameter_names = [name for name, _ in model.named_parameters()]
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=_optimizer(model, optimizer, runtime), config=config
        )
        if options.compile:
            self.engine.compile()
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def _config(
        self, options: EngineOptions, optimizer: OptimizerOptions, precision: str
    ) -> dict[str, Any]:
        config = read_ds_config(options.ds_config)
        stage = config.get("zero_optimization", {}).get("stage", 0)
        config.update(
            train_micro_batch_size_per_gpu=self.micro,
            gradient_accumulation_steps=1,
            managed_gradient_accumulation=False,  # backward accumulates, step() is the boundary
            gradient_clipping=optimizer.gradient_clip or 0.0,
            zero_allow_untested_optimizer=True,
            steps_per_print=10**12,
        )
        if optimizer.kind == "muon" and stage == 3:
            config["zero_optimization"]["reduce_scatter"] = False  # DeepSpeed refuses both
        if precision == "bf16":
            config["bf16"] = {"enabled": True}
            if stage > 0:  # ZeRO 0 has no fp32 accumulation (NotImplementedError)
                config["data_types"] = {"grad_accum_dtype": "fp32"}
        return config

    def step(
        self,
        images: Tensor,
        text_ids: Tensor,
        keep_index: Tensor | None,
        *,
        learning_rate: float,
        temperature_learning_rate: float,
    ) -> StepResult:
        """One optimizer step on this rank's part of the global batch.

        images (B, 3, H, W) in the engine's dtype, text_ids (B, T), keep_index (B, K) or None.
        NonFiniteLossError on every rank, before any update, if the loss is not finite anywhere.
        """
        if self.micro == len(images):
            features = self.engine(images, text_ids, keep_index)
            result = self.loss(*features)
            numbers = self._checked(result)
            self.engine.backward(result.loss)
        else:
            numbers = self._two_passes(images, text_ids, keep_index)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self.engine.step()
        self.temperature.step(temperature_learning_rate)
        norm = self.engine.get_global_grad_norm()
        return StepResult(
            loss=numbers[0],
            image_to_text_accuracy=numbers[1],
            text_to_image_accuracy=numbers[2],
            grad_norm=None if norm is None else float(norm),
        )

    def _two_passes(
        self, images: Tensor, text_ids: Tensor, keep_index: Tensor | None
    ) -> list[float]:
        """Features of all chunks without a graph, the loss's gradient at them, then each chunk
        again with that gradient. The kept tokens are inputs, so both passes see the same."""
        chunks = [slice(at, at + self.micro) for at in range(0, len(images), self.micro)]

        def forward(chunk: slice) -> tuple[Tensor, Tensor]:
            kept = None if keep_index is None else keep_index[chunk]
            return self.engine(images[chunk], text_ids[chunk], kept)

        with torch.no_grad():
            parts = [forward(chunk) for chunk in chunks]
        cached = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]
        result = self.loss(*cached)
        numbers = self._checked(result)
        result.loss.backward()
        for chunk in chunks:
            features = forward(chunk)
            gradients = [cache.grad[chunk] for cache in cached if cache.grad is not None]
            surrogate = torch.stack(
                [(f * g).sum() for f, g in zip(features, gradients, strict=True)]
            ).sum()
            self.engine.backward(surrogate)
        return numbers

    def _checked(self, result: Any) -> list[float]:
        numbers = mean_over_ranks(
            torch.stack(
                [
                    result.loss.detach(),
                    result.image_to_text_accuracy,
                    result.text_to_image_accuracy,
                ]
            )
        ).tolist()
        if not math.isfinite(numbers[0]):
            raise NonFiniteLossError(
                f"loss is {numbers[0]} on some rank; nothing was updated. Resume from the last "
                "checkpoint with a lower stages.NAME.base_learning_rate or a longer warmup_steps"
            )
        return numbers

    def full_weights(self) -> dict[str, Tensor]:
        """Every weight, whole, in fp32 on the CPU, from the optimizer's master copy. Collective:
        all ranks call it together."""
        weights = {}
        for name, parameter in self.engine.module.named_parameters():
            master = safe_get_full_fp32_param(parameter)
            value = parameter if master is None else master
            weights[name] = value.detach().float().cpu().reshape(_shape(parameter)).clone()
        return weights

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write folder/tag. Collective; not atomic by itself."""
        state = {"temperature": self.temperature.state_dict(), **state}
        self.engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)

    def load(self, folder: Path, tag: str) -> None:
        """Read what `save` wrote, into an engine of the same shape and world size."""
        path, state = self.engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise RuntimeError(f"DeepSpeed could not load checkpoint {folder / tag}")
        self.temperature.load_state_dict(state["temperature"])

    def close(self) -> None:
        """Give back what the engine holds, before the next stage builds its own."""
        self.engine.destroy()


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """A parameter's own shape; ZeRO-3 leaves an empty one in its place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _optimizer(model: CLIP, options: OptimizerOptions, runtime: Runtime) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options)
    if options.kind == "muon":
        # Given as a client optimizer, so that our decay groups reach it; ZeRO orthogonalises
        # each matrix before it is partitioned because the class is DeepSpeed's own.
        return MuonWithAuxAdam(groups)
    return torch.optim.AdamW(groups, fused=runtime.device.type == "cuda")
