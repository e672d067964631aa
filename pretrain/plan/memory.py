"""Memory of one rank, part by part: what ZeRO divides, and what a batch adds.

P parameters, N ranks, A bytes of a weight (2 in bf16, 4 in fp32). As DeepSpeed 0.19.8 holds them:

    ZeRO   weights  gradients          optimizer
    1      A P      bf16: (4 + 2) P    (4 P + moments) / N
                    fp32: 4 P + 4 P/N
    2      A P      (A + 4) P/N        the same          2 P + 18 P/N of DeepSpeed's own estimate
    3      A P/N    4 P/N              the same          18 P/N of DeepSpeed's own estimate

Moments are 8 bytes a parameter, 4 for Muon's matrices; engine.ema adds 4 P/N. ZeRO 1 in bf16
keeps a whole fp32 gradient beside the bf16 one (its BF16_Optimizer), so ZeRO 2 is the smaller one
by far.
"""

from dataclasses import dataclass
from typing import Any

from pretrain.engine.ds_config import offloads_optimizer, zero_stage
from pretrain.engine.optimizers import parameter_groups
from pretrain.engine.options import OptimizerOptions, TowerName
from pretrain.models.clip import CLIP
from pretrain.models.options import ImageTowerOptions, ModelOptions, TextTowerOptions

# Of Muon's AdamW for all but the matrices, which is not fused: both moments corrected, the root and
# the update, each as large as what it updates. A fused AdamW has none.
_MUON_TEMPORARIES = 4
# DeepSpeed's defaults for what a JSON leaves out, in elements.
_REDUCE_BUCKET, _MAX_LIVE = 500_000_000, 1_000_000_000
# Columns of the global batch whose fp32 logits exist at a time; product, softmax and gradient do.
_LOGIT_COLUMNS, _LOGIT_COPIES = 4096, 3


@dataclass(frozen=True, kw_only=True)
class ZeroLayout:
    """What a DeepSpeed JSON says of memory."""

    stage: int
    offload_optimizer: bool = False
    offload_weights: bool = False
    reduce_bucket: int = _REDUCE_BUCKET
    buckets: int = 1
    max_live: int = _MAX_LIVE

    @classmethod
    def of(cls, config: dict[str, Any]) -> "ZeroLayout":
        zero = config["zero_optimization"]
        return cls(
            stage=zero_stage(config),
            offload_optimizer=offloads_optimizer(config),
            offload_weights=(zero.get("offload_param") or {}).get("device") == "cpu",
            reduce_bucket=int(zero.get("reduce_bucket_size", _REDUCE_BUCKET)),
            buckets=1 + bool(zero.get("overlap_comm")),
            max_live=int(zero.get("stage3_max_live_parameters", _MAX_LIVE)),
        )


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank: fixed parts by name, each sample of a micro batch, and host memory."""

    fixed: dict[str, int]
    per_sample: int
    host: int

    def total(self, micro: int) -> int:
        return sum(self.fixed.values()) + micro * self.per_sample

    def largest_micro(self, room: int, local: int) -> int | None:
        """The largest divisor of the local batch that fits into `room` bytes; None if none does."""
        fitting = [m for m in _divisors(local) if self.total(m) <= room]
        return max(fitting, default=None)


def moment_bytes(model: CLIP, options: OptimizerOptions) -> int:
    """Of the optimizer's moments of a whole model, in fp32."""
    return sum(
        (4 if group.get("use_muon") else 8) * parameter.numel()
        for group in parameter_groups(model, options)
        for parameter in group["params"]
    )


