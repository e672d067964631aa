"""Captions of a second table for a finished dataset: DIR/captions/NAME, beside its shards."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from data_prep.dataset_tasks import FarOptions
from data_prep.pool import PoolOptions, run_in_pool
from data_prep.recaption.files import write_recaption
from data_prep.recaption.join import (
    SAMPLES,
    TABLE,
    Joined,
    JoinState,
    bucket_count,
    is_hex_key,
    join_bucket,
    key_text,
    spread,
)
from data_prep.rejection import RejectedError
from data_prep.sources.column_choice import list_columns, object_columns
from data_prep.sources.plain_tables import PlainTable, find_tables
from data_prep.text.captions import (
    CaptionOptions,
    CaptionTemplate,
    field_texts,
    parse_templates,
)
from data_prep.text.placeholders import say_dropped
from data_prep.text.word_classes import TaggerName
from pretrain.base.files import file_sha256, rename_durably, why_not_written
from pretrain.base.lock import LOCK_FILE, locked
from pretrain.base.progress import Bar
from pretrain.dataset.captions import Recaption, RecaptionInfo
from pretrain.dataset.manifest import (
    KEY_CHARS,
    RECAPTIONS_FOLDER,
    Manifest,
    path_inside,
    read_manifest,
    recaption_folder,
)
from pretrain.dataset.rows import sample_metadata, space_rows, text_tier
from pretrain.dataset.shards import ShardOptions

_WORK_FOLDER = ".unfinished"  # in DIR/captions


@dataclass(frozen=True, kw_only=True)
class RecaptionOptions:
    """Where the captions are, and which sample each belongs to"""

    source: str
    """Table of captions: a file, a folder or a glob pattern of Parquet, CSV, TSV or JSON Lines."""
    key: str
    """The table's column that says which sample a row belongs to."""
    match: str | None = None
    """The dataset's metadata column that holds the same values as `key`. Null: `key` holds the
    samples' keys, 16 hexadecimal digits, as in the shards."""


def recaption(
    directory: Path,
    options: RecaptionOptions,
    captions: CaptionOptions,
    pool: PoolOptions,
    far: FarOptions,
) -> str:
    """Write DIR/captions/NAME of each caption; returns a line for each.

    ValueError, FileExistsError or FileNotFoundError name what to change; a folder has its name
    only when it is whole, and is left as it is where it is there already, of the same request.
    """
    manifest = read_manifest(directory)
    table = PlainTable(find_tables("--source", options.source))
    templates = _templates(directory, manifest, table, options, captions)
    path = path_inside(directory, manifest.tokenizer.file, "tokenizer.file")
    if file_sha256(path) != manifest.tokenizer.sha256:
        raise ValueError(f"{path}: its sha256 is not the manifest's; put the dataset's own back")
    base = os.path.commonpath([path.parent.absolute() for path in table.paths])
    tables = {
        path.absolute().relative_to(base).as_posix(): file_sha256(path) for path in table.paths
    }
    requests = {one.name: _request(manifest, one, options, captions, tables) for one in templates}
    if not any(_is_missing(directory, manifest, *one) for one in requests.items()):
        return "\n".join(f"{directory}: the caption {name} is finished" for name in requests)
    with _working(directory) as work:
        # Another process may have been here first.
        missing = [
            t for t in templates if _is_missing(directory, manifest, t.name, requests[t.name])
        ]
        state = JoinState(
            work=work,
            tokenizer=path,
            tagger=_tagger(manifest),
            token_dtype=manifest.token_dtype,
            vocab_size=manifest.tokenizer.vocab_size,
            templates=templates,
            max_chars=captions.caption_max_chars,
        )
        buckets = bucket_count(table.bytes, manifest.samples)
        rejected: Counter[str] = Counter()
        spread(_table_entries(table, options, templates, rejected), work, TABLE, buckets)
        samples = _sample_entries(directory, manifest, options, far.shards)
        spread(samples, work, SAMPLES, buckets)
        joined = Joined(rejected=rejected)
        results = run_in_pool(join_bucket, state, range(buckets), pool, lambda _: None)
        for one in Bar(results, total=buckets, unit="parts", what="recaption"):
            _add(joined, one)
        _check(directory, options, joined)
        lines: list[str] = []
        for template in missing:
            request = requests[template.name]
            info = write_recaption(state, manifest, template, joined, buckets, request)
            lines.append(_summary(directory, template.name, info, joined))
        for template in missing:
            folder = recaption_folder(directory, template.name, "--caption")
            rename_durably(work / template.name, folder)
    names = ", ".join([f"{manifest.captions[0]}: 1", *(f"{one.name}: 1" for one in templates)])
    return "\n".join([*lines, f"train by them with --data.caption_weights '{{{names}}}'"])


