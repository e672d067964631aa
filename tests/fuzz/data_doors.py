"""The doors of data: each makes a small valid input in a folder, and opens it as a user does."""

import gzip
import hashlib
import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PREP = (
    *("data_prep.__main__", "data_prep.build.command", "data_prep.verify", "data_prep.stats"),
    *("data_prep.inspection.command", "textblob", "PIL.Image", "pyarrow.parquet"),
)
_BUILD = ["--tiers", "32:90", "--vocab-size", "300", "--workers", "1", "--min-image-px", "4"]


@dataclass(frozen=True, kw_only=True)
class Door:
    """modules: imported before the trials, each of which is a fork."""

    modules: tuple[str, ...]
    make: Callable[[Path], int]
    open: Callable[[Path, random.Random], int]
    seal: Callable[[Path], None] = lambda folder: None
    """Makes digests right again, so that what lies behind their check is tried too."""


def refusing(check: Callable[[], None]) -> int:
    """What promises a ValueError or an OSError of one line, as a command."""
    from pretrain.base.faults import one_line

    try:
        check()
    except (ValueError, OSError) as error:
        print("error:", one_line(error))  # as the command that calls it does
        return 2 if "\n" not in str(error) else 70
    return 0


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prep(*words: str | Path) -> int:
    from data_prep.__main__ import main

    return main([str(word) for word in words])


def build(folder: Path, source: Path | str, *more: str) -> int:
    return prep("build", "--source", source, "--out", folder.parent / "built", "--overwrite",
                *_BUILD, *more)  # fmt: skip


def picture_files(folder: Path, count: int = 5) -> list[dict[str, Any]]:
    """Pictures of several formats, and rows that name them."""
    from data_prep_corpus import caption, encoded, picture

    kinds = ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]
    rows = []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        file = f"{i}.{'jpg' if kind == 'JPEG' else kind.lower()}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(encoded(picture(i, width=40, height=30), kind))
        rows.append({"image": file, "caption": caption(i), "number": i, "more": None})
    return rows


