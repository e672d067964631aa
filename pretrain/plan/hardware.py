"""Accelerators as data: peak, memory, power, and the share of the peak that CLIP training reaches.

Peaks are dense bf16 with fp32 accumulation, and fp32 without TF32, from the vendors' data sheets:
NVIDIA H100 SXM and H200 SXM (989.4, 67), A100 (312, 19.5), L40S (362 without sparsity, 91.6),
RTX 4090 (165.2, 82.6; Ada whitepaper).
Watts are the boards' limits. A data sheet's GB of an HBM board is what the driver shows in GiB.

Shares of the peak, over all FLOPs executed:
  a100  0.33  CLIPA's published A100-hours (arXiv 2305.07017, its README) are 17-28 % over three
              forwards a sample; they recompute activations, so a third more is executed.
  h100  0.20  NeMo's published CLIP g/14, 117 images/s a GPU: 204 TFLOP/s. A fork of open_clip
              (arXiv 2604.27932, B/16 at 112 px) reaches 9 %: a share is a wish until measured.
  h200  0.29  this code, B/16 at 112 px, 2,048 samples a rank, not compiled (docs/speed.md).
  l40s, rtx4090: nothing is published for CLIP; the H100's share is assumed.
  cpu   0.45  the demo's reduced stage: 2,098 images/s on two cores, bf16.
"""

from dataclasses import dataclass

from pretrain.engine.options import TrainedIn

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One accelerator."""

    peak_tflops: float  # dense bf16
    fp32_tflops: float
    memory_gib: float
    hfu: float  # default share of the peak
    link_gb_per_s: float  # to its neighbours in a node, one direction
    price_per_hour: float | None = None  # USD, where a published one is at hand
    marks: tuple[str, ...] = ()  # words of its device name

    def tflops(self, precision: TrainedIn) -> float:
        """Peak of matrix products in bf16 (autocast too) or fp32."""
        return self.fp32_tflops if precision == "fp32" else self.peak_tflops

    def loss_tflops(self, precision: TrainedIn) -> float:
        """Peak of the loss's products: TF32, half of bf16's, or fp32 where that is asked for."""
        return self.fp32_tflops if precision == "fp32" else self.peak_tflops / 2


# A100: USD 1.575 an hour is the price that CLIPA-v2's cost table is reckoned with.
# Links: NVLink 4 450 GB/s, NVLink 3 300 GB/s, PCIe 4 x16 32 GB/s, each in one direction.
HARDWARE = {
    "h100": Hardware(
        peak_tflops=989.4, fp32_tflops=67, memory_gib=80, hfu=0.20, link_gb_per_s=450,
        marks=("H100",)
    ),
    "h200": Hardware(
        peak_tflops=989.4, fp32_tflops=67, memory_gib=141, hfu=0.29, link_gb_per_s=450,
        marks=("H200",)
    ),
    "a100-80g": Hardware(
        peak_tflops=312, fp32_tflops=19.5, memory_gib=80, hfu=0.33, link_gb_per_s=300,
        price_per_hour=1.575, marks=("A100", "80GB"),
    ),
    "a100-40g": Hardware(
        peak_tflops=312, fp32_tflops=19.5, memory_gib=40, hfu=0.33, link_gb_per_s=300,
        price_per_hour=1.575, marks=("A100",),
    ),
    "l40s": Hardware(
        peak_tflops=362, fp32_tflops=91.6, memory_gib=48, hfu=0.20, link_gb_per_s=32,
        marks=("L40S",)
    ),
    "rtx4090": Hardware(
        peak_tflops=165.2, fp32_tflops=82.6, memory_gib=24, hfu=0.20, link_gb_per_s=32,
        marks=("4090",)
    ),
    # One core of a server CPU: 64 bf16 FLOP a cycle (one AVX512-BF16 instruction) at 3.5 GHz, with
    # its share of a 2 GiB-a-core machine's memory; 32 fp32 FLOP a cycle.
    "cpu": Hardware(peak_tflops=0.224, fp32_tflops=0.112, memory_gib=2, hfu=0.45, link_gb_per_s=10),
}  # fmt: skip


# What people call them too.
_ALIASES = {"a100": "a100-80g", "h100-80g": "h100", "h200-141g": "h200", "4090": "rtx4090"}


def hardware_name(asked: str) -> str:
    """The name in HARDWARE of a kind of GPU, in any case. ValueError lists those that are known."""
    name = asked.lower()
    name = _ALIASES.get(name, name)
    if name not in HARDWARE:
        raise ValueError(f"--gpu {asked}: choose one of {', '.join(HARDWARE)}")
    return name


def hardware_of_device(device_name: str) -> str | None:
    """Which accelerator torch.cuda.get_device_name() names; None for one that is not listed."""
    for name, hardware in HARDWARE.items():
        if hardware.marks and all(mark in device_name for mark in hardware.marks):
            return name
    return None


@dataclass(frozen=True, kw_only=True)
class Links:
    """Speeds of one direction: a GPU to its neighbours, and a node to the others."""

    gpu_gb_per_s: float
    node_gb_per_s: float


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains."""

    name: str
    hardware: Hardware
    ranks: int
    nodes: int
    hfu: float
    links: Links

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"
