"""The vectors that a trained model gives to a dataset's pictures and texts, shard by shard.

A shard's files are there only when they are whole, so a killed command goes on, and any number of
processes can share the shards. This is the one command that runs a model.
"""

import json
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_prep.build.work import writing
from data_prep.build.writer import array_file
from data_prep.dataset_tasks import FarOptions
from data_prep.pool import RunOptions, usable_workers
from pretrain import load
from pretrain.base.checks import check_positive
from pretrain.base.files import rename_durably, write_durably
from pretrain.base.lock import LOCK_FILE, locked
from pretrain.base.progress import Bar
from pretrain.dataset.embeddings import (
    BEGUN_FILE,
    EMBEDDINGS_FILE,
    EmbeddingsInfo,
    Kind,
    read_info,
    shard_file,
)
from pretrain.dataset.manifest import Manifest, embeddings_folder, read_manifest, tier_for
from pretrain.dataset.pictures import decode
from pretrain.dataset.reader import Dataset

if TYPE_CHECKING:
    from pretrain.export.inference import Model

_KINDS: tuple[Kind, ...] = ("image", "text")


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(RunOptions):
    """What is embedded, and who does it"""

    out: str
    """Name of the embeddings: DIR/embeddings/NAME."""
    caption: str | None = None
    """Caption whose text is embedded. Null: each sample's first."""
    tier: str | None = None
    """Image tier that is read. Null: the smallest that has the model's image size."""
    batch: int = 64
    """Pictures or texts per forward."""
    device: str = "auto"
    """Any of torch's names. auto: CUDA if there, else the CPU."""
    workers: int | None = None
    """Threads that read and decode pictures ahead of the model. Null: one for each core."""
    task_index: int | None = None
    """Do every `task_count`-th shard, from this number (0 or more) on; the process that ends last
    finishes the whole."""
    task_count: int | None = None
    """How many shares there are, e.g. the tasks of a Slurm array."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive({"--batch": self.batch})


@dataclass(frozen=True, kw_only=True)
class _ModelInputs:
    """Some rows of a shard, read and decoded."""

    pictures: list[Image.Image]
    texts: list[str | None]  # None: the sample lacks the caption


def embed(model_folder: Path, directory: Path, options: EmbedOptions, far: FarOptions) -> str:
    """Make what is missing of DIR/embeddings/NAME; returns a line of what is there now.

    ValueError or FileNotFoundError name what to change, before anything is written.
    """
    manifest = read_manifest(directory)
    folder = embeddings_folder(directory, options.out, "--out")
    _check_names(directory, manifest, options)
    model = load(model_folder, device=options.device, batch=options.batch)
    tier = options.tier or tier_for(manifest, model.image_px)
    _note_small_pictures(manifest, tier, model.image_px)
    shard_samples = [shard.samples for shard in manifest.tiers[tier].shards]
    info = EmbeddingsInfo(
        model_fingerprint=model.fingerprint(),
        dataset_fingerprint=manifest.fingerprint,
        dimension=model.embed_dim,
        image_px=model.image_px,
        tier=tier,
        caption=options.caption,
        shard_samples=shard_samples,
    )
    with writing(folder):
        _begin(folder, info)
    reader = Dataset(directory, tier, "--tier", far.shards, looks=False)
    share = range(options.task_index or 0, len(shard_samples), options.task_count or 1)
    _embed_shards(model, reader, folder, info, share, options)
    with writing(folder):
        missing = _finish(folder, info)
    done = (
        f"{folder}: {manifest.samples:,} samples, vectors of {info.dimension} numbers of pictures "
        f"(tier {tier}, {info.image_px} px) and texts ({info.caption or 'the first caption'})"
    )
    return f"{folder}: {missing} shards are left to other processes" if missing else done


def _check_names(directory: Path, manifest: Manifest, options: EmbedOptions) -> None:
    """ValueError for a caption or a tier that the dataset lacks."""
    for option, value, found in (
        ("--caption", options.caption, manifest.captions),
        ("--tier", options.tier, list(manifest.tiers)),
    ):
        if value is not None and value not in found:
            raise ValueError(f"{option}={value!r}: {directory} has {found}; choose one of them")


def _note_small_pictures(manifest: Manifest, tier: str, image_px: int) -> None:
    """On stderr, where pictures must be enlarged."""
    shortest_px = manifest.tiers[tier].shortest_px
    if shortest_px is not None and shortest_px < image_px:
        print(
            f"note: pictures of tier {tier} are enlarged to the model's {image_px} px",
            file=sys.stderr,
        )


def _begin(folder: Path, info: EmbeddingsInfo) -> None:
    """Record what is to be made; ValueError where something else was begun or made here."""
    finished, begun = folder / EMBEDDINGS_FILE, folder / BEGUN_FILE
    if finished.exists():
        recorded = read_info(finished)
    else:
        with locked(folder):  # another process may begin or finish just now
            if not finished.exists() and not begun.exists():
                write_durably(begun, info.to_json())
            recorded = read_info(finished if finished.exists() else begun)
    before, now = asdict(recorded), asdict(info)
    other = [name for name in now if before[name] != now[name]]
    if other:
        raise ValueError(
            f"{folder} was made with another {', '.join(other)}: choose another --out, or remove "
            "that folder to make it anew"
        )


def _finish(folder: Path, info: EmbeddingsInfo) -> int:
    """Shards that are missing; where there are none, the embeddings are finished."""
    with locked(folder):
        shards = range(len(info.shard_samples))
        missing = sum(not _is_done(folder, shard) for shard in shards)
        if not missing:
            if not (folder / EMBEDDINGS_FILE).exists():
                rename_durably(folder / BEGUN_FILE, folder / EMBEDDINGS_FILE)
            (folder / LOCK_FILE).unlink(missing_ok=True)  # nobody writes here any more
    return missing


def _is_done(folder: Path, shard: int) -> bool:
    return all(shard_file(folder, shard, kind).exists() for kind in _KINDS)


def _embed_shards(
    model: "Model",
    reader: Dataset,
    folder: Path,
    info: EmbeddingsInfo,
    share: range,
    options: EmbedOptions,
) -> None:
    """Write the files of a share's shards that are missing."""
    firsts = np.cumsum([0, *info.shard_samples])
    total = sum(info.shard_samples[shard] for shard in share)
    with (
        Bar(total=total, unit="samples", what="embed") as bar,
        ThreadPoolExecutor(usable_workers(options.workers)) as pool,
    ):
        for shard in share:
            samples = info.shard_samples[shard]
            if _is_done(folder, shard):
                bar.update(samples)
                continue
            rows = np.arange(firsts[shard], firsts[shard] + samples)
            vectors = {kind: np.zeros((samples, info.dimension), "<f2") for kind in _KINDS}
            done = 0
            for batch in _read_ahead(pool, reader, rows, options):
                here = slice(done, done + len(batch.pictures))
                vectors["image"][here] = model.encode_image(batch.pictures).cpu().numpy()
                having = [place for place, text in enumerate(batch.texts) if text is not None]
                texts = [text for text in batch.texts if text is not None]
                vectors["text"][done + np.asarray(having, np.int64)] = (
                    model.encode_text(texts).cpu().numpy()
                )
                done = here.stop
                bar.update(len(batch.pictures))
            with writing(folder), locked(folder):  # two processes may have made the same
                for kind in _KINDS:
                    if not shard_file(folder, shard, kind).exists():
                        write_durably(shard_file(folder, shard, kind), array_file(vectors[kind]))