def temporary_bytes(model: CLIP, options: OptimizerOptions, ranks: int) -> int:
    """Of an optimizer's step on one rank, in fp32: it goes group by group."""
    if options.kind != "muon":
        return 0
    groups = [group for group in parameter_groups(model, options) if not group["use_muon"]]
    largest = max(sum(p.numel() for p in group["params"]) for group in groups)
    return _MUON_TEMPORARIES * 4 * -(-largest // ranks)


def states(
    layout: ZeroLayout,
    *,
    parameters: int,
    moments: int,
    ranks: int,
    weight_bytes: int,
    locked: int = 0,
    averages: bool = False,
) -> tuple[dict[str, int], int]:
    """(bytes on the device by part, bytes in host memory) of a rank's weights, gradients, optimizer
    states and DeepSpeed's buckets. locked: how many of the parameters are not trained: these have
    no gradient and no state, and the engine keeps them whole in fp32 in host memory. averages:
    whether a moving average of the masters is kept beside them."""
    weights = weight_bytes * (-(-parameters // ranks) if layout.stage == 3 else parameters)
    whole = parameters - locked
    part = -(-whole // ranks)
    optimizer = 4 * part * (1 + averages) + moments // ranks
    divided = 4 * part  # the fp32 gradient of what this rank updates
    if layout.stage == 1:
        flowing = weight_bytes * whole
        divided = 4 * whole if weight_bytes == 2 and not layout.offload_optimizer else divided
    else:
        flowing = weight_bytes * part if layout.stage == 2 else 0
    host = 4 * locked
    if layout.offload_optimizer:
        host += optimizer + divided
        optimizer = divided = 0
    if layout.offload_weights:
        host += weights
        weights = 0
    parts = {"weights": weights, "gradients": flowing + divided, "optimizer": optimizer}
    if layout.stage == 3:
        parts["gathered weights"] = weight_bytes * min(parameters, layout.max_live)
    # ZeRO 1 in bf16 flattens what it reduces into a bucket; the others allocate the bucket whole.
    flattens = layout.stage == 1 and weight_bytes == 2
    bucket = min(layout.reduce_bucket, whole) if flattens else layout.reduce_bucket
    parts["buckets"] = weight_bytes * bucket * layout.buckets
    return parts, host


@dataclass(frozen=True, kw_only=True)
class TowerActivations:
    """Bytes of one sample that a tower keeps for its backward pass."""

    block: int  # all that one block keeps
    blocks: int
    token: int  # one tensor of the tower's width over the sequence: a block's input
    passing: int  # gradients inside one block, while it is differentiated

    def kept(self, every: int | None) -> int:
        """At the start of the backward pass, where every k-th block is recomputed; the last norm's
        input is one more."""
        if every is None:
            return self.blocks * self.block + self.token
        recomputed = -(-self.blocks // every)
        kept = (self.blocks - recomputed) * self.block
        return kept + (recomputed + 1) * self.token + self.block


def tower_activations(
    tower: ImageTowerOptions | TextTowerOptions,
    *,
    seq_len: int,
    weight_bytes: int,
    explicit_attention: bool,
) -> TowerActivations:
    """A block keeps, for each token: the inputs of both norms, of the q, k, v projections, of the
    output projection and of the MLP, and q, k and v (8 D); the GELU's input and output (2 H); two
    fp32 numbers a norm; and of attention a log-sum-exp a head, or, explicit, its softmax."""
    hidden = int(tower.width * tower.mlp_ratio)
    attention = 4 * tower.heads
    if explicit_attention:
        attention = tower.heads * seq_len * weight_bytes
    return TowerActivations(
        block=seq_len * (weight_bytes * (8 * tower.width + 2 * hidden) + 16 + attention),
        blocks=tower.depth,
        token=seq_len * weight_bytes * tower.width,
        passing=seq_len * weight_bytes * 2 * (tower.width + hidden),
    )


def packed_bytes(text: TextTowerOptions, *, weight_bytes: int, recompute: int | None) -> int:
    """Of the text tower's weights of q, k and v, which each block joins to one matrix and keeps for
    its backward pass; of the blocks that are recomputed, one at a time."""
    recomputed = -(-text.depth // recompute) if recompute else 0
    return (text.depth - recomputed + bool(recomputed)) * 3 * text.width**2 * weight_bytes


def sample_bytes(
    model: ModelOptions,
    *,
    kept: int,
    text_tokens: int,
    weight_bytes: int,
    explicit_attention: bool,
    recompute_image: int | None,
    recompute_text: int | None,
    locked: TowerName | None = None,
    classes: int = 0,
) -> int:
    """Bytes of activations that each sample of a micro batch adds to the peak, with the copy of its
    `kept` patches. A locked tower keeps none; what one of its blocks passes on is taken as large as
    its gradients would be. classes: ids of a caption classifier: its logits in fp32, and four times
    as much where it is differentiated.
    """
    image = tower_activations(
        model.image,
        seq_len=model.image.seq_len(kept),
        weight_bytes=weight_bytes,
        explicit_attention=explicit_attention,
    )
    text = tower_activations(
        model.text,
        seq_len=text_tokens,
        weight_bytes=weight_bytes,
        explicit_attention=explicit_attention,
    )
    patches = kept * 3 * model.image.patch_px**2 * weight_bytes
    held = 0 if locked == "image" else patches + image.kept(recompute_image)
    held += 0 if locked == "text" else text.kept(recompute_text)
    return held + max(image.passing, text.passing) + 5 * 4 * classes


def batch_bytes(
    model: ModelOptions, *, local: int, global_batch: int, image_px: int, weight_bytes: int
) -> dict[str, int]:
    """What a rank's whole batch holds, however it is cut into micro batches: pictures as uint8 and
    as the towers read them; features and their gradients, local and gathered, and a chunk of
    logits, in fp32."""
    features = 2 * model.embed_dim * 4
    logits = local * min(global_batch, _LOGIT_COLUMNS) * 4 * _LOGIT_COPIES
    return {
        "pictures": local * 3 * image_px**2 * (1 + weight_bytes),
        "loss": 2 * features * (local + global_batch) + logits,
    }


def _divisors(number: int) -> list[int]:
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})
