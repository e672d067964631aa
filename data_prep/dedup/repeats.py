"""Samples whose caption earlier samples have: which are one too many."""

import hashlib
import json
import unicodedata

import numpy as np
from numpy.typing import NDArray

from data_prep.dataset_tasks import DatasetTasks, RowReader
from data_prep.pool import PoolOptions
from data_prep.records import Record
from pretrain.dataset.rows import row_blocks

_ABSENT = np.uint64(0)


def caption_digests(reader: RowReader, caption: str, pool: PoolOptions) -> NDArray[np.uint64]:
    """(samples,) 64 bits of each sample's caption, ABSENT where it has none.

    Different captions share them with a chance of 3 in 10,000 among 100 million.
    """
    tasks = DatasetTasks(
        directory=reader.directory,
        name="captions",
        asked={"dataset": reader.manifest.fingerprint, "caption": caption},
        function=_digest_block,
        state=(reader, caption),
        items=row_blocks(reader.manifest.samples),
    )
    tasks.do(pool, "blocks of samples")
    digests = np.concatenate([record["digests"] for record in tasks.records])
    tasks.remove()
    return digests


def _digest_block(state: tuple[RowReader, str], block: tuple[int, int]) -> Record:
    """The digests of a block of rows."""
    reader, caption = state
    rows = np.arange(*block)
    digests = np.empty(len(rows), np.uint64)
    for place, (details,) in enumerate(reader.texts.members(rows, ("json",))):
        text = _normalise(json.loads(details)["captions"].get(caption, ""))
        told = hashlib.blake2b(text.encode(), digest_size=8).digest()
        digests[place] = max(int.from_bytes(told, "little"), 1) if text else _ABSENT
    return {"digests": digests}


def _normalise(text: str) -> str:
    """The text without what does not count: case, white space, forms of the same character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def over_cap(digests: NDArray[np.uint64], wanted: NDArray[np.bool_], cap: int) -> NDArray[np.bool_]:
    """(N,) which of the wanted rows come after the first `cap` wanted ones of the same caption."""
    rows = np.flatnonzero(wanted & (digests != _ABSENT))
    order = np.argsort(digests[rows], kind="stable")
    ranked = digests[rows][order]
    over = np.zeros(len(digests), bool)
    over[rows[order[cap:][ranked[cap:] == ranked[:-cap]]]] = True
    return over
