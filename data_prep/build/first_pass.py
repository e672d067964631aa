"""What is read of a corpus before its tasks are known: captions for the tokenizer, the rows that
pass --where. Blocks of rows, spread as the tasks will be."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.build.options import BuildOptions
from data_prep.build.tasks import first_pass_folder
from data_prep.records import Record, Records, digest_of
from data_prep.rejection import RejectedError
from data_prep.sources import Corpus
from data_prep.sources.folder import list_folder, table_in
from data_prep.text.captions import CaptionTemplate, make_captions
from data_prep.text.placeholders import say_dropped
from data_prep.text.vocabulary import sample_texts, train_tokenizer

_BLOCK_ROWS = 1 << 14
_FEW_ROWS = 1 << 19  # are read by one process before others have started
_SAMPLED_FROM = 4  # rows are read for each caption that is wanted, of a corpus that has more


def train_on_corpus(
    corpus: Corpus, templates: list[CaptionTemplate], options: BuildOptions
) -> bytes:
    """A tokenizer trained on the captions of a first pass, which reads no pictures.

    Of a large corpus it reads blocks at equal distances, or all where these give too few.
    ValueError where no row gives a caption.
    """
    most = options.vocabulary.tokenizer_captions
    rejected: Counter[str] = Counter()  # for the manifest in the pass that writes

    some = spaced_blocks(corpus.rows, _SAMPLED_FROM * most)
    whole = spaced_blocks(corpus.rows, corpus.rows)

    def all_texts(blocks: list[tuple[int, int]]) -> Iterator[str]:
        rejected.clear()
        state = corpus, templates, options.captions.caption_max_chars
        for record in _each(_captions_of, state, blocks, corpus, options, "read captions"):
            rejected.update(record["rejected"])
            yield from record["texts"]

    texts = sample_texts(all_texts(some), most)
    if len(texts) < most and some != whole:  # few rows pass --where, or have a caption
        texts = sample_texts(all_texts(whole), most)
    if not texts:
        folder = Path(options.source.source)
        asked = [f"{one.name}={one.template}" for one in templates if not one.entry]
        raise ValueError(
            f"no row of {options.source.source} gives a caption: {corpus.rows} rows, "
            f"where={options.source.where!r}, caption={asked}, {dict(rejected)}; it has the "
            f"columns {corpus.columns}; change --where or --caption"
            + (table_in(folder, list_folder(folder)) if folder.is_dir() else "")
            + (", or write the texts in UTF-8" if "caption_not_utf8" in rejected else "")
            + say_dropped(rejected)
        )
    return train_tokenizer(texts, options.vocabulary)


def selected_rows(corpus: Corpus, options: BuildOptions) -> Iterator[np.ndarray]:
    """The numbers of the rows that pass --where, in order, some at a time."""
    if corpus.where is None:
        yield from corpus.selected()
        return
    blocks = spaced_blocks(corpus.rows, corpus.rows)
    for record in _each(_rows_of, corpus, blocks, corpus, options, "select rows"):
        yield record["rows"]


def spaced_blocks(rows: int, most: int) -> list[tuple[int, int]]:
    """(first row, row behind the last) of blocks at equal distances that hold `most` rows or a few
    more; all rows where there are no more."""
    whole = -(-rows // _BLOCK_ROWS)
    count = min(whole, max(1, -(-most // _BLOCK_ROWS)))
    firsts = [i * whole // count * _BLOCK_ROWS for i in range(count)]
    return [(first, min(first + _BLOCK_ROWS, rows)) for first in firsts]


def _each(
    function: Callable[[Any, tuple[int, int]], Record],
    state: Any,
    blocks: list[tuple[int, int]],
    corpus: Corpus,
    options: BuildOptions,
    what: str,
) -> Iterator[Record]:
    """function(state, block) of each block, in order."""
    if len(blocks) * _BLOCK_ROWS <= _FEW_ROWS:
        for block in blocks:
            yield function(state, block)
        return
    asked = {
        "state": corpus.source.state(),
        "where": options.source.where,
        "image_column": options.source.image_column,
        "captions": repr(options.captions),
        "rows": corpus.rows,
        "blocks": len(blocks),
    }
    records = Records(
        folder=first_pass_folder(options.writer.folder, what)
        / digest_of(asked),  # others may ask otherwise
        request=asked,
        function=function,
        state=state,
        items=blocks,
    )
    records.do(options.run, what=what, unit="blocks", others=True)
    yield from records


def _captions_of(
    state: tuple[Corpus, list[CaptionTemplate], int], block: tuple[int, int]
) -> Record:
    """The captions of a block, and how many rows have none, by reason."""
    corpus, templates, max_chars = state
    columns = sorted({column for template in templates for column in template.columns})
    rejected: Counter[str] = Counter()
    texts: list[str] = []
    for record in corpus.records(columns, with_images=False, start=block[0], stop=block[1]):
        try:
            texts += make_captions(templates, record.columns, max_chars).values()
        except RejectedError as rejection:
            rejected[rejection.reason] += 1
    return {"texts": texts, "rejected": rejected}


def _rows_of(corpus: Corpus, block: tuple[int, int]) -> Record:
    """The numbers of a block's rows that pass --where."""
    return {"rows": np.concatenate([np.empty(0, np.int64), *corpus.selected(*block)])}
