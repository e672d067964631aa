"""Convert a checkpoint of open_clip or transformers into an exported folder of this package.

python -m pretrain.convert SOURCE OUT
"""

from pathlib import Path

from jsonargparse import auto_cli

from pretrain.base.faults import one_line_faults
from pretrain.export.importing import convert


def main(source: Path, out: Path) -> None:
    """Convert a foreign model, and compare its embeddings with its own library's.

    Args:
        source: Folder of an open_clip model (open_clip_config.json) or of a transformers CLIPModel
            or SiglipModel.
        out: Folder to write; `evaluate --model`, `start.export` and `pretrain.load` read it.
    """
    with one_line_faults():
        difference, notes = convert(source, out)
    for note in notes:
        print(f"note: {note}")
    print(f"converted {source} to {out}; largest difference {difference:.1e}")


if __name__ == "__main__":
    auto_cli(main)
