"""The files that --source stands for."""

import glob
import re
from pathlib import Path

from data_prep.sources.source import ACCEPTED
from pretrain.dataset.tars import is_hidden

# What to do with files that hold pictures or rows, but not as they are read.
_OTHER_ENDINGS = {
    (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4"): "decompress it first",
    (".zip", ".7z", ".rar"): "unpack it first, and name the folder",
    (".json",): "write it as JSON Lines, an object a line, named .jsonl (jq -c '.[]')",
    (".arrow", ".feather"): "name the folder that Dataset.save_to_disk wrote, or write it as "
    "Parquet",
    (".xls", ".xlsx", ".ods"): "save it as CSV in UTF-8",
    (".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5", ".tfrecord", ".beton", ".db", ".sqlite"): (
        "write it as Parquet or as tars"
    ),
}
REMEDIES = {ending: remedy for endings, remedy in _OTHER_ENDINGS.items() for ending in endings}
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_EXPANDED = 1_000_000  # files; more are a slip of the hand


def find_files(source: str, suffixes: tuple[str, ...], option: str = "source") -> list[Path]:
    """The files that a path, folder or pattern stands for, sorted.

    Of a folder, all below it with one of these suffixes in any case, hidden ones and what lies in
    hidden folders left out: macOS and notebooks leave copies there. FileNotFoundError if there is
    none, ValueError for one that is to be unpacked or written otherwise first.
    """
    refuse_address(option, source)
    path = Path(source)
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.name.lower().endswith(suffixes)
            and file.is_file()
            and not is_hidden(file.relative_to(path).as_posix())
        )
        if not files:
            raise FileNotFoundError(
                f"{option}={source}: no {' or '.join(suffixes)} in this folder; {ACCEPTED}"
            )
        return files
    files = [path] if path.is_file() else []
    for pattern in [] if files else expand_braces(source, option):
        whole = Path(pattern).is_file()  # though its name may look like a pattern
        names = [pattern] if whole else glob.glob(pattern, recursive=True)  # noqa: PTH207
        found = {Path(name) for name in names if Path(name).is_file()}
        if not found:
            of = "" if pattern == source else f" ({pattern})"
            raise FileNotFoundError(f"{option}={source}: no such file or pattern{of}; {ACCEPTED}")
        files += found
    for file in files:
        if file.suffix.lower() not in suffixes:
            _refuse_ending(option, file)
    return sorted(set(files))


def refuse_address(option: str, source: str) -> None:
    """ValueError for what does not lie on this machine."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://|(pipe):", source)
    if scheme is not None:
        raise ValueError(
            f"{option}={source}: {scheme[1] or scheme[2]} is not read from here (files of an "
            "object store are, as Parquet or tars, by `build --source`; no program is run); copy "
            "the files to this machine, and name the folder"
        )


def _refuse_ending(option: str, file: Path) -> None:
    """ValueError, with the remedy, for a kind of file that is known and not read."""
    remedy = REMEDIES.get(file.suffix.lower())
    if remedy is not None:
        raise ValueError(f"{option}={file}: {file.suffix} is not read as it is; {remedy}")


def expand_braces(source: str, option: str) -> list[str]:
    """The paths that a shell, or webdataset, makes of {00000..00001} and {a,b}."""
    found = _BRACES.search(source)
    if found is None:
        return [source]
    inside = found[1]
    parts: list[str] = []
    for part in inside.split(","):  # {000..003,007}, too
        ends = _RANGE.fullmatch(part)
        if ends is None:
            parts.append(part)
            continue
        first, last = int(ends[1]), int(ends[2])
        if not first <= last < first + _EXPANDED:
            raise ValueError(f"{option}={source}: {found[0]} is not an ascending range; change it")
        parts += [f"{number:0{len(ends[1])}d}" for number in range(first, last + 1)]
    if parts == [inside]:
        return [source]
    head, tail = source[: found.start()], source[found.end() :]
    return [path for part in parts for path in expand_braces(head + part + tail, option)]
