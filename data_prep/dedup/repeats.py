"""Samples whose caption earlier samples have: which are one too many."""

import hashlib
import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.dedup.hashes import row_blocks
from data_prep.pool import PoolOptions, Report, run_in_pool
from pretrain.base.progress import Bar
from pretrain.dataset.manifest import Manifest
from pretrain.dataset.rows import text_tier

_ABSENT = np.uint64(0)


@dataclass(frozen=True, kw_only=True)
class Captions:
    """What every worker needs."""

    directory: Path
    manifest: Manifest
    name: str


def caption_digests(state: Captions, run: PoolOptions) -> NDArray[np.uint64]:
    """(samples,) 64 bits of each sample's caption, ABSENT where it has none.

    Different captions share them with a chance of 3 in 10,000 among 100 million.
    """
    digests = np.empty(state.manifest.samples, np.uint64)
    results = run_in_pool(
        _digest_block,
        state,
        row_blocks(len(digests)),
        run,
        lambda _: None,
    )
    with Bar(total=len(digests), unit="samples", what="captions") as bar:
        for first, part in results:
            digests[first : first + len(part)] = part
            bar.update(len(part))
    return digests


def _digest_block(state: Captions, rows: range, report: Report) -> tuple[int, NDArray[np.uint64]]:
    """First row and the digests of a range of rows."""
    del report
    reader = text_tier(state.directory, state.manifest)
    digests = np.empty(len(rows), np.uint64)
    for place, (details,) in enumerate(reader.members(np.array(rows, np.int64), ("json",))):
        text = _normalise(json.loads(details)["captions"].get(state.name, ""))
        told = hashlib.blake2b(text.encode(), digest_size=8).digest()
        digests[place] = max(int.from_bytes(told, "little"), 1) if text else _ABSENT
    return rows.start, digests


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
