"""Builds `emoji.parquet`, the demo corpus, from pinned npm packages; same inputs, same bytes.

    python docs/examples/demo_corpus/build_corpus.py --out data_prep/demo_corpus/emoji.parquet

Needs `npm` and `requirements.txt` of this folder. Fails, and writes nothing, if a near-identical
pair of drawings straddles the split or the file outgrows its limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl
from concepts import Concept, NameTable, read_concepts
from drawings import ARTISTS, ICONIFY, Artist, Pixels, decode, encode, load_drawings
from near_duplicates import features
from splits import Assignment, assign

PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "@lobehub/fluent-emoji-3d@1.1.0",
    "emojibase-data@17.0.0",
    "@iconify/json@2.2.535",
)
# Sets whose exact code-point map teaches the names that the sets without one use.
MAPPED_SETS = ("noto", "twemoji", "fluent-emoji-flat")
WEBP_QUALITY = 79
MAX_BYTES = 8_000_000


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One row before the split: who drew what."""

    artist: Artist
    concept: Concept
    pixels: Pixels


def install_packages(folder: Path) -> Path:
    """Install the pinned packages below a folder, running none of their scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"private": true}\n', "utf-8")
    flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--save-exact"]
    subprocess.run(["npm", "install", *flags, *PACKAGES], cwd=folder, check=True)
    return folder / "node_modules"


def check_packages(node_modules: Path) -> None:
    """Raise unless every package is there in its pinned version."""
    for package in PACKAGES:
        name, version = package.rsplit("@", 1)
        manifest = node_modules / name / "package.json"
        found = json.loads(manifest.read_text("utf-8"))["version"] if manifest.exists() else None
        if found != version:
            raise ValueError(
                f"{name} must be version {version}, found {found}: "
                "leave out --node-modules to install the pinned packages"
            )


def load_corpus(node_modules: Path) -> list[Drawing]:
    """Return every artist's drawings, sorted by code point, then artist."""
    concepts = read_concepts(node_modules / "emojibase-data")
    unicode_names = node_modules / "emojibase-data/meta/unicode-names.json"
    names = NameTable(
        concepts=concepts,
        mapped_sets=[
            json.loads((node_modules / ICONIFY / f"{name}.json").read_text("utf-8"))
            for name in MAPPED_SETS
        ],
        unicode_names=json.loads(unicode_names.read_text("utf-8")),
    )
    drawings = [
        Drawing(artist=artist, concept=concepts[key], pixels=pixels)
        for artist in ARTISTS
        for key, pixels in load_drawings(
            artist, node_modules=node_modules, concepts=concepts, names=names
        ).items()
    ]
    return sorted(drawings, key=lambda drawing: (drawing.concept.code_point, drawing.artist.name))


def tabulate(
    drawings: Sequence[Drawing], pictures: Sequence[bytes], assignment: Assignment
) -> pl.DataFrame:
    """Return the corpus as a table, without the drawings that the split dropped."""
    rows = [
        {
            "image": picture,
            "caption": drawing.concept.label,
            "keywords": ", ".join(drawing.concept.keywords),
            "group": drawing.concept.group,
            "subgroup": drawing.concept.subgroup,
            "artist": drawing.artist.name,
            "code_point": drawing.concept.code_point,
            "licence": drawing.artist.licence,
            "split": split,
        }
        for drawing, picture, split in zip(drawings, pictures, assignment.splits, strict=True)
        if split is not None
    ]
    return pl.DataFrame(rows, schema_overrides={"image": pl.Binary})


def write_table(table: pl.DataFrame, out: Path) -> None:
    """Write the Parquet file whole or not at all; raise if it outgrows its limit."""
    aside = out.with_suffix(".tmp")
    table.write_parquet(aside, compression="zstd", compression_level=19, row_group_size=4096)
    size = aside.stat().st_size
    if size > MAX_BYTES:
        aside.unlink()
        raise ValueError(
            f"{out.name} may hold {MAX_BYTES} bytes, it would hold {size}: lower WEBP_QUALITY "
            f"(now {WEBP_QUALITY})"
        )
    aside.replace(out)


def describe(
    drawings: Sequence[Drawing], table: pl.DataFrame, assignment: Assignment, out: Path
) -> str:
    """Return the build's report: counts by artist and split, twins, drops, size."""
    counts = (
        table.group_by("artist", "split")
        .len()
        .pivot("split", index="artist", values="len")
        .fill_null(0)
        .sort("artist")
    )
    concepts = table.group_by("split").agg(pl.col("code_point").n_unique()).sort("split")
    twins = sorted((len(group) for group in assignment.twin_groups), reverse=True)
    dropped = {train_row for train_row, _, _ in assignment.dropped}
    by_artist: Mapping[str, int] = Counter(drawings[row].artist.name for row in dropped)
    examples = [
        f"  {drawings[i].artist.name} {drawings[i].concept.label!r} ~ "
        f"{drawings[j].artist.name} {drawings[j].concept.label!r}: RMSE {rmse:.1f}"
        for i, j, rmse in assignment.dropped
    ]
    return "\n".join(
        [
            "rows by artist and split:",
            *(f"  {row}" for row in counts.to_dicts()),
            f"concepts by split: {dict(concepts.iter_rows())}",
            f"twin groups (one artist, several code points): {len(twins)}, {sum(twins)} code "
            f"points, largest {twins[:5]}; {assignment.twin_concepts_held_out} held out",
            f"dropped from train, near-identical to a held-out drawing: {len(dropped)} "
            f"{dict(sorted(by_artist.items()))}",
            *examples,
            f"straddling pairs left: 0; rows {table.height}; bytes {out.stat().st_size}",
        ]
    )


def build(node_modules: Path, out: Path) -> str:
    """Build the corpus from installed packages and return the report."""
    check_packages(node_modules)
    drawings = load_corpus(node_modules)
    with ThreadPoolExecutor() as pool:
        encoder = partial(encode, quality=WEBP_QUALITY)
        pictures = list(pool.map(encoder, [drawing.pixels for drawing in drawings]))
    assignment = assign(
        artists=[drawing.artist.name for drawing in drawings],
        code_points=[drawing.concept.code_point for drawing in drawings],
        rows=features(decode(pictures)),
    )
    table = tabulate(drawings, pictures, assignment)
    write_table(table, out)
    return describe(drawings, table, assignment, out)


def main() -> None:
    """Read the command line, install the packages unless given, build and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Parquet file to write")
    parser.add_argument(
        "--node-modules", type=Path, help="folder with the packages already installed"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        node_modules = options.node_modules or install_packages(Path(folder))
        print(build(node_modules, options.out))


if __name__ == "__main__":
    main()
