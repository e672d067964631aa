"""A build whose dataset lies on an object store: what it brings of there, and sends there when.

The work folder here holds what is small, and shards until they are sent; there, names are the same.
Whoever works has a work folder of his own: tasks are pure, so what two do twice is the same bytes.
A part is there once its .json is, which is sent last; the dataset once its manifest is.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.build.tasks import LOOK_FILE, PLAN_FILE, WORK_FOLDER, remove_work
from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.base.files import write_durably
from pretrain.dataset.manifest import INDEX_FILE, MANIFEST_FILE, read_manifest

_PLAN = f"{WORK_FOLDER}/{PLAN_FILE}"
_LOOK = f"{WORK_FOLDER}/{LOOK_FILE}"
_STORE_FILE = ".store.json"  # in a work folder: of which dataset it is
_TOKENIZERS = ("tokenizer.model", "tokenizer.json")
_FEW = 1000  # tasks whose folders are listed one by one


def check_work(store: Store | None, folder: Path) -> None:
    """FileExistsError where a folder here is of another dataset than the one asked for."""
    path = folder / _STORE_FILE
    held = json.loads(path.read_bytes())["address"] if path.exists() else None
    asked = None if store is None else store.address
    if held == asked:
        return
    if held is not None:
        raise FileExistsError(
            f"{folder} is the work folder of {held}: give that --out with --work={folder}, or "
            "choose another folder"
        )
    if (folder / MANIFEST_FILE).exists() or (folder / _PLAN).exists():
        raise FileExistsError(
            f"--work={folder} holds a dataset, or a build, of its own: choose an empty folder"
        )


def claim(store: Store) -> None:
    """The folder here is of this dataset from now on."""
    path = store.folder / _STORE_FILE
    if not path.exists():
        write_durably(path, json.dumps({"address": store.address}) + "\n")


def bring_plan(store: Store) -> None:
    """What others have planned or finished, in place of what was planned here."""
    folder = store.folder
    if store.read(MANIFEST_FILE) is not None:
        claim(store)
        store.bring(MANIFEST_FILE)
        manifest = read_manifest(folder)
        store.bring(manifest.tokenizer.file)
        store.bring(f"{next(iter(manifest.tiers))}/{INDEX_FILE}")
        return
    (folder / MANIFEST_FILE).unlink(missing_ok=True)  # was not sent: it is made once more
    plan = store.read(_PLAN)
    had = (folder / _PLAN).read_bytes() if (folder / _PLAN).exists() else None
    if plan is None or plan == had:
        return
    claim(store)
    if had is not None:
        remove_work(folder)
    for name in (*_TOKENIZERS, _LOOK):
        store.bring(name)
    write_durably(folder / _PLAN, plan)  # last: with it, work begins


def send_plan(store: Store) -> None:
    """Others may begin."""
    if store.read(_PLAN) is None:
        for name in (*_TOKENIZERS, _LOOK, _PLAN):
            if (store.folder / name).exists():
                store.send(name)


def clear_store(store: Store) -> None:
    """Nothing of an older dataset or build stays there; the manifest goes first.

    What is there is known by its manifest and its plan: other files are not of it.
    """
    manifest, plan = store.read(MANIFEST_FILE), store.read(_PLAN)
    tiers: set[str] = set()
    if manifest is not None:
        tiers |= json.loads(manifest).get("tiers", {}).keys()
    if plan is not None:
        tiers |= {tier["name"] for tier in json.loads(plan)["tiers"]}
    store.remove([MANIFEST_FILE, _PLAN])
    old = [*store.sizes(WORK_FOLDER)]
    for tier in tiers:
        shard = re.compile(rf"{re.escape(tier)}/(\d{{5,}}\.tar|{re.escape(INDEX_FILE)})")
        old += [name for name in store.sizes(tier) if shard.fullmatch(name)]
    for _ in at_once(lambda name: store.remove([name]), old):
        pass


def check_apart_there(store: Store, source: str, files: Iterable[str]) -> None:
    """ValueError where a source's files, by their addresses, and the dataset lie in one another."""
    inside = f"{store.address}/"
    if any(file.startswith(inside) for file in files) or inside.startswith(
        f"{source.rstrip('/')}/"
    ):
        raise ValueError(
            f"--out={store.address} and --source={source} lie in one another: choose an --out "
            "beside it"
        )


def bring_records(store: Store, tasks: Sequence[Path], *, arrays: bool) -> None:
    """What others have recorded of some tasks, by their folders here, and sends what they do not
    know of; arrays: index rows too."""
    endings = (".json", ".npy") if arrays else (".json",)
    below = {folder.relative_to(store.folder).as_posix(): folder for folder in tasks}
    if len(below) > _FEW:
        there = store.sizes(WORK_FOLDER)
    else:
        there = {k: v for found in at_once(store.sizes, below) for k, v in found.items()}
    missing = [
        name
        for name in there
        if name.endswith(endings)
        and name.rpartition("/")[0] in below
        and not (store.folder / name).exists()
    ]
    # Arrays before the .json that makes them count.
    for ending in reversed(endings):
        for _ in at_once(store.bring, [name for name in missing if name.endswith(ending)]):
            pass
    for name, folder in below.items():  # what a kill has kept from being sent
        for path in sorted(folder.glob("*.json")):
            if f"{name}/{path.name}" not in there:
                send_part(store, folder, path.stem)
                send_record(store, folder, path.stem)


def send_part(store: Store, folder: Path, stem: str) -> None:
    """A part's files, but for its .json; its shards go from here."""
    below = folder.relative_to(store.folder).as_posix()
    for path in sorted(folder.iterdir()):
        if re.fullmatch(rf"{re.escape(stem)}\.[^.]+\.(tar|npy)", path.name):
            store.send(f"{below}/{path.name}", stays=path.suffix != ".tar")


def send_record(store: Store, folder: Path, stem: str) -> None:
    """A part's .json: with it, the part counts."""
    store.send(f"{folder.relative_to(store.folder).as_posix()}/{stem}.json")


def remove_work_there(store: Store) -> None:
    """The work folder there goes, its plan last."""
    there = sorted(store.sizes(WORK_FOLDER), key=lambda name: name == _PLAN)
    for _ in at_once(lambda name: store.remove([name]), there):
        pass
