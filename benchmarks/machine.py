"""The machine that figures were measured on: what absolute times hold for."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from pretrain.engine.precision import resolve_precision


def this_machine(ranks: int) -> dict[str, Any]:
    """Processor, usable cores, bf16 or not, device, torch and the ranks (or threads) in use."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16": resolve_precision("auto", device) == "bf16",
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        "ranks": ranks,
    }


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    text = listing.read_text(encoding="utf-8") if listing.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1].strip() if model else platform.processor() or platform.machine()
