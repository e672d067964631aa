"""Convert a checkpoint of open_clip or transformers into an exported folder of this package.

python -m pretrain.convert SOURCE OUT
python -m pretrain.convert epoch_32.pt OUT --open-clip-name ViT-B-16
"""

from collections.abc import Sequence

from pretrain.cli import Command, Positional, end, run

CONVERT = Command(
    program="python -m pretrain.convert",
    description="Convert a foreign model, and compare its embeddings with its own library's.",
    run="pretrain.export.importing:convert_source",
    options=("pretrain.export.options:ConvertOptions",),
    positionals=(
        Positional(
            name="source",
            help="Folder of an open_clip model (open_clip_config.json) or of a transformers "
            "CLIPModel or SiglipModel; or what open_clip's training writes, an epoch_N.pt.",
        ),
        Positional(
            name="out",
            help="Folder to write; `evaluate --model`, `start.export` and `pretrain.load` read it.",
        ),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the model cannot be converted."""
    return run(CONVERT, arguments)


if __name__ == "__main__":
    end(main())
