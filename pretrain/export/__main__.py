"""`python -m pretrain.export`."""

from collections.abc import Sequence

from pretrain.cli import Command, end, run

EXPORT = Command(
    program="python -m pretrain.export",
    description="Export a trained model, and compare what the folder gives with the run's own "
    "weights.",
    run="pretrain.export.command:export_run",
    options=("pretrain.export.options:ExportOptions",),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the export cannot be made or is not what was trained."""
    return run(EXPORT, arguments)


if __name__ == "__main__":
    end(main())