def _templates(
    directory: Path,
    manifest: Manifest,
    table: PlainTable,
    options: RecaptionOptions,
    captions: CaptionOptions,
) -> list[CaptionTemplate]:
    """The captions to make, none of which the dataset has."""
    if options.key not in table.columns:
        raise ValueError(
            f"--key {options.key}: {options.source} has columns {table.columns}; choose one of them"
        )
    if not captions.caption:
        raise ValueError(
            f"--caption is missing: name the captions, as NAME={{COLUMN}}; {options.source} has "
            f"columns {table.columns}"
        )
    templates = parse_templates(
        captions,
        table.columns,
        lists=list_columns(table.schema),
        objects=object_columns(table.schema),
    )
    for template in templates:
        if template.name in manifest.captions:
            raise ValueError(
                f"--caption {template.name}=…: {directory} has captions {manifest.captions} "
                "already; choose another name"
            )
    return templates


def _request(
    manifest: Manifest,
    template: CaptionTemplate,
    options: RecaptionOptions,
    captions: CaptionOptions,
    tables: dict[str, str],
) -> dict[str, Any]:
    """What decides a caption's folder, as it will be recorded there."""
    limits = asdict(captions)
    del limits["caption"]
    return {
        "dataset_fingerprint": manifest.fingerprint,
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "tagger": manifest.tagger,
        "template": template.template,
        "limits": limits,
        "key": options.key,
        "match": options.match,
        "tables": tables,
    }


def _is_missing(directory: Path, manifest: Manifest, name: str, request: dict[str, Any]) -> bool:
    """Whether a caption is still to be made; FileExistsError where another has its name."""
    folder = recaption_folder(directory, name, "--caption")
    if not folder.exists():
        return True
    info = asdict(Recaption(directory, manifest, name, "--caption").info)
    if other := [key for key, value in request.items() if info[key] != value]:
        raise FileExistsError(
            f"{folder} is there already, made with other {', '.join(other)}: choose another name "
            "with --caption, or remove that folder"
        )
    return False


def _tagger(manifest: Manifest) -> TaggerName:
    """The tagger of the dataset's own captions."""
    known: tuple[TaggerName, ...] = get_args(TaggerName)
    if manifest.tagger not in known:
        raise ValueError(
            f"the manifest's tagger {manifest.tagger!r} is not one of {list(known)}: the new "
            "captions could not get the same word classes; build the dataset again"
        )
    return next(name for name in known if name == manifest.tagger)


@contextmanager
def _working(directory: Path) -> Iterator[Path]:
    """A folder for what is unfinished, which nobody else uses; gone at the end, as is what a kill
    has left. OSError says why a write failed."""
    root = directory / RECAPTIONS_FOLDER
    work = root / _WORK_FOLDER
    try:
        with locked(root):
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                yield work
            finally:
                shutil.rmtree(work, ignore_errors=True)
                (root / LOCK_FILE).unlink(missing_ok=True)
                with suppress(OSError):
                    root.rmdir()  # where nothing came of it
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise OSError(
            f"{root}: {why_not_written(error, directory)}; fix this, or make room, and give the "
            "same command again"
        ) from error