def _read_ahead(
    pool: ThreadPoolExecutor, reader: Dataset, rows: NDArray[np.int64], options: EmbedOptions
) -> Iterator[_ModelInputs]:
    """The batches of some rows in order, as many ahead of the model as there are threads."""
    waiting: deque[Future[_ModelInputs]] = deque()
    for at in range(0, len(rows), options.batch):
        some = rows[at : at + options.batch]
        waiting.append(pool.submit(_read, reader, some, options.caption))
        if len(waiting) > usable_workers(options.workers):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _read(reader: Dataset, rows: NDArray[np.int64], caption: str | None) -> _ModelInputs:
    """ValueError names a sample whose picture cannot be decoded."""
    pictures: list[Image.Image] = []
    texts: list[str | None] = []
    for row, (jpeg, words) in zip(
        rows.tolist(),
        reader.members(rows, ("jpg", "txt" if caption is None else "json")),
        strict=True,
    ):
        try:
            picture = Image.fromarray(decode(jpeg))
        except ValueError as error:
            raise ValueError(
                f"{reader.directory}, tier {reader.tier}, row {row}: its picture cannot be read "
                f"({error}): build the dataset again"
            ) from error
        pictures.append(picture)
        texts.append(
            words.decode() if caption is None else json.loads(words)["captions"].get(caption)
        )
    return _ModelInputs(pictures=pictures, texts=texts)
