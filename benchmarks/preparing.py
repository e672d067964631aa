"""Bytes in, shards out: `data_prep build` beside img2dataset's resizer and WebDataset writer.

    python -m venv OTHER && OTHER/bin/pip install -r requirements-download.txt
    python -m benchmarks.preparing --img2dataset OTHER/bin/python [--pictures FOLDER]

The same JPEGs, which lie in memory or a Parquet file, on one core each, in turn, ROUNDS times. What
is counted is CPU seconds, children included, without what both spend on starting. Ours cleans and
tokenizes captions, hashes, checks and re-reads what it writes; theirs resizes, encodes and writes.
img2dataset has one size a pass: two tiers are two passes. Rows go to results/preparing.json.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image

from benchmarks.machine import this_machine
from benchmarks.photographs import photographs, write_parquet
from benchmarks.usage import Usage, used_by
from data_prep.pictures.limits import PictureOptions, parse_tiers
from data_prep.pictures.tiers import encode, shrink, store
from pretrain.base.files import write_durably

RESULTS = Path(__file__).parent / "results/preparing.json"
ROUNDS, COUNT, REPEATS = 3, 1000, 20
CASES = ("160:90", "160:90,320:90", "160:90,full:95")

THEIRS = """
import io, json, resource, sys, tempfile
import pyarrow as pa, pyarrow.parquet as pq
from img2dataset.resizer import Resizer
from img2dataset.writer import WebDatasetSampleWriter
rows = pq.read_table(sys.argv[1]).to_pylist()
def used():
    one = resource.getrusage(resource.RUSAGE_SELF)
    return one.ru_utime + one.ru_stime
schema = pa.schema([("key", pa.string()), ("width", pa.int32()), ("height", pa.int32())])
begin = used()
for name in json.loads(sys.argv[2]):
    if name == "full":
        resizer = Resizer(256, "no", False, encode_quality=95)
    else:
        resizer = Resizer(int(name), "keep_ratio", True, encode_quality=90)
    with tempfile.TemporaryDirectory() as folder:
        writer = WebDatasetSampleWriter(0, folder, True, 5, schema, "jpg")
        for number, row in enumerate(rows):
            data, width, height, _, _, error = resizer(io.BytesIO(row["image"]))
            assert error is None, error
            meta = {"key": str(number), "width": width, "height": height}
            writer.write(data, str(number), row["caption"], meta)
        writer.close()
print(used() - begin)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One set of tiers; images per CPU second are medians, their ratio a median over rounds."""

    tiers: str
    ours: float
    img2dataset: float
    ratio: float
    psnr_db: dict[str, float]  # median, of a tier to the same of the whole picture
    psnr_db_p5: dict[str, float]
    two_workers: float  # wall-clock of one worker over that of two, of `repeats` times the pictures
    peak_mib: float  # of the largest process, with two workers


def ours(source: Path, tiers: str, workers: int) -> Usage:
    """Of a build."""
    with tempfile.TemporaryDirectory() as out:
        words = ["build", "--source", str(source), "--out", out + "/set", "--tiers", tiers]
        words += ["--tagger", "none", "--vocab-size", "300", "--byte-fallback", "false"]
        words += ["--workers", str(workers), "--shard-samples", "1000"]
        return used_by([sys.executable, "-m", "data_prep", *words])


def theirs(python: Path, source: Path, tiers: str) -> float:
    """CPU seconds of img2dataset's part."""
    names = json.dumps([tier.name for tier in parse_tiers(tiers)])
    done = subprocess.run(
        [python, "-c", THEIRS, str(source), names], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def quality(pictures: list[bytes], tiers: str) -> tuple[dict[str, float], dict[str, float]]:
    """(median, 5th percentile) PSNR in dB of what is stored, by tier, to what the whole picture
    gives under the same encoding; `full` to the original."""
    found: dict[str, list[float]] = {}
    for jpeg in pictures:
        stored = store(jpeg, PictureOptions(), parse_tiers(tiers))
        whole = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        for name, file in stored.files.items():
            made = Image.open(io.BytesIO(file))
            wanted: Any = whole
            if name != "full":  # the whole picture, by the same filter and encoder
                resized = shrink(whole, made.size, whole.shape[1::-1])
                [tier] = (tier for tier in parse_tiers(tiers) if tier.name == name)
                wanted = Image.open(io.BytesIO(encode(resized, tier)))
            error = (np.asarray(made, float) - np.asarray(wanted, float)) ** 2
            found.setdefault(name, []).append(10 * np.log10(255**2 / max(error.mean(), 1e-9)))
    return tuple(  # type: ignore[return-value]
        {name: round(float(np.percentile(all_of_it, p)), 1) for name, all_of_it in found.items()}
        for p in (50, 5)
    )


def measured(python: Path, source: Path, tiers: str, rounds: int, repeats: int) -> Row:
    table = pl.read_parquet(source)
    few = source.with_name("few.parquet")
    table.head(20).write_parquet(few)
    ours_s, theirs_s = [], []
    for _ in range(rounds):
        start = ours(few, tiers, 1)  # what a build of next to nothing costs
        ours_s.append(ours(source, tiers, 1).cpu_s - start.cpu_s)
        theirs_s.append(theirs(python, source, tiers))
    many = source.with_name("many.parquet")
    caption = pl.col("caption")
    pl.concat([table.with_columns(caption + f" {n}") for n in range(repeats)]).write_parquet(many)
    one, two = (ours(many, tiers, workers) for workers in (1, 2))
    count = len(table)
    median, low = quality(table["image"].to_list()[:200], tiers)
    return Row(
        tiers=tiers,
        ours=round((count - 20) / statistics.median(ours_s), 1),
        img2dataset=round(count / statistics.median(theirs_s), 1),
        ratio=round(
            statistics.median(
                (count - 20) / a / (count / b) for a, b in zip(ours_s, theirs_s, strict=True)
            ),
            2,
        ),
        psnr_db=median,
        psnr_db_p5=low,
        two_workers=round(one.wall_s / two.wall_s, 2),
        peak_mib=round(two.peak_mib),
    )


def main() -> None:
    """Measure every set of tiers and write the rows."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--img2dataset", type=Path, required=True, help="a Python that has it")
    options.add_argument("--pictures", type=Path, help="take crops of a folder's JPEGs")
    options.add_argument("--count", type=int, default=COUNT)
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--repeats", type=int, default=REPEATS)
    options.add_argument("--tiers", nargs="+", default=CASES)
    options.add_argument("--out", type=Path, default=RESULTS)
    chosen = options.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pictures.parquet"
        pictures = photographs(chosen.count, folder=chosen.pictures)
        write_parquet(pictures, source)
        for tiers in chosen.tiers:
            rows.append(
                asdict(measured(chosen.img2dataset, source, tiers, chosen.rounds, chosen.repeats))
            )
            print(json.dumps(rows[-1]), flush=True)
            result = {
                "machine": this_machine(ranks=1),
                "date": date.today().isoformat(),
                "pictures": len(pictures),
                "repeats": chosen.repeats,
                "mean_bytes": round(sum(len(jpeg) for jpeg, _ in pictures) / len(pictures)),
                "rows": rows,
            }
            write_durably(chosen.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
