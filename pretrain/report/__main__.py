"""`python -m pretrain.report --run_dir RUN`: writes RUN/report.html from the run folder."""

import sys
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import auto_cli, set_parsing_settings

from pretrain.files import write_durably
from pretrain.report.comparison import read_comparison
from pretrain.report.page import render
from pretrain.report.run_folder import read_run
from pretrain.run_folder import REPORT_FILE


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Which run to report on."""

    run_dir: Path
    """Run folder; report.html is written into it."""
    comparison: Path | None = None
    """Comparison file (rows of other trainings, as benchmarks write it) to show beside the run."""


def write_report(options: ReportOptions) -> Path:
    """Write the report of a run and return its path. A folder without a run is an error."""
    run = read_run(options.run_dir)
    comparison = None if options.comparison is None else read_comparison(options.comparison)
    path = options.run_dir / REPORT_FILE
    # A record may hold half of a surrogate pair, which is valid JSON but no text.
    write_durably(path, render(run, comparison).encode("utf-8", errors="replace"))
    return path


def main() -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    options = auto_cli(ReportOptions, as_positional=False)
    try:
        print(write_report(options))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
