"""The parts of all tasks to one dataset: duplicates out, shards renamed, indices, the manifest.

No shard is copied but those that lose a sample. Any step can be repeated after a kill: the parts'
records and index rows stay until the manifest is written.
"""

import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.build.duplicates import find_repeated_rows
from data_prep.build.far import bring_records, remove_work_there, send_part, send_record
from data_prep.build.places import ShardPlace, place_shards, write_token_counts
from data_prep.build.tasks import (
    CAPTIONS_LEFT_OUT,
    WORK_FOLDER,
    Part,
    Plan,
    read_parts,
    read_plan,
    read_record,
    remove_work,
    task_folder,
    write_part,
)
from data_prep.build.writer import (
    PartWriter,
    write_manifest,
)
from data_prep.pool import PoolOptions, Report, run_in_pool
from data_prep.rejection import REASONS
from data_prep.sources.far import at_once
from data_prep.store import Store
from pretrain.base.arrays import read_array
from pretrain.base.files import write_durably
from pretrain.base.lock import locked
from pretrain.dataset.manifest import (
    INDEX_FILE,
    MANIFEST_FILE,
    MEMBERS,
    PICTURES_ROOT_FILE,
    Manifest,
    read_manifest,
)

_KEPT = "kept"  # a part once more, without the samples that earlier parts have

# A dataset's manifest, and the tokens of each caption (samples, captions), read when asked for.
Built = tuple[Manifest, np.ndarray]


def merge(out: Path, pool: PoolOptions) -> Built:
    """Join what shares have built. ValueError names the shares' tasks that are not done."""
    if (out / MANIFEST_FILE).exists():
        remove_work(out)  # a kill may have left it
        print(f"note: {out} is finished", file=sys.stderr)
        return read_built(out)
    if read_plan(out) is None:
        raise FileNotFoundError(
            f"{out} has no build to join; name the --out of `python -m data_prep build`"
        )
    return join(out, pool)


def read_built(out: Path) -> Built:
    """A finished dataset. FileNotFoundError names the remedy if it is none."""
    manifest = read_manifest(out)
    index = out / next(iter(manifest.tiers)) / INDEX_FILE
    return manifest, read_array(index)["tokens"]


def join(out: Path, pool: PoolOptions) -> Built:
    """Make the dataset of the parts of all tasks, each of which is done."""
    with locked(out / WORK_FOLDER):
        plan = read_plan(out)
        if plan is None:  # another process was here first
            return read_built(out)
        store = _store_of(plan, out)
        if store is not None:
            folders = [task_folder(out, number) for number in range(len(plan.tasks))]
            bring_records(store, folders, arrays=True)
        places = _find_parts(out, plan)
        rejected = _count_rejections(places)
        kept, repeated = _drop_repeated(out, plan, places, pool)
        rejected["duplicate_key"] += repeated
        _check_result(out, plan, kept, rejected)
        tiers = place_shards(out, plan, kept, store)
        samples = sum(place.part.samples for place in kept)
        rows = sum(place.part.rows for place in places)
        manifest = Manifest(
            samples=samples,
            captions=plan.captions,
            token_dtype=plan.token_dtype,
            tiers=tiers,
            tokenizer=plan.tokenizer,
            tagger=plan.tagger,
            rejected=dict(rejected),
            text_tier=plan.tiers[0].name,
            token_counts=write_token_counts(out, plan, kept),
            provenance={**plan.request, "rows_selected": rows, **left_out(places)},
        )
        if plan.pictures_root is not None:
            write_durably(out / PICTURES_ROOT_FILE, plan.pictures_root + "\n")
        write_manifest(out, manifest)
        if store is not None:
            _send_dataset(store, manifest)
            remove_work_there(store)
        remove_work(out)
    return read_built(out)


def _store_of(plan: Plan, out: Path) -> Store | None:
    """Where the shards lie, if not here."""
    return None if plan.store is None else Store(address=plan.store, folder=out)


def _send_dataset(store: Store, manifest: Manifest) -> None:
    """What is small of a dataset whose shards are in their places; the manifest last."""
    names = [f"{tier}/{INDEX_FILE}" for tier in manifest.tiers]
    for name in (*names, manifest.token_counts.file, manifest.tokenizer.file, MANIFEST_FILE):
        store.send(name)


def _find_parts(out: Path, plan: Plan) -> list[ShardPlace]:
    """The parts of all tasks in order. ValueError if a task is not done."""
    places: list[ShardPlace] = []
    missing: list[int] = []
    folders = [task_folder(out, number) for number in range(len(plan.tasks))]
    for number, (folder, parts) in enumerate(
        zip(folders, at_once(read_parts, folders), strict=True)
    ):
        if not (parts and parts[-1].last):
            missing.append(number)
        places += [
            ShardPlace(folder=folder, stem=str(i), part=part) for i, part in enumerate(parts)
        ]
    if missing:
        shown = ", ".join(map(str, missing[:8])) + (" …" if len(missing) > 8 else "")
        raise ValueError(
            f"{out}: {len(missing)} of {len(plan.tasks)} tasks are not done ({shown}); give the "
            "commands of their shares again (build … --task-index I --task-count N), or the build "
            "without them, then merge"
        )
    return places


