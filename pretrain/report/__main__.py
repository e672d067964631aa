"""`python -m pretrain.report RUN`: writes RUN/report.html from the run folder.

`python -m pretrain.report RUN RUN... --out PAGE.html` compares several on one page.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from pretrain.base.files import write_durably
from pretrain.base.run_files import REPORT_FILE
from pretrain.report.comparison import read_comparison
from pretrain.report.page import render, render_several
from pretrain.report.run_folder import read_run
from pretrain.report.several import MOST


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Which run to report on."""

    run_dir: Path | None = None
    """Run folder; the same as one RUN."""
    comparison: Path | None = None
    """Comparison file (rows of other trainings, as benchmarks write it) to show beside the run."""
    out: Path | None = None
    """Page to write; by default report.html in the run folder. Several runs need it."""


def write_report(options: ReportOptions, runs: tuple[Path, ...] = ()) -> Path:
    """Write the report of one run, or of several on one page, and return its path. A folder without
    a run is an error."""
    runs = (*([] if options.run_dir is None else [options.run_dir]), *runs)
    if not 1 <= len(runs) <= MOST:
        raise ValueError(f"{len(runs)} run folders: give RUN, or up to {MOST} to compare them")
    if len(runs) > 1 and (options.out is None or options.comparison is not None):
        raise ValueError("several runs are compared on one page: give --out, and no --comparison")
    read = [read_run(folder) for folder in runs]
    path = options.out or runs[0] / REPORT_FILE
    if len(read) > 1:
        page = render_several(read)
    else:
        file = options.comparison
        page = render(read[0], None if file is None else read_comparison(file))
    # A record may hold half of a surrogate pair, which is valid JSON but no text.
    write_durably(path, page.encode("utf-8", errors="replace"))
    return path


def main(arguments: list[str] | None = None) -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="pretrain.report",
        description="One page that tells a run's story.",
        exit_on_error=False,
    )
    parser.add_argument("runs", nargs="*", help="Run folder; several are compared on one page.")
    parser.add_class_arguments(ReportOptions, as_group=False)
    try:
        parsed = parser.parse_args(arguments)
        options = ReportOptions(
            run_dir=parsed.run_dir, comparison=parsed.comparison, out=parsed.out
        )
        print(write_report(options, tuple(map(Path, parsed.runs or ()))))
    except (argparse.ArgumentError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
