"""The engine: DeepSpeed's optimizer step around CLIP and its loss. Sole importer of deepspeed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pretrain.base import compat

compat.tell_deepspeed_the_device()  # it looks while it is imported

import deepspeed  # noqa: E402
from deepspeed.runtime import bf16_optimizer  # noqa: E402
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig  # noqa: E402
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402
from pydantic import ValidationError  # noqa: E402

from pretrain.base.distributed import Runtime  # noqa: E402
from pretrain.engine.average import WeightAverage  # noqa: E402
from pretrain.engine.compiled import compile_towers, forget_compiled  # noqa: E402
from pretrain.engine.ds_config import offloads_optimizer, read_ds_config, zero_stage  # noqa: E402
from pretrain.engine.gradient_norm import GradientNorm  # noqa: E402
from pretrain.engine.objective_state import load_objective, read_objective  # noqa: E402
from pretrain.engine.optimizers import parameter_groups, round_first_moments  # noqa: E402
from pretrain.engine.options import EngineOptions, OptimizerOptions, TowerName, TrainedIn  # noqa: E402
from pretrain.engine.overhead import trim  # noqa: E402
from pretrain.engine.result import Images, StepResult, Stopwatch, agree  # noqa: E402
from pretrain.engine.state import (  # noqa: E402
    STEP,
    load_locked,
    load_state,
    read_state,
    read_weights,
    set_weights,
)
from pretrain.losses.objective import Objective  # noqa: E402
from pretrain.models.clip import CLIP  # noqa: E402

# DeepSpeed would compile this library when it joins the process group (half a minute, g++, and a
# lock file that a killed process leaves for all later ones to wait on), for inference only.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# It prints a dozen lines about memory whenever it makes a bf16 optimizer.
bf16_optimizer.see_memory_usage = lambda *_, **__: None

_NO_GRADIENT = "the gradient is not finite"
_LINEAR = torch.nn.functional.linear


def check_engine(options: EngineOptions, optimizer: OptimizerOptions) -> None:
    """ValueError where DeepSpeed would refuse the configuration later. Needs no process group."""
    config = read_ds_config(options.ds_config)
    if options.compile and zero_stage(config) == 3:
        # Its hooks gather weights inside every module: the graph would break at each of them.
        raise ValueError(
            f"engine.compile with {options.ds_config}, which asks for ZeRO 3: set engine.ds_config "
            "to a file of stage 1 or 2, or engine.compile to false"
        )
    try:
        DeepSpeedZeroConfig(**config["zero_optimization"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise ValueError(
            f"engine.ds_config={options.ds_config}: {where} is not understood by DeepSpeed "
            f"{deepspeed.__version__} ({first['msg']}): fix it, or choose one of ds_configs/*.json"
        ) from error
    if optimizer.kind == "muon" and offloads_optimizer(config):
        raise ValueError(
            f"optimizer.kind=muon with {options.ds_config}, which offloads the optimizer: set "
            "optimizer.kind to adamw, or engine.ds_config to one without offload"
        )


class Engine:
    """One stage's training engine: forward, loss, backward and update over all ranks."""

    def __init__(
        self,
        *,
        model: CLIP,
        objective: Objective,
        runtime: Runtime,
        options: EngineOptions,
        optimizer: OptimizerOptions,
        precision: TrainedIn,
        local_batch_samples: int,
        micro_batch_samples: int | None,
        layer_decay: float | None = None,
        locked: TowerName | None = None,
        fixed_positions: bool = False,
    ) -> None:
        """micro_batch_samples: samples of this rank in one forward, a divisor of the local batch;
        less than that means two passes with cached features (GradCache, arXiv 2101.06983), which
        gives the large batch's gradient: plain accumulation would lose its negatives."""
        deepspeed_logger.setLevel("WARNING")
        # DeepSpeed compiles Muon's update for every matrix shape: a minute on a CPU, no gain.
        eager = runtime.device.type == "cpu" and not options.compile
        torch.compiler.set_stance("force_eager" if eager else "default")
        self.runtime = runtime
        self.micro = micro_batch_samples or local_batch_samples
        self.objective = objective.to(runtime.device)
        self.objective.start(
            betas=(optimizer.beta1, optimizer.beta2),
            eps=optimizer.eps,
            tf32=precision != "fp32",
        )
        if options.checkpoint_image:
            model.image.checkpoint_blocks(options.checkpoint_every)
        if options.checkpoint_text:
            model.text.checkpoint_blocks(options.checkpoint_every)
        if options.compile:
            compile_towers(model, memory_budget=options.activation_memory_budget)
        if locked is not None:
            model.get_submodule(locked).requires_grad_(False)
        if fixed_positions:
            model.image.positions.requires_grad_(False)
        # Whole, in fp32: the optimizer keeps no masters of them, and bf16 would round them.
        self.locked = {
            name: weight.detach().float().cpu().clone()
            for name, weight in model.named_parameters()
            if not weight.requires_grad
        }
        config = read_ds_config(options.ds_config)
        self.zero_stage = zero_stage(config)
        client = _optimizer(model, optimizer, layer_decay)
        if optimizer.first_moment == "bf16":
            round_first_moments(client)
            round_first_moments(self.objective.optimizer)
        # DeepSpeed rounds the model to bf16 before it makes the fp32 masters of it.
        exact = (
            {name: weight.detach().clone() for name, weight in model.named_parameters()}
            if precision == "bf16"
            else None
        )
        if precision == "autocast":
            # Inside the module: DeepSpeed turns autocast off around it, on CUDA.
            autocast = torch.autocast(
                runtime.device.type,
                torch.bfloat16,
                cache_enabled=self.zero_stage < 3,  # it would keep what ZeRO 3 gives back
            )
            model.forward = autocast(model.forward)  # type: ignore[method-assign]
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=client,
            config=self._config(config, options, optimizer, precision),
        )
        trim(self.engine, ranks=runtime.world_size)
        if exact is not None:
            set_weights(self.engine, exact)
        self.average = None if options.ema is None else WeightAverage(self.engine, options.ema)
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.norm = GradientNorm(self.engine, is_muon=optimizer.kind == "muon")
        self.stopwatch = Stopwatch(runtime.device)

    def _config(
        self,
        config: dict[str, Any],
        options: EngineOptions,
        optimizer: OptimizerOptions,
        precision: str,
    ) -> dict[str, Any]:
        """The DeepSpeed JSON with what the recipe owns."""
        config.update(
            train_micro_batch_size_per_gpu=self.micro,
            gradient_accumulation_steps=1,
            managed_gradient_accumulation=False,  # backward accumulates, step() is the boundary
            gradient_clipping=optimizer.gradient_clip or 0.0,
            zero_allow_untested_optimizer=True,
            # torch's fused AdamW runs on offloaded states; DeepSpeed's own is compiled on the spot.
            zero_force_ds_cpu_optimizer=False,
            steps_per_print=10**12,
            # It would wait for the device twice a step, and twice more for each micro batch.
            timers={"throughput": {"enabled": False}},
        )
        if optimizer.kind == "muon" and self.zero_stage > 1:
            # ZeRO 3 refuses both. ZeRO 2 in bf16 loses the gradients of the biases whose bucket
            # slice lies before a Muon matrix's (DeepSpeed 0.19.8 merges the two slices); without
            # it the same all-reduce runs, and nothing is merged.
            config["zero_optimization"]["reduce_scatter"] = False
        if precision == "bf16":
            # Each gradient goes to fp32 inside the backward pass, where the device hides it.
            config["bf16"] = {"enabled": True, "immediate_grad_update": True}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            config["communication_data_type"] = options.reduce_dtype
        return config

    def step(
        self,
        images: Images,
        text_ids: Tensor,
        keep_index: Tensor | None,
        *,
        learning_rate: float,
        objective_learning_rate: float,
        stop: bool = False,
        measure: bool = False,
    ) -> StepResult:
        """One optimizer step on this rank's part of the global batch. Collective.

        images (B, 3, H, W) in the engine's dtype, or what gives slices of them: with micro batches
        only one's pictures are there at a time. text_ids (B, T), keep_index (B, K) or None.
        Where the loss or the gradient is not finite on any rank, no rank updates anything: neither
        weights nor moments nor the objective; `skipped` says so, on every rank alike.
        stop: whether this rank was asked to stop; the answer tells every rank of it.
        measure: whether to tell what costs time to know: the gradient's norm, and this rank's
        seconds until the ranks first wait for one another. On all ranks alike.
        """
        self.stopwatch.start()
        if self.micro == len(images):
            features = self.engine(images[:], text_ids, keep_index)
            self.stopwatch.stop()
            result = self.objective.total(*features)
            found = agree(result, stop)
            if found.skipped is None:
                self.engine.backward(result.loss)
        else:
            found = self._two_passes(images, text_ids, keep_index, stop)
        if measure:
            found = replace(found, ready_s=self.stopwatch.read())
        if found.skipped is not None:
            return found
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        self.engine.step()
        # DeepSpeed skips an update whose gradient is not finite anywhere, without a word.
        applied = self.engine.was_step_applied()
        if not applied:
            self.objective.skip()
            return replace(found, skipped=_NO_GRADIENT)
        self.objective.step(objective_learning_rate)
        if self.average is not None:
            self.average.update()
        if not measure:  # the host would wait here until the optimizer is done
            return found
        return replace(found, grad_norm=self.norm.read())

    def _two_passes(
        self, images: Images, text_ids: Tensor, keep_index: Tensor | None, stop: bool
    ) -> StepResult:
        """Features of all chunks without a graph, the loss's gradient at them, then each chunk
        again with that gradient. The kept tokens are inputs, so both passes see the same.
        Without the second pass where the loss is not finite."""
        chunks = [slice(at, at + self.micro) for at in range(0, len(images), self.micro)]

        def forward(chunk: slice) -> tuple[Tensor, ...]:
            kept = None if keep_index is None else keep_index[chunk]
            return self.engine(images[chunk], text_ids[chunk], kept)

        with torch.no_grad():
            parts = [forward(chunk) for chunk in chunks]
        self.stopwatch.stop()
        cached = [torch.cat(column).requires_grad_() for column in zip(*parts, strict=True)]
        result = self.objective.total(*cached)
        found = agree(result, stop)
        if found.skipped is not None:
            return found
        result.loss.backward()
        for chunk in chunks:
            features = forward(chunk)
            gradients = [cache.grad[chunk] for cache in cached if cache.grad is not None]
            surrogate = torch.stack(
                [(f * g).sum() for f, g in zip(features, gradients, strict=True)]
            ).sum()
            self.engine.backward(surrogate)
        return found

    def full_weights(self) -> dict[str, Tensor]:
        """Every weight, whole, in fp32 on the CPU, from the optimizer's master copy. Collective:
        all ranks call it together."""
        return read_weights(self.engine, self.locked)

    def averaged_weights(self) -> dict[str, Tensor] | None:
        """The same of their moving average; None without engine.ema. Collective."""
        if self.average is None:
            return None
        with self.average.swapped_in():
            return read_weights(self.engine, self.locked)

    def training_state(self) -> dict[str, Tensor]:
        """This rank's share of all that a resume needs, by name, copied to host memory: fp32
        masters, moments, averages, and on rank 0 the objective's. Collective."""
        averages = {} if self.average is None else self.average.of_masters
        state = read_state(self.engine, self.runtime.device, self.locked, averages)
        return {**state, **read_objective(self.objective)} if self.runtime.is_main else state

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from all ranks' shares together, of any number of ranks and any ZeRO stage, before
        the first step. Collective."""
        averages = {} if self.average is None else self.average.of_masters
        load_state(self.engine, state, averages)
        if self.average is not None:
            self.average.updates = int(state[STEP])
        self.locked = load_locked(self.engine, state, self.locked)
        load_objective(self.objective, state)

    def close(self) -> None:
        """Give back what the engine holds, before the next stage builds its own."""
        self.engine.destroy()
        # ZeRO 3 replaces it for the whole process, by one that rounds a bf16 bias apart.
        torch.nn.functional.linear = _LINEAR
        forget_compiled()


def _optimizer(
    model: CLIP, options: OptimizerOptions, layer_decay: float | None
) -> torch.optim.Optimizer:
    groups = parameter_groups(model, options, layer_decay)
    if options.kind == "muon":
        # Given as a client optimizer, so that our decay groups reach it; ZeRO orthogonalises
        # each matrix before it is partitioned because the class is DeepSpeed's own.
        return MuonWithAuxAdam(groups)
    return torch.optim.AdamW(groups, fused=True)
