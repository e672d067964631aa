"""Work on a finished dataset as tasks: results kept in DIR/.work until all are there, so that any
number of starts share it, and a killed one goes on."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from data_prep.pool import PoolOptions, is_share
from data_prep.records import Record, Records, digest_of
from pretrain.dataset.manifest import Manifest
from pretrain.dataset.reader import Dataset
from pretrain.dataset.rows import text_tier
from pretrain.dataset.shards import ShardOptions

S = TypeVar("S")
T = TypeVar("T")

_WORK_FOLDER = ".work"


@dataclass(frozen=True, kw_only=True)
class FarOptions:
    """Where the shard files are read, if not in the dataset directory itself"""

    shards_url: str | None = None
    """Where they lie, as the dataset directory's address for fsspec (s3://, gs://, https://, hf://);
    the directory then holds the small files, which `data_prep fetch` brings. Needs
    --shards-cache."""
    shards_cache: Path | None = None
    """Folder on the node's own disk to which a shard is copied when it is first needed. Null reads
    shards where they are."""
    shards_cache_gib: float = 200.0
    """The copies' size beyond which those that were not used for longest are removed."""
    shards_timeout_s: float = 300.0
    """How long nothing may come of a shard that is copied, before it is tried again."""

    def __post_init__(self) -> None:
        _ = self.shards  # it checks them

    @property
    def shards(self) -> ShardOptions:
        """As training has them."""
        return _FarShards(
            url=self.shards_url,
            cache=self.shards_cache,
            cache_gib=self.shards_cache_gib,
            timeout_s=self.shards_timeout_s,
        )


class _FarShards(ShardOptions):
    """Whose errors name the options of a command."""

    @staticmethod
    def option(name: str) -> str:
        return f"--shards-{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class RowReader:
    """What a worker needs to read rows. It opens the dataset once."""

    directory: Path
    manifest: Manifest
    shards: ShardOptions = field(default_factory=ShardOptions)

    @cached_property
    def texts(self) -> Dataset:
        """The tier with the texts, whose pictures are the smallest."""
        return text_tier(self.directory, self.manifest, self.shards)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "texts"}


@dataclass(frozen=True, kw_only=True)
class DatasetTasks(Generic[S, T]):
    """function(state, item) of each item, as `Records` has it, kept in DIR/.work while it is done.

    asked: all that decides the results, the dataset's fingerprint among it.
    """

    directory: Path
    name: str
    asked: Record
    function: Callable[[S, T], Record]
    state: S
    items: Sequence[T]
    marks: Sequence[str] | None = None

    @cached_property
    def records(self) -> Records[S, T]:
        """In a folder of this request alone: others may be at work at the same time."""
        digest = digest_of(self.asked)
        return Records(
            folder=self.directory / _WORK_FOLDER / f"{self.name.replace(' ', '_')}-{digest}",
            request=self.asked,
            function=self.function,
            state=self.state,
            items=self.items,
            marks=self.marks,
        )

    def do(self, options: PoolOptions, unit: str) -> str | None:
        """Do what is missing; of a share the line that says so, None where all is done.

        OSError where a share cannot be kept.
        """
        records = self.records
        if is_share(options) and not records.is_kept:
            raise OSError(
                f"{self.directory} cannot be written, and the others would not see this share: "
                "leave out --task-index and --task-count"
            )
        if done := len(self.items) - records.missing():
            print(
                f"note: {done:,} of {len(self.items):,} {unit} were done by an earlier start",
                file=sys.stderr,
            )
        records.do(options, what=self.name, unit=unit)
        if not is_share(options):
            return None
        left = records.missing()
        return (
            f"share {getattr(options, 'task_index', 0)} of {getattr(options, 'task_count', 1)} is "
            f"done: {left:,} of {len(self.items):,} {unit} are left; the command without "
            "--task-index and --task-count joins them"
        )

    def remove(self) -> None:
        """Forget the results, once they are used."""
        self.records.remove()
        with suppress(OSError):
            (self.directory / _WORK_FOLDER).rmdir()