def make_table(kind: str, count: int = 5) -> Callable[[Path], int]:
    def make(folder: Path) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = picture_files(folder, count)
        if kind == "parquet":
            whole = [{**row, "image": (folder / row["image"]).read_bytes()} for row in rows]
            shutil.rmtree(folder)
            folder.mkdir()
            pq.write_table(pa.Table.from_pylist(whole), folder / "table.parquet")
        elif kind == "jsonl":
            (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
        else:
            lines = ["image,caption,number,more"]
            lines += [f'{row["image"]},"{row["caption"]}",{row["number"]},' for row in rows]
            (folder / "table.csv").write_text("\n".join(lines) + "\n")
        return 0

    return make


def open_table(kind: str) -> Callable[[Path, random.Random], int]:
    def opened(folder: Path, draw: random.Random) -> int:
        more = draw.choice([(), ("--where", "number < 3"), ("--caption", "c={caption}, {number}")])
        return build(folder, folder / f"table.{kind}", *more)

    return opened


def make_pictures(folder: Path) -> int:
    for row in picture_files(folder, 6):
        beside = (folder / row["image"]).with_suffix(".txt")
        beside.write_text(row["caption"])
        if row["number"] % 2:
            beside.with_suffix(".json").write_text(json.dumps({"caption": "x", "tags": ["a", "b"]}))
    return 0


def make_tars(folder: Path) -> int:
    from data_prep_corpus import caption, encoded, picture, write_tar

    folder.mkdir()
    for tar in range(2):
        content = {}
        for i in range(3):
            content[f"{i}.jpg"] = encoded(picture(3 * tar + i, width=40, height=30), "JPEG")
            content[f"{i}.txt"] = caption(3 * tar + i).encode()
            content[f"{i}.json"] = json.dumps({"caption": caption(i), "width": 40}).encode()
        write_tar(folder / f"{tar:05d}.tar", content)
    return 0


def open_tars(folder: Path, draw: random.Random) -> int:
    if draw.random() < 0.5:
        return build(folder, folder)
    return prep("index", folder, "--out", folder.parent / "built", "--overwrite", *_BUILD[2:])


def make_dataset(folder: Path, count: int = 5) -> int:
    import numpy as np
    from dataset_copies import keep_weights

    source = folder.parent / "source"
    make_table("parquet", count)(source)
    table = str(source / "table.parquet")
    status = prep("build", "--source", table, "--out", folder, "--caption", "c={caption}",
                  "--caption", "n={number}", *_BUILD)  # fmt: skip
    keep_weights(folder, "even", np.ones(count, np.float32))
    shutil.rmtree(source)
    return status


def seal_dataset(folder: Path) -> None:
    """The manifest vouches for the files as they are."""
    with suppress(Exception):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        manifest["tokenizer"]["sha256"] = sha256(folder / manifest["tokenizer"]["file"])
        for name, tier in manifest["tiers"].items():
            tier["index_sha256"] = sha256(folder / name / "index.npy")
            for shard in tier["shards"]:
                shard["sha256"] = sha256(folder / shard["file"])
                shard["bytes"] = (folder / shard["file"]).stat().st_size
        (folder / "manifest.json").write_text(json.dumps(manifest))


def open_dataset(folder: Path, draw: random.Random) -> int:
    command = draw.choice(
        ["verify", "verify", "stats", "inspect", "read", "read", "fetch", "weigh"]
    )
    if command == "read":
        return refusing(lambda: _read_dataset(folder))
    more: list[str | Path] = []
    if command == "fetch":
        more = ["--url", folder]
        folder = folder.parent / "built"
        shutil.rmtree(folder.parent / "built", ignore_errors=True)
    if command == "weigh":
        more = [
            "--out",
            "other",
            *draw.choice([("--by", "number"), ("--file", folder / "weights/even.npy")]),
        ]
    if command == "inspect":
        more = ["--out", folder.parent / "page.html"]
    if command == "verify":
        more = ["--workers", "1"]
    return prep(command, folder, *more)


def _read_dataset(folder: Path) -> None:
    """As the start of a training run and its loader do."""
    from pretrain.dataset.reader import Dataset, SampleError
    from pretrain.dataset.sample_weights import open_weights

    dataset = Dataset(folder, "32")
    dataset.check_ids()
    dataset.tokenizer()
    open_weights(folder, "even", dataset.manifest)
    for row in range(min(len(dataset), 50)):
        with suppress(SampleError):
            dataset.read(row)
            dataset.read_json(row)


def make_tokenizer(kind: str) -> Callable[[Path], int]:
    """A folder with one file, of a small tokenizer."""

    def make(folder: Path) -> int:
        folder.mkdir()
        if kind == "pieces":
            from data_prep_corpus import plain_corpus

            source = plain_corpus(folder / "corpus.parquet", 20)
            built = folder.parent / "built"
            prep("build", "--source", source, "--out", built, *_BUILD)
            shutil.copy(built / "tokenizer.model", folder / "tokenizer.model")
            source.unlink()
        elif kind == "json":
            import test_convert

            test_convert.word_pieces(folder)
            (folder / "tokenizer_config.json").unlink()
        elif kind == "vocab":
            names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(chr, range(97, 123)), "##a", "##b"]
            (folder / "vocab.txt").write_text("\n".join([*names, "dog", "red"]) + "\n")
        else:
            lines = "#version: 0.2\ni n\nt h\na n\nr e\na r\ne r\nth e</w>\n"
            (folder / "bpe.txt.gz").write_bytes(gzip.compress(lines.encode()))
        return 0

    return make


def open_tokenizer(folder: Path, draw: random.Random) -> int:
    source = folder.parent / "captions"
    if not source.exists():
        make_table("parquet")(source)
    found = [path for path in folder.iterdir() if not path.name.startswith("special")]
    return build(folder, source / "table.parquet", "--tokenizer", str([*found, folder / "x"][0]),
                 *draw.choice([(), (), ("--special-tokens", "[PAD],[CLS],[SEP]")]))  # fmt: skip


DATA_DOORS = {
    "dataset": Door(modules=PREP, make=make_dataset, open=open_dataset, seal=seal_dataset),
    "tars": Door(modules=PREP, make=make_tars, open=open_tars),
    "pictures": Door(modules=PREP, make=make_pictures, open=lambda f, _: build(f, f)),
    **{
        kind: Door(modules=PREP, make=make_table(kind), open=open_table(kind))
        for kind in ("csv", "jsonl", "parquet")
    },
    **{
        f"tokenizer_{kind}": Door(
            modules=(*PREP, "tokenizers", "sentencepiece"),
            make=make_tokenizer(kind),
            open=open_tokenizer,
        )
        for kind in ("pieces", "json", "vocab", "bpe")
    },
}
