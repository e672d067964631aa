"""Labelled pictures of other people's sets, by row: class folders, WebDataset tars, `datasets`."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pretrain.dataset.pictures import SUFFIXES, decode
from pretrain.dataset.tars import is_hidden, read_tar

LabelFile = Literal[".cls", ".txt"]
_METADATA = ".npy"


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Pictures with one label each; a picture is read when it is asked for."""

    labels: list[str]  # (n,)
    order: list[str]  # distinct labels, in the order in which a list of names counts them
    file: Callable[[int], bytes]
    name: Callable[[int], str]
    metadata: NDArray[Any] | None = None  # (n, columns), where a tar has a .npy beside each picture

    def read(self, row: int) -> NDArray[np.uint8]:
        """(H, W, 3) sRGB, upright. ValueError names it: a figure cannot do without it."""
        try:
            return decode(self.file(row))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"picture {self.name(row)} cannot be read ({' '.join(str(error).split())}): repair "
                "it, or take it out of the set"
            ) from error


def open_labelled(option: str, directory: Path, label: LabelFile = ".cls") -> LabelledSet:
    """A set by what the path holds. ValueError names the option where it is none of the three.

    A tar, or a folder of tars: WebDataset, a `.cls` beside each picture, or a `.txt` where `label`
    says so. A folder that `datasets.Dataset.save_to_disk` wrote: a column of pictures and one of
    classes. Any other folder: one sub-folder a class, named by it.
    """
    if directory.is_file() and directory.suffix == ".tar":
        return _webdataset(option, [directory], label)
    if not directory.is_dir():
        raise ValueError(f"{option}={directory}: there is no such folder or tar; name another")
    if any((directory / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        return _open_saved(option, directory)
    tars = sorted(path for path in directory.glob("[!.]*.tar") if path.is_file())
    return _webdataset(option, tars, label) if tars else _class_folders(option, directory)


def _class_folders(option: str, directory: Path) -> LabelledSet:
    folders = sorted(p for p in directory.iterdir() if p.is_dir() and not is_hidden(p.name))
    files, labels = [], []
    for folder in folders:
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in SUFFIXES
            and not is_hidden(path.relative_to(folder).as_posix())
        )
        if not found:
            raise ValueError(
                f"{option}: the class folder {folder} has no picture ({', '.join(SUFFIXES)}): "
                "remove it, or put its pictures back"
            )
        files += found
        labels += [folder.name] * len(found)
    if not files:
        raise ValueError(
            f"{option}={directory}: it has no sub-folder per class, no tar and no saved "
            "`datasets` set; name a folder that does"
        )
    return LabelledSet(
        labels=labels,
        order=[folder.name for folder in folders],
        file=lambda row: files[row].read_bytes(),
        name=lambda row: str(files[row]),
    )


def _webdataset(option: str, tars: list[Path], label: LabelFile) -> LabelledSet:
    """Members are found once; a picture is then read from its place in the tar."""
    places: list[tuple[Path, int, int, str]] = []
    labels: list[str] = []
    metadata: list[NDArray[Any] | None] = []
    for tar in tars:
        try:
            pictures, classes, beside = _members(tar, label)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from error
        alone = sorted(pictures.keys() ^ classes.keys())
        if alone or not pictures:
            raise ValueError(
                f"{option}: {tar} has {len(pictures)} pictures and {len(classes)} {label}, "
                f"{len(alone)} without the other ({alone[:3]}): each picture needs its KEY{label}"
            )
        places += pictures.values()
        labels += [classes[key] for key in pictures]
        metadata += [beside.get(key) for key in pictures]

    def file(row: int) -> bytes:
        tar, start, size, _ = places[row]
        with tar.open("rb") as opened:
            opened.seek(start)
            return opened.read(size)

    distinct = set(labels)
    numbers = all(label.isascii() and label.isdigit() for label in distinct)
    return LabelledSet(
        labels=labels,
        order=sorted(distinct, key=int) if numbers else sorted(distinct),
        file=file,
        name=lambda row: f"{places[row][0]}:{places[row][3]}",
        metadata=_stacked(metadata),
    )


def _stacked(rows: list[NDArray[Any] | None]) -> NDArray[Any] | None:
    """Rows (n, columns); None where one is missing or of another length."""
    found = [np.atleast_1d(row) for row in rows if row is not None]
    whole = len(found) == len(rows) and len({row.shape for row in found}) == 1
    return np.stack(found) if whole else None


def _members(
    tar: Path, label: LabelFile
) -> tuple[dict[str, tuple[Path, int, int, str]], dict[str, str], dict[str, NDArray[Any]]]:
    """(places of the pictures, labels, metadata) of a tar, by key. ValueError where it is damaged,
    or a key has two pictures or labels."""
    pictures: dict[str, tuple[Path, int, int, str]] = {}
    classes: dict[str, str] = {}
    metadata: dict[str, NDArray[Any]] = {}
    with tar.open("rb") as file:
        for member in read_tar(tar, file):
            if not member.regular or is_hidden(member.name):
                continue
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key, extension = folder + slash + stem, "." + extension.lower()
            if key in (pictures if extension in SUFFIXES else classes) and (
                extension in (*SUFFIXES, label)
            ):
                raise ValueError(
                    f"{tar}: {member.name} is the second of key {key!r}: each has one picture and "
                    f"one {label}; rename the others"
                )
            if extension in SUFFIXES:
                pictures[key] = (tar, member.offset, member.size, member.name)
            elif extension == _METADATA:
                file.seek(member.offset)
                metadata[key] = np.load(io.BytesIO(file.read(member.size)), allow_pickle=False)
            elif extension == label:
                file.seek(member.offset)
                try:
                    classes[key] = file.read(member.size).decode("utf-8-sig").strip()
                except UnicodeDecodeError as error:
                    raise ValueError(f"{tar}: {member.name} is not UTF-8 text") from error
    return pictures, classes, metadata


def _open_saved(option: str, directory: Path) -> LabelledSet:
    import datasets  # takes seconds to import

    saved: Any = datasets.load_from_disk(str(directory))
    if isinstance(saved, datasets.DatasetDict):
        raise ValueError(
            f"{option}={directory}: it holds the splits {list(saved)}: name the folder of one, "
            f"{directory / next(iter(saved), 'SPLIT')}"
        )
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
    if None in values:
        raise ValueError(
            f"{option}={directory}: {values.count(None)} pictures have no class: remove them"
        )
    saved = saved.cast_column(picture, datasets.Image(decode=False))
    if isinstance(kind, datasets.ClassLabel):
        if min(values) < 0:
            raise ValueError(f"{option}={directory}: some pictures have no class (-1): remove them")
        labels, order = [kind.names[value] for value in values], list(kind.names)
    else:
        labels = [str(value) for value in values]
        order = sorted(set(labels))
    return LabelledSet(
        labels=labels,
        order=order,
        file=lambda row: _read_stored(saved[row][picture]),
        name=lambda row: f"{row} of {directory}",
    )


def _read_stored(picture: dict[str, Any]) -> bytes:
    """The file of a picture as `datasets` keeps it: its bytes, or where they lie."""
    return picture["bytes"] or Path(picture["path"]).read_bytes()
