"""Evaluate an export or a finished stage of a run, on the recipe's sets or others, on any ranks.

python -m pretrain.evaluate --model runs/demo [--stage full] [--image_px 64] [--text_tokens 24]
python -m pretrain.evaluate --model EXPORT --classification.images DIR --classification.classes FILE
python -m pretrain.evaluate --model EXPORT --probe.train DIR --probe.test DIR
python -m pretrain.evaluate --model M --abilities true --tokens.image_px [32,64] --tokens.plot F.svg
python -m pretrain.evaluate --watch runs/demo    # each checkpoint, while another job trains
"""

from collections.abc import Sequence

from pretrain.cli import Command, end, run

EVALUATE = Command(
    program="python -m pretrain.evaluate",
    description="Judge a trained model by retrieval, zero-shot accuracy and other tasks, with "
    "chance beside each figure.",
    run="pretrain.evaluation_command:evaluate",
    options=("pretrain.evaluation.options:EvaluateOptions",),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where the request cannot be met."""
    return run(EVALUATE, arguments)


if __name__ == "__main__":
    end(main())
