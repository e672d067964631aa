"""Sources on object stores and web servers: which files an address stands for."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data_prep.sources.far import BroughtFiles, Place, at_once
from data_prep.sources.find import expand_braces
from data_prep.sources.folder import describe_suffixes
from pretrain.base.files import aside
from pretrain.dataset.far_files import FarFile, FarFiles, copy
from pretrain.dataset.tars import is_hidden

FarFormat = Literal["parquet", "webdataset"]
FAR_SUFFIXES: dict[str, FarFormat] = {".tar": "webdataset", ".parquet": "parquet"}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ASKED_AT_ONCE = 32  # of a server that lists nothing
_VERSIONS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "mtime", "updated")


def is_far(source: str) -> bool:
    """Whether a source has an address, and no path on this machine."""
    return _ADDRESS.match(source) is not None


def find_in_store(
    source: str, kind: str | None, copies: FarFiles
) -> tuple[FarFormat, BroughtFiles]:
    """The files that an address stands for, and how they are read.

    ValueError names what is not there, or what cannot be read.
    """
    if kind is not None and kind not in FAR_SUFFIXES.values():
        raise ValueError(
            f"format={kind}: of {source} only {sorted(FAR_SUFFIXES.values())} are read; leave out "
            "--format, or copy the files to this machine"
        )
    there = _list(source)
    suffixes = Counter(PurePosixPath(name).suffix.lower() for name in there)
    kinds = [end for end, told in FAR_SUFFIXES.items() if suffixes[end] and kind in (None, told)]
    if len(kinds) != 1:
        found = describe_suffixes(suffixes) or "no file"
        remedy = "name one kind with --format, or by a pattern in the address"
        raise ValueError(
            f"source={source}: {found} there; read are {' and '.join(FAR_SUFFIXES)}: "
            + (remedy if kinds else "change --source, or copy other kinds to this machine")
        )
    chosen = {name: far for name, far in there.items() if name.lower().endswith(kinds[0])}
    del suffixes[kinds[0]]
    return FAR_SUFFIXES[kinds[0]], BroughtFiles(
        found={Path(name): chosen[name] for name in sorted(chosen)},
        copies=copies,
        listed=_Listed(source, kinds[0]),
        left_alone=suffixes,
    )


def bring_all(source: str, suffixes: tuple[str, ...], folder: Path) -> Path:
    """Copy the files of an address that end so into a folder, which it returns, by their own names.
    ValueError where there are none, or two of one name; OSError where one does not come."""
    found = {
        PurePosixPath(name).name: far
        for name, far in sorted(_list(source).items())
        if name.lower().endswith(suffixes)
    }
    if not found:
        raise ValueError(f"{source}: no {' or '.join(suffixes)} there; name other files")
    place = Place()

    def bring(named: tuple[str, FarFile]) -> None:
        path, far = folder / named[0], named[1]
        if not path.is_file() or path.stat().st_size != far.bytes:
            with place.asking(far.address), aside(path) as part:
                copying = partial(copy, far.address, Path(part.name), size=far.bytes)
                place.persistently(copying)

    for _ in at_once(bring, found.items()):
        pass
    return folder


class _Listed:
    """Sums up the files of an address as they are now. A class, as it travels to workers."""

    def __init__(self, source: str, suffix: str) -> None:
        self._source, self._suffix = source, suffix

    def __call__(self) -> str:
        digest = hashlib.sha256()
        for name, far in sorted(_list(self._source).items()):
            if name.lower().endswith(self._suffix):
                digest.update(f"{name!a} {far.bytes} {far.version}\n".encode())
        return digest.hexdigest()


def _list(source: str) -> dict[str, FarFile]:
    """All files of an address, by their paths without the protocol; hidden ones left out."""
    import fsspec  # most builds read nothing from afar

    place = Place()
    with place.asking(source):
        patterns = expand_braces(source, "source")
        system, _ = fsspec.url_to_fs(patterns[0])
        system.invalidate_cache()  # another listing may be older than this build
        paths = [system._strip_protocol(pattern) for pattern in patterns]
        told = place.persistently(lambda: list(_entries(system, paths)))
    found: dict[str, FarFile] = {}
    for entry in told:
        name = entry["name"]
        if is_hidden(PurePosixPath(name).name):
            continue
        if entry.get("size") is None:
            raise ValueError(
                f"source={name}: its server does not give its size, so it is not known "
                "whether all of it has arrived; copy it to this machine"
            )
        version = next((str(entry[key]) for key in _VERSIONS if entry.get(key)), None)
        address = system.unstrip_protocol(name)
        found[name] = FarFile(address=address, bytes=entry["size"], sha256=None, version=version)
    if not found:
        raise ValueError(f"source={source}: there is no such file; change --source")
    return found


def _entries(system: Any, paths: list[str]) -> Iterable[dict[str, Any]]:
    """What a file system tells of the files at some paths, patterns or folders."""
    if len(paths) > 1 and "http" not in system.protocol:
        # One listing of their folders, in place of a request a file.
        wanted = set(paths)
        for folder in sorted({path.rpartition("/")[0] for path in paths}):
            for entry in system.ls(folder, detail=True):
                if entry["name"] in wanted:
                    wanted.remove(entry["name"])
                    yield entry
        if wanted:
            raise FileNotFoundError(f"{min(wanted)}, one of {len(wanted):,} that are missing")
        return
    if len(paths) > 1:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
            yield from threads.map(system.info, paths)
        return
    path = paths[0]
    if set(path) & set("*?["):
        entries = system.glob(path, detail=True).values()
    elif (entry := system.info(path))["type"] == "directory":
        entries = system.find(path, detail=True).values()
    else:
        entries = [entry]
    yield from (entry for entry in entries if entry["type"] == "file")
