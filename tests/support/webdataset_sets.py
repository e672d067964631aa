"""Small sets in clip-benchmark's WebDataset layout, of drawings."""

import io
import tarfile
from pathlib import Path

import numpy as np
import polars
from tiny_datasets import CORPUS

CLASSES = ["a drink", "a fruit", "a sweet dish", "a meal", "a dish from Asia", "cutlery"]
SUBGROUPS = ["drink", "food fruit", "food sweet", "food prepared", "food asian", "dishware"]
TEMPLATES = ["a drawing of {c}.", "{c}"]


def drawings() -> polars.DataFrame:
    """70 drawings of six kinds of food, each kind with another number of them."""
    corpus = polars.read_parquet(CORPUS).filter(
        polars.col("subgroup").str.replace_all("-| ", " ").is_in(SUBGROUPS)
        & (polars.col("artist") == "twemoji")
    )
    return corpus.with_columns(polars.col("subgroup").str.replace_all("-| ", " "))[:70]


def write_tars(folder: Path, samples: list[dict[str, bytes]]) -> None:
    """Samples of members by extension, in two tars."""
    (folder / "test").mkdir(parents=True)
    for number, part in enumerate((samples[:25], samples[25:])):
        with tarfile.open(folder / f"test/{number}.tar", "w") as tar:
            for place, sample in enumerate(part):
                for extension, content in sample.items():
                    member = tarfile.TarInfo(f"s{number}{place:06d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    (folder / "test/nshards.txt").write_text("2\n")


def write_classes(folder: Path, files: list[bytes], places: list[int], groups: list[int]) -> None:
    samples = []
    for file, place, group in zip(files, places, groups, strict=True):
        metadata = io.BytesIO()
        np.save(metadata, np.array([group, 7, place]))
        samples.append({"png": file, "cls": str(place).encode(), "npy": metadata.getvalue()})
    write_tars(folder, samples)
    (folder / "classnames.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES) + "\n")


def write_captioned(folder: Path, table: polars.DataFrame) -> list[list[str]]:
    """The drawings with two captions each, one with three; returns them."""
    captions = [[one, f"{one}, a drawing"] for one in table["caption"]]
    captions[3].append("beside a cup of tea")
    samples = [
        {"png": file, "txt": "\n".join(own).encode()}
        for file, own in zip(table["image"], captions, strict=True)
    ]
    write_tars(folder, samples)
    (folder / "dataset_type.txt").write_text("retrieval\n")
    return captions
