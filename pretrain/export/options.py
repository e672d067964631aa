"""What is exported, and how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.base.checks import check_local
from pretrain.engine.options import WeightsKind

Format = Literal["native", "transformers", "open_clip"]


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is exported, and how"""

    run_dir: Path
    """Run folder of a training run."""
    out: Path | None = None
    """Folder to write; by default RUN_DIR/export (open_clip: RUN_DIR/export_open_clip)."""
    stage: str | None = None
    """Stage whose weights to export; by default the recipe's last."""
    weights: WeightsKind = "plain"
    """plain, or ema: their moving average, of a run with engine.ema."""
    format: Format = "transformers"
    """native (for `pretrain.load`), transformers (native, and for AutoModel) or open_clip (for
    `open_clip.create_model_and_transforms("local-dir:FOLDER")`)."""
    onnx: bool = False
    """Write both towers as image.onnx and text.onnx too, judged by ONNX Runtime. Needs
    requirements-onnx.txt."""
    push_to_hub: str | None = None
    """Repository to upload the folder to, OWNER/NAME, made where there is none. The token is
    HF_TOKEN's or that of `hf auth login`."""
    private: bool = False
    """Make the repository private; one that is public already is refused."""

    def __post_init__(self) -> None:
        check_local({"--run_dir": self.run_dir, "--out": self.out})
        if self.private and self.push_to_hub is None:
            raise ValueError("--private true without --push_to_hub: give --push_to_hub OWNER/NAME")


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """How models are averaged"""

    out: Path
    """Folder to write, as `export --format native` does."""
    alpha: float | None = None
    """Of two models A and B: (1 - alpha) A + alpha B, from 0 to 1 (WiSE-FT: A before tuning, B
    after). By default all models count alike."""

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha {self.alpha}: give a number from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What a foreign model does not say of itself"""

    open_clip_name: str | None = None
    """Architecture of an epoch_N.pt, by the name that open_clip's training got as --model
    (ViT-B-16). Pictures are then normalised as open_clip does by default: by OpenAI's mean and
    std."""
