"""The folders DIR/captions/NAME: writing one, and opening all that a dataset has."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build.writer import array_file
from data_prep.recaption.join import Joined, JoinState, read_texts
from data_prep.text.captions import CaptionTemplate
from pretrain.base.files import file_sha256, sync, write_durably
from pretrain.dataset.captions import (
    CLASSES_FILE,
    COUNTS_FILE,
    FILES,
    IDS_FILE,
    INDEX_DTYPE,
    INDEX_FILE,
    INFO_FILE,
    FileInfo,
    Recaption,
    RecaptionInfo,
    recaption_names,
)
from pretrain.dataset.manifest import Manifest


def write_recaption(
    state: JoinState,
    manifest: Manifest,
    template: CaptionTemplate,
    joined: Joined,
    buckets: int,
    request: dict[str, Any],
) -> RecaptionInfo:
    """One caption's folder, whole and on the disk, under the work folder. request: what decides
    it."""
    folder = state.work / template.name
    folder.mkdir()
    parts = (
        read_texts(state.work, template.name, number, state.token_dtype)
        for number in range(buckets)
    )
    having = _write_texts(folder, manifest.samples, heapq.merge(*parts))
    counts = joined.counts[template.name].astype("<u8")
    write_durably(folder / COUNTS_FILE, array_file(counts))
    rows = joined.having[template.name]
    rejected = Counter(joined.rejected)
    if absent := joined.given - rows:  # that give another caption of this command alone
        rejected["caption_absent"] = absent
    info = RecaptionInfo(
        **request,
        samples_matched=having,
        samples_unmatched=manifest.samples - having,
        rows_matched=rows,
        rows_unmatched=joined.unmatched_rows,
        rejected=dict(rejected),
        files={
            name: FileInfo(bytes=(folder / name).stat().st_size, sha256=file_sha256(folder / name))
            for name in FILES
        },
    )
    write_durably(folder / INFO_FILE, info.to_json())
    return info


def _write_texts(
    folder: Path, samples: int, texts: Iterable[tuple[int, int, int, bytes, bytes]]
) -> int:
    """Ids, word classes and index of texts in the order of their rows; how many there are."""
    path = folder / INDEX_FILE
    index = np.lib.format.open_memmap(path, mode="w+", dtype=INDEX_DTYPE, shape=(samples,))
    offset = having = 0
    with (
        (folder / IDS_FILE).open("wb") as ids_file,
        (folder / CLASSES_FILE).open("wb") as classes_file,
    ):
        for row, tokens, crc32, ids, classes in texts:
            ids_file.write(ids)
            classes_file.write(classes)
            index[row] = offset, tokens, crc32
            offset += tokens
            having += 1
        for file in (ids_file, classes_file):
            file.flush()
            os.fsync(file.fileno())
    index.flush()
    sync(path)
    return having


def open_all(directory: Path, manifest: Manifest) -> tuple[list[Recaption], dict[str, str]]:
    """The captions that came later and fit, and what is to be said of each, fitting or not."""
    opened: list[Recaption] = []
    told: dict[str, str] = {}
    for name in recaption_names(directory):
        try:
            one = Recaption(directory, manifest, name, "captions")
        except ValueError as error:
            told[name] = f"refused: {error}"
            continue
        opened.append(one)
        told[name] = (
            f"{one.info.samples_matched:,} samples; {one.info.rows_unmatched:,} rows of "
            f"{', '.join(one.info.tables)} match none"
        )
    return opened, told