def _table_entries(
    table: PlainTable,
    options: RecaptionOptions,
    templates: list[CaptionTemplate],
    rejected: Counter[str],
) -> Iterator[tuple[str, Any]]:
    """(key, (place, columns)) of each row that has a key and whose texts can be read."""
    used = list(dict.fromkeys(name for one in templates for name in one.columns))
    columns = list(dict.fromkeys([options.key, *used]))
    for place, row in table.rows(columns):
        key = key_text(row[options.key], f"--key {options.key} at {place}")
        if key is None:
            rejected["key_missing"] += 1
        elif options.match is None and not is_hex_key(key):
            raise ValueError(
                f"--key {options.key} at {place} holds {key[:40]!r}, no sample's key of "
                f"{KEY_CHARS} lower-case hexadecimal digits: choose another column, or name "
                "the metadata column that holds such values with --match"
            )
        else:
            try:
                yield key, (place, {name: field_texts(row[name]) for name in used})
            except RejectedError as rejection:
                rejected[rejection.reason] += 1


def _sample_entries(
    directory: Path, manifest: Manifest, options: RecaptionOptions, shards: ShardOptions
) -> Iterator[tuple[str, int]]:
    """(key, row) of each sample that has one."""
    reader = text_tier(directory, manifest, shards)
    if options.match is None:
        index = reader.index
        for rows in space_rows(manifest.samples, None):
            keys = index["key"][rows].tolist()
            yield from zip((key.decode() for key in keys), rows.tolist(), strict=True)
        return
    for row, meta in enumerate(sample_metadata(reader, 0, manifest.samples)):
        if options.match not in meta:
            raise ValueError(
                f"--match {options.match}: {directory} has no such metadata (sample {row}); choose "
                f"one of {sorted(meta)}"
            )
        key = key_text(meta[options.match], f"--match {options.match} in sample {row}")
        if key is not None:
            yield key, row


def _add(total: Joined, one: Joined) -> None:
    """Add what came of one more bucket."""
    total.rows += one.rows
    total.given += one.given
    total.unmatched_rows += one.unmatched_rows
    total.repeated += one.repeated
    total.left_out += one.left_out
    total.example = total.example or one.example
    total.rejected.update(one.rejected)
    total.having.update(one.having)
    for name, counts in one.counts.items():
        total.counts[name] = total.counts[name] + counts if name in total.counts else counts


def _check(directory: Path, options: RecaptionOptions, joined: Joined) -> None:
    """ValueError where keys repeat, or nothing fits."""
    if joined.repeated:
        raise ValueError(
            f"{joined.repeated:,} rows of --source {options.source} have the --key "
            f"{options.key} of another row, e.g. {joined.example}: leave one row a key, or put a "
            "key's captions into a column of lists"
        )
    if not joined.having:
        with_what = f"--match {options.match}" if options.match else "the samples' keys"
        raise ValueError(
            f"no caption came of {joined.rows:,} rows of --source {options.source}: "
            f"{joined.unmatched_rows:,} have a --key {options.key} that no sample of {directory} "
            f"has (compared with {with_what}), rejected {dict(joined.rejected)}; change --key or "
            "--match, or --caption" + say_dropped(joined.rejected)
        )


def _summary(directory: Path, name: str, info: RecaptionInfo, joined: Joined) -> str:
    folder = recaption_folder(directory, name, "--caption")
    samples = info.samples_matched + info.samples_unmatched
    rejected = "".join(f", {count:,} {reason}" for reason, count in info.rejected.items())
    left_out = f", {joined.left_out:,} entries of lists left out" if joined.left_out else ""
    return (
        f"{folder}: {info.samples_matched:,} of {samples:,} samples; of the table "
        f"{info.rows_matched:,} rows, {info.rows_unmatched:,} match no sample{rejected}{left_out}"
    )
