"""CLIP pretraining by CLIPA token reduction on DeepSpeed ZeRO."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.export.inference import Model

EXPORT_FOLDER = "export"  # of a run folder


def load(path: Path | str, *, device: str = "cpu", batch: int = 64) -> "Model":
    """A model that embeds, classifies and searches, of an exported folder or a run folder's.

    device: any of torch's names, or "auto": CUDA if there. batch: pictures or texts per forward.
    Raises ValueError or FileNotFoundError, one line that names the remedy, where the folder is not
    a whole export of this version.
    """
    from pretrain.base.run_files import METRICS_FILE
    from pretrain.export.inference import Model  # seconds of imports that nobody else pays for

    inside = Path(path) / EXPORT_FOLDER
    if not inside.is_dir() and (Path(path) / METRICS_FILE).is_file():
        raise FileNotFoundError(
            f"the run folder {path} has no export: make one with `python -m pretrain.export "
            f"--run_dir {path}`"
        )
    return Model(inside if inside.is_dir() else path, device=device, batch=batch)
