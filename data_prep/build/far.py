"""A build whose dataset lies on an object store: what it brings of there, and sends there when.

The work folder here holds what is small, and shards until they are sent; there, names are the same.
Whoever works has a work folder of his own: tasks are pure, so what two do twice is the same bytes.
A part is there once its .json is, which is sent last; the dataset once its manifest is.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from data_prep.build.tasks import LOOK_FILE, PLAN_FILE, WORK_FOLDER
from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest

_PLAN = f"{WORK_FOLDER}/{PLAN_FILE}"
_LOOK = f"{WORK_FOLDER}/{LOOK_FILE}"
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_OF_A_BUILD = re.compile(rf"{re.escape(WORK_FOLDER)}/.*|[^/]+/(\d{{5,}}\.tar|{INDEX_FILE})")


def bring_plan(store: Store) -> None:
    """What others have planned or finished, in place of what was planned here."""
    folder = store.folder
    had = (folder / _PLAN).read_bytes() if (folder / _PLAN).exists() else None
    if store.bring(MANIFEST_FILE):
        manifest = read_manifest(folder)
        store.bring(manifest.tokenizer.file)
        store.bring(f"{next(iter(manifest.tiers))}/{INDEX_FILE}")
        return
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # was not sent: it is made once more
    if _PLAN not in store.sizes(WORK_FOLDER):
        return
    store.bring(_PLAN)
    if had is not None and (folder / _PLAN).read_bytes() == had:
        return
    (folder / _PLAN).unlink()
    if (folder / WORK_FOLDER).exists():
        shutil.rmtree(folder / WORK_FOLDER)
    for name in (*_TOKENIZERS, _LOOK, _PLAN):  # the plan last: with it, work begins
        store.bring(name)


def send_plan(store: Store) -> None:
    """Others may begin."""
    there = store.sizes(WORK_FOLDER)
    if _PLAN not in there:
        for name in (*_TOKENIZERS, _LOOK, _PLAN):
            if (store.folder / name).exists():
                store.send(name)


def clear_store(store: Store) -> None:
    """Nothing of an older dataset or build stays there; the manifest goes first."""
    there = store.sizes()
    store.remove([MANIFEST_FILE, _PLAN])
    old = [name for name in there if _OF_A_BUILD.fullmatch(name)]
    for _ in at_once(lambda name: store.remove([name]), old):
        pass


def bring_records(store: Store, tasks: Iterable[Path], *, arrays: bool) -> None:
    """What others have recorded of some tasks, by their folders here; arrays: index rows too."""
    endings = (".json", ".npy") if arrays else (".json",)
    wanted = {folder.relative_to(store.folder).as_posix() for folder in tasks}
    missing = [
        name
        for name in store.sizes(WORK_FOLDER)
        if name.endswith(endings)
        and name.rpartition("/")[0] in wanted
        and not (store.folder / name).exists()
    ]
    # Arrays before the .json that makes them count.
    for ending in reversed(endings):
        for _ in at_once(store.bring, [name for name in missing if name.endswith(ending)]):
            pass


def send_part(store: Store, folder: Path, stem: str) -> None:
    """A part's files, but for its .json; its shards go from here."""
    below = folder.relative_to(store.folder).as_posix()
    for path in sorted(folder.iterdir()):
        if re.fullmatch(rf"{re.escape(stem)}\.[^.]+\.(tar|npy)", path.name):
            store.send(f"{below}/{path.name}", stays=path.suffix != ".tar")


def send_record(store: Store, folder: Path, stem: str) -> None:
    """A part's .json: with it, the part counts."""
    store.send(f"{folder.relative_to(store.folder).as_posix()}/{stem}.json")


def send_left(store: Store, folder: Path) -> None:
    """What a kill has kept from being sent of parts that are recorded here."""
    below = folder.relative_to(store.folder).as_posix()
    there = store.sizes(below)
    for path in sorted(folder.glob("*.json")):
        if f"{below}/{path.name}" not in there:
            send_part(store, folder, path.stem)
            send_record(store, folder, path.stem)


def remove_work_there(store: Store) -> None:
    """The work folder there goes, its plan last."""
    there = sorted(store.sizes(WORK_FOLDER), key=lambda name: name == _PLAN)
    for _ in at_once(lambda name: store.remove([name]), there):
        pass
