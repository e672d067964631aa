"""Work as tasks whose results are kept on the disk as they come: killed anywhere, spread anywhere,
the same command goes on, and the results are the same.

    FOLDER/request.json   what was asked; of another request nothing is kept
    FOLDER/000012.npz     the result of task 12: its arrays, and the rest as JSON (no pickle)
"""

import errno
import hashlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from data_prep.pool import PoolOptions, Report, run_in_pool, share_of
from pretrain.base.files import write_durably
from pretrain.base.lock import locked
from pretrain.base.progress import Bar

S = TypeVar("S")
T = TypeVar("T")
Record = dict[str, Any]  # of what JSON has, and arrays

_REQUEST_FILE = "request.json"
_PLAIN = "plain"  # the member of a file that is JSON
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


def digest_of(request: Record) -> str:
    """A name for the folder of a request's results, where others may ask otherwise."""
    told = json.dumps(request, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(told).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Records(Generic[S, T]):
    """The results of function(state, item) for each item, one file each in a folder.

    The function is pure: it may be called twice for an item, by two processes at once. It is of a
    module's top level, and items are the same for every call with this request.
    """

    folder: Path
    request: Record  # all that decides the results
    function: Callable[[S, T], Record]
    state: S
    items: Sequence[T]
    marks: Sequence[str] | None = None  # of each item, the state of what it reads: in a file's name

    @cached_property
    def _here(self) -> Path:
        """The folder, empty of what another request left; elsewhere where it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.folder):
                path = self.folder / _REQUEST_FILE
                asked = json.dumps(self.request, sort_keys=True, ensure_ascii=False) + "\n"
                if not path.exists() or path.read_text(encoding="utf-8") != asked:
                    for old in self.folder.glob("*.npz"):
                        old.unlink(missing_ok=True)
                    write_durably(path, asked)
        except OSError as error:
            if error.errno not in _NOT_WRITABLE:
                raise
            print(
                f"note: {self.folder} cannot be written: nothing is kept if this is ended",
                file=sys.stderr,
            )
            return Path(tempfile.mkdtemp())
        return self.folder

    @property
    def is_kept(self) -> bool:
        """Whether another process, or a later one, sees the results."""
        return self._here == self.folder

    def do(self, options: PoolOptions, *, what: str, unit: str, others: bool = False) -> None:
        """Make the results that are missing; of one share alone where the options name it.

        others: those of the other shares too, after its own. Shares that were started together then
        do each its part, and one that stays behind delays nobody.
        """
        share = share_of(len(self.items), options)
        rest = [*range(share.stop, len(self.items)), *range(share.start)] if others else []
        numbers = [*share, *rest]
        todo = [number for number in numbers if not self._path(number).exists()]
        work = _Work(function=self.function, state=self.state)
        done = len(numbers) - len(todo)
        with Bar(total=len(numbers), done=done, unit=unit, what=what) as bar:
            asked = [(self._path(number), self.items[number]) for number in todo]
            with closing(run_in_pool(_make, work, asked, options, lambda _: None)) as running:
                for _ in running:
                    bar.update()

    def __iter__(self) -> Iterator[Record]:
        """The results in the order of the items; all have been made."""
        return self.of_share(PoolOptions())

    def of_share(self, options: PoolOptions) -> Iterator[Record]:
        """Those of one share alone where the options name it."""
        return (read_record(self._path(number)) for number in share_of(len(self.items), options))

    def missing(self) -> int:
        """How many results have not been made."""
        return sum(not self._path(number).exists() for number in range(len(self.items)))

    def remove(self) -> None:
        """Forget the results."""
        shutil.rmtree(self._here, ignore_errors=True)

    def _path(self, number: int) -> Path:
        mark = "" if self.marks is None else self.marks[number]
        return self._here / f"{number:06d}{mark}.npz"


@dataclass(frozen=True, kw_only=True)
class _Work:
    """What travels to every worker."""

    function: Callable[[Any, Any], Record]
    state: Any


def _make(work: _Work, item: tuple[Path, Any], report: Report) -> None:
    """The result of one item, unless another process has made it meanwhile."""
    del report
    path, asked = item
    if path.exists():
        return
    write_record(path, work.function(work.state, asked))


def write_record(path: Path, record: Record) -> None:
    """Write a result aside, and give it its name."""
    arrays = {name: value for name, value in record.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in record.items() if name not in arrays}
    text = json.dumps(plain, ensure_ascii=False).encode("utf-8", "surrogatepass")
    content = io.BytesIO()
    members: dict[str, Any] = {**arrays, _PLAIN: np.frombuffer(text, np.uint8)}
    np.savez(content, **members)
    write_durably(path, content.getvalue())


def read_record(path: Path) -> Record:
    """A result as it was made. ValueError names a file that is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            record: Record = {name: file[name] for name in file.files if name != _PLAIN}
            text = file[_PLAIN].tobytes().decode("utf-8", "surrogatepass")
            record |= json.loads(text)
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: {error}: remove this file and give the same command again"
        ) from error
    return record
