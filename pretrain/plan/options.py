"""On what a recipe is to run, or what may be spent."""

import dataclasses
from dataclasses import dataclass, replace

from pretrain.base.checks import check_positive
from pretrain.plan.hardware import HARDWARE, Links, Machine, hardware_name


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """On what a recipe is to run, or what may be spent."""

    gpus: int = 8
    """GPUs of a node (of cpu: cores)."""
    nodes: int = 1
    """Nodes."""
    gpu: str = "h100"
    """Kind of GPU, in any case: h100, h200, a100-80g (or a100), a100-40g, l40s, rtx4090, cpu."""
    gpu_memory_gib: float | None = None
    """Memory of a GPU, where it is not the usual one."""
    hfu: float | None = None
    """Share of the GPU's peak over all FLOPs executed; by default what was published for it."""
    gpu_link_gb_per_s: float | None = None
    """Link of a GPU to its neighbours in GB/s, one direction; by default NVLink's or PCIe's."""
    node_link_gb_per_s: float = 50.0
    """One network adapter of a node in GB/s, one direction (400 Gb/s: 50)."""
    node_adapters: int | None = None
    """Network adapters of a node; by default one a GPU where NVLink joins these, else one."""
    price_per_gpu_hour: float | None = None
    """USD for a GPU-hour."""
    dataset_samples: int | None = None
    """Samples of the dataset, for lengths in epochs and for the disk. The disk's default: those of
    the data that the recipe's published figure was made on."""
    vocab_size: int = 49408
    """Rows of the token embedding (CLIP's BPE by default; a dataset's own is in its manifest)."""
    days: float | None = None
    """Without --config: rank the recipes that take at most so many days."""
    cost: float | None = None
    """Without --config: rank the recipes that cost at most so many USD."""

    def __post_init__(self) -> None:
        check_positive(
            {f"--{f.name}": getattr(self, f.name) for f in dataclasses.fields(self)
             if f.name not in ("gpu", "hfu")}
        )  # fmt: skip
        hardware_name(self.gpu)
        if self.hfu is not None and not 0 < self.hfu <= 1:
            raise ValueError(f"--hfu {self.hfu}: a share of the peak, above 0 and at most 1")

    @property
    def price(self) -> float | None:
        known = HARDWARE[hardware_name(self.gpu)].price_per_hour
        return known if self.price_per_gpu_hour is None else self.price_per_gpu_hour

    def machine(self) -> Machine:
        name = hardware_name(self.gpu)
        hardware = HARDWARE[name]
        if self.gpu_memory_gib is not None:
            hardware = replace(hardware, memory_gib=self.gpu_memory_gib)
        if name == "cpu":  # the cores of a machine share its memory: one rank
            hardware = replace(
                hardware,
                peak_tflops=hardware.peak_tflops * self.gpus,
                fp32_tflops=hardware.fp32_tflops * self.gpus,
                memory_gib=self.gpu_memory_gib or hardware.memory_gib * self.gpus,
            )
        nvlink = hardware.link_gb_per_s >= 300
        adapters = self.node_adapters or (self.gpus if nvlink else 1)
        return Machine(
            name=name,
            hardware=hardware,
            ranks=self.nodes if name == "cpu" else self.gpus * self.nodes,
            nodes=self.nodes,
            hfu=hardware.hfu if self.hfu is None else self.hfu,
            links=Links(
                gpu_gb_per_s=self.gpu_link_gb_per_s or hardware.link_gb_per_s,
                node_gb_per_s=self.node_link_gb_per_s * adapters,
            ),
        )
