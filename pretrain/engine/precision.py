"""The precision of training: asked for, and what it means on this machine."""

import torch

from pretrain.engine.options import Precision, TrainedIn


def resolve_precision(asked: Precision, device: torch.device) -> TrainedIn:
    """auto is bf16 where the machine computes in it, fp32 elsewhere (where bf16 is emulated)."""
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if has_bf16 else "fp32"
