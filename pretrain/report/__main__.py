"""`python -m pretrain.report RUN`: writes RUN/report.html from the run folder.

`python -m pretrain.report RUN RUN... --out PAGE.html` compares several on one page.
"""

from collections.abc import Sequence

from pretrain.cli import Command, Positional, end, run

REPORT = Command(
    program="python -m pretrain.report",
    description="One page that tells a run's story.",
    run="pretrain.report.command:write_report",
    options=("pretrain.report.options:ReportOptions",),
    positionals=(
        Positional(name="runs", help="Run folder; several are compared on one page.", many=True),
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 where there is no run to report on."""
    return run(REPORT, arguments)


if __name__ == "__main__":
    end(main())
