"""Labelled pictures of other people's sets, by row: class folders, WebDataset tars, `datasets`."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Pictures with one label each; a picture is read when it is asked for."""

    labels: list[str]  # (n,)
    order: list[str]  # distinct labels, in the order in which a list of names counts them
    open: Callable[[int], Image.Image]
    name: Callable[[int], str]

    def read(self, row: int) -> Image.Image:
        """A picture with its pixels. ValueError names it: a figure cannot do without it."""
        try:
            picture = self.open(row)
            picture.load()
            return picture
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"picture {self.name(row)} cannot be read ({' '.join(str(error).split())}): repair "
                "it, or take it out of the set"
            ) from error


def open_labelled(option: str, directory: Path) -> LabelledSet:
    """A set by what the path holds. ValueError names the option where it is none of the three.

    A tar, or a folder of tars: WebDataset, a `.cls` beside each picture. A folder that
    `datasets.Dataset.save_to_disk` wrote: a column of pictures and one of classes. Any other
    folder: one sub-folder a class, named by it.
    """
    if directory.is_file() and directory.suffix == ".tar":
        return _webdataset(option, [directory])
    if not directory.is_dir():
        raise ValueError(f"{option}={directory}: there is no such folder or tar; name another")
    if (directory / "dataset_info.json").is_file():
        return _saved_dataset(option, directory)
    tars = sorted(directory.glob("*.tar"))
    return _webdataset(option, tars) if tars else _class_folders(option, directory)


def _class_folders(option: str, directory: Path) -> LabelledSet:
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    files, labels = [], []
    for folder in folders:
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _PICTURES)
        if not found:
            raise ValueError(
                f"{option}: the class folder {folder} holds no picture ({', '.join(_PICTURES)}): "
                "remove it, or put its pictures back"
            )
        files += found
        labels += [folder.name] * len(found)
    if not files:
        raise ValueError(
            f"{option}={directory}: it holds no sub-folder a class, no tar and no saved "
            "`datasets` set; name a folder that does"
        )
    return LabelledSet(
        labels=labels,
        order=[folder.name for folder in folders],
        open=lambda row: Image.open(files[row]),
        name=lambda row: str(files[row]),
    )


def _webdataset(option: str, tars: list[Path]) -> LabelledSet:
    """Members are found once; a picture is then read from its place in the tar."""
    places: list[tuple[Path, int, int, str]] = []
    labels: list[str] = []
    for tar in tars:
        pictures: dict[str, tuple[Path, int, int, str]] = {}
        classes: dict[str, str] = {}
        try:
            with tarfile.open(tar, "r:") as archive:
                for member in archive:
                    folder, slash, file = member.name.rpartition("/")
                    stem, _, extension = file.partition(".")
                    key = folder + slash + stem
                    if "." + extension.lower() in _PICTURES:
                        pictures[key] = (tar, member.offset_data, member.size, member.name)
                    elif extension == "cls":
                        content = archive.extractfile(member)
                        assert content is not None, "a .cls that is no file"
                        classes[key] = content.read().decode("utf-8").strip()
        except (tarfile.TarError, UnicodeDecodeError, AssertionError) as error:
            raise ValueError(f"{option}: {tar} is no whole WebDataset tar ({error})") from error
        alone = sorted(pictures.keys() ^ classes.keys())
        if alone or not pictures:
            raise ValueError(
                f"{option}: {tar} has {len(pictures)} pictures and {len(classes)} .cls, "
                f"{len(alone)} without the other ({alone[:3]}): each picture needs its KEY.cls"
            )
        places += pictures.values()
        labels += [classes[key] for key in pictures]

    def read(row: int) -> Image.Image:
        tar, start, size, _ = places[row]
        with tar.open("rb") as file:
            file.seek(start)
            return Image.open(io.BytesIO(file.read(size)))

    distinct = set(labels)
    order = (
        sorted(distinct, key=int)
        if all(label.isdigit() for label in distinct)
        else sorted(distinct)
    )
    return LabelledSet(
        labels=labels,
        order=order,
        open=read,
        name=lambda row: f"{places[row][0]}:{places[row][3]}",
    )


def _saved_dataset(option: str, directory: Path) -> LabelledSet:
    import datasets  # takes seconds to import

    saved: Any = datasets.load_from_disk(str(directory))
    features = saved.features
    pictures = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not classes:
        classes = [name for name in ("label", "class") if name in features]
    if len(pictures) != 1 or len(classes) != 1:
        raise ValueError(
            f"{option}={directory}: it needs one column of pictures (Image) and one of classes "
            f"(ClassLabel, or named label), found {pictures} and {classes} of {list(features)}: "
            "save it with these two"
        )
    (picture,), (column,) = pictures, classes
    kind = features[column]
    values = saved[column][:]
    if isinstance(kind, datasets.ClassLabel):
        if min(values) < 0:
            raise ValueError(f"{option}={directory}: some pictures have no class (-1): drop them")
        labels, order = [kind.names[value] for value in values], list(kind.names)
    else:
        labels = [str(value) for value in values]
        order = sorted(set(labels))
    return LabelledSet(
        labels=labels,
        order=order,
        open=lambda row: saved[row][picture],
        name=lambda row: f"{row} of {directory}",
    )