def left_out(places: list[ShardPlace]) -> dict[str, int]:
    """How many entries of lists of captions were too many, where some were."""
    count = sum(place.part.captions_left_out for place in places)
    return {CAPTIONS_LEFT_OUT: count} if count else {}


def _count_rejections(places: list[ShardPlace]) -> Counter[str]:
    """All reasons, those that never occurred too."""
    rejected: Counter[str] = Counter({reason: 0 for reason in REASONS})
    for place in places:
        rejected.update(place.part.rejected)
    return rejected


def _drop_repeated(
    out: Path, plan: Plan, places: list[ShardPlace], pool: PoolOptions
) -> tuple[list[ShardPlace], int]:
    """The parts that hold samples, none of which an earlier part has; and how many that cost."""
    filled = [place for place in places if place.part.samples]
    sizes = [place.part.samples for place in filled]
    tier = plan.tiers[0].name
    keys = at_once(lambda place: place.rows(tier)["key"], filled)
    repeated = find_repeated_rows(keys, sum(sizes), out / WORK_FOLDER)
    starts = np.cumsum([0, *sizes])
    cuts = np.searchsorted(repeated, starts)
    kept: list[ShardPlace] = []
    todo: list[tuple[ShardPlace, np.ndarray]] = []
    for i, place in enumerate(filled):
        dropped = (repeated[cuts[i] : cuts[i + 1]] - starts[i]).astype(np.int64)
        if len(dropped):
            todo.append((place, dropped))
            place = replace(place, stem=f"{place.stem}.{_KEPT}")
        kept.append(place)
    if plan.store is not None:
        pool = PoolOptions(workers=pool.workers)  # the records are on this machine
    for _ in run_in_pool(_rewrite_part, plan, todo, pool, lambda _: None):
        pass
    read = [
        replace(place, part=read_record(place.folder / f"{place.stem}.json", Part))
        if place.stem.endswith(_KEPT)
        else place
        for place in kept
    ]
    return [place for place in read if place.part.samples], len(repeated)


def _rewrite_part(plan: Plan, item: tuple[ShardPlace, np.ndarray], report: Report) -> None:
    """Write a part again without some of its samples, and give up the shards that had them."""
    del report
    place, dropped = item
    stem = f"{place.stem}.{_KEPT}"
    tiers = [tier.name for tier in plan.tiers]
    store = _store_of(plan, place.folder.parent.parent)
    told = place.part.shards[tiers[0]]
    if not (place.folder / f"{stem}.json").exists():
        indices = {tier: place.rows(tier) for tier in tiers}
        if store is not None:
            for tier in tiers:
                name = place.path(tier, "tar").relative_to(store.folder).as_posix()
                if not store.bring(name):
                    raise OSError(f"{store.address}/{name} is gone: build again with --overwrite")
        ids = np.dtype(plan.token_dtype)
        with (
            PartWriter(place.folder, stem, tiers, len(plan.captions), ids, told.pictures) as writer,
            ExitStack() as opened,
        ):
            files = {
                tier: opened.enter_context(place.path(tier, "tar").open("rb")) for tier in tiers
            }

            def member(row: int, name: str, tier: str) -> bytes:
                offset, size, _ = indices[tier][row][name].item()
                files[tier].seek(offset)
                return files[tier].read(size)

            for row in np.setdiff1d(np.arange(place.part.samples), dropped).tolist():
                found = indices[tiers[0]][row]
                texts = {name: member(row, name, tiers[0]) for name in MEMBERS[1:]}
                pictures, stored = {}, None
                if told.pictures is None:
                    pictures = {tier: member(row, "jpg", tier) for tier in tiers}
                else:
                    stored = found["jpg"].item()
                writer.add(found["key"].decode(), pictures, texts, found["tokens"].tolist(), stored)
            infos = writer.finish()
        if store is not None:
            send_part(store, place.folder, stem)
        write_part(place.folder, stem, replace(place.part, samples=writer.samples, shards=infos))
        if store is not None:
            send_record(store, place.folder, stem)
    for tier in tiers:
        path = place.path(tier, "tar")
        path.unlink(missing_ok=True)
        if store is not None:
            store.remove([path.relative_to(store.folder).as_posix()])


def _check_result(out: Path, plan: Plan, kept: list[ShardPlace], rejected: Counter[str]) -> None:
    """ValueError if no sample is left, with why each was left out; the build is given up."""
    if kept:
        return
    remove_work(out)
    reasons = {reason: count for reason, count in rejected.items() if count}
    raise ValueError(
        f"all {plan.rows} rows were rejected: {reasons}; check --image-column, --image-root, "
        "--caption and the limits"
    )
