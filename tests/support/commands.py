"""Commands as functions, with their options by name."""

from typing import Any

from pretrain.base.faults import one_line_faults


def export(**options: Any) -> None:
    """`python -m pretrain.export`."""
    from pretrain.export.command import export_run
    from pretrain.export.options import ExportOptions

    with one_line_faults():
        export_run(ExportOptions(**options))


def evaluate(**options: Any) -> None:
    """`python -m pretrain.evaluate`."""
    from pretrain.evaluation.options import EvaluateOptions
    from pretrain.evaluation_command import evaluate

    with one_line_faults():
        evaluate(EvaluateOptions(**options))
