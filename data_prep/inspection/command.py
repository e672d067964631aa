"""One page to look at a dataset by: pictures with their captions, histograms, token reductions."""

from dataclasses import dataclass
from pathlib import Path

from data_prep.dataset_tasks import FarOptions
from data_prep.inspection.contact_sheet import pieces_of, read_shots
from data_prep.inspection.page import render
from data_prep.pool import PoolOptions
from data_prep.survey import survey
from pretrain.base.checks import check_positive
from pretrain.base.files import write_durably


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """What the page shows"""

    out: Path
    """HTML file to write; it needs nothing beside itself."""
    samples: int = 24
    """Pictures of the contact sheet, at equal distances."""
    count_samples: int | None = 100_000
    """Samples at equal distances whose sizes and caption lengths are counted. Null: all."""

    def __post_init__(self) -> None:
        check_positive({"--samples": self.samples, "--count-samples": self.count_samples})


def inspect(directory: Path, options: InspectOptions, pool: PoolOptions, far: FarOptions) -> str:
    """Write the page; returns a line that says where. ValueError or OSError name the remedy."""
    found = survey(directory, options.count_samples, pool, far.shards)
    assert not isinstance(found, str)  # it is no share
    manifest = found.manifest
    shots = read_shots(directory, manifest, options.samples, far.shards)
    write_durably(options.out, render(found, shots, pieces_of(directory, manifest)))
    return f"{options.out}: {len(shots)} of {manifest.samples:,} samples"
