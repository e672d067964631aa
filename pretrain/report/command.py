"""The report: one page that tells a run's story, or lays several runs over one another."""

from collections.abc import Sequence
from pathlib import Path

from pretrain.base.files import write_durably
from pretrain.base.run_files import REPORT_FILE
from pretrain.report.options import ReportOptions
from pretrain.report.page import render, render_several
from pretrain.report.run_folder import read_run
from pretrain.report.several import MOST


def write_report(runs: Sequence[Path], options: ReportOptions) -> Path:
    """Write the report of one run, or of several on one page, and return its path.

    ValueError or FileNotFoundError for a folder without a run.
    """
    runs = [*([] if options.run_dir is None else [options.run_dir]), *runs]
    if not 1 <= len(runs) <= MOST:
        raise ValueError(f"{len(runs)} run folders: give RUN, or up to {MOST} to compare them")
    if len(runs) > 1 and options.out is None:
        raise ValueError("several runs are compared on one page: give --out")
    read = [read_run(folder) for folder in runs]
    path = options.out or runs[0] / REPORT_FILE
    page = render_several(read) if len(read) > 1 else render(read[0])
    # A record may hold half of a surrogate pair, which is valid JSON but no text.
    write_durably(path, page.encode("utf-8", errors="replace"))
    return path
