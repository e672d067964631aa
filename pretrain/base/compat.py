"""Small steps that let the pinned packages work together on every kind of machine."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEEP_ALIVE: list[object] = []  # a torch Library undoes its definitions when it is collected


def make_torchvision_importable() -> str:
    """Let `import torchvision` (and so timm) work beside a CPU build of torch.

    The package index has torchvision only as a CUDA build: beside a CPU torch its C++ library
    does not load, and it stops at import because two operator schemas are missing. Where the
    library loads (a CUDA machine) nothing is changed. Returns what was done: "absent",
    "already imported", "native" or "declared".
    """
    import torch

    if "torchvision" in sys.modules or _KEEP_ALIVE:
        return "already imported"
    spec = importlib.util.find_spec("torchvision")  # does not run torchvision
    if spec is None or spec.origin is None:
        return "absent"
    try:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(library))
            return "native"
    except OSError:
        pass  # built for CUDA libraries that are not here
    schemas = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        schemas.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP_ALIVE.append(schemas)
    return "declared"


def tell_deepspeed_the_device() -> None:
    """Name the CPU to DeepSpeed where there is no CUDA device, instead of letting it guess and
    warn. To be called before deepspeed is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next step's, on Linux.

    By default it gives large blocks back to the kernel at once, and every step's activations
    fault their pages in anew: a fifth of a CPU training step. A no-op without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
