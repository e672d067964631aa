"""Average the weights of models of one shape, into an exported folder.

python -m pretrain.average A B --out AVERAGE --alpha 0.5
python -m pretrain.average RUN/checkpoints/step-* --out AVERAGE
"""

from collections.abc import Sequence

from pretrain.cli import Command, Positional, end, run

AVERAGE = Command(
    program="python -m pretrain.average",
    description="Average the weights of models of one shape: two by alpha, or several alike.",
    run="pretrain.export.average:average_models",
    options=("pretrain.export.options:AverageOptions",),
    positionals=(
        Positional(
            name="models",
            help="Exported folders, run folders (their last stage), or checkpoints of runs "
            "(RUN/checkpoints/step-N).",
            many=True,
        ),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the models cannot be averaged."""
    return run(AVERAGE, arguments)


if __name__ == "__main__":
    end(main())
