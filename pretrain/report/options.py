"""What a report shows, and where it goes."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What is shown."""

    run_dir: Path | None = None
    """Run folder; the same as one RUN."""
    out: Path | None = None
    """Page to write; by default report.html in the run folder. Several runs need it."""
