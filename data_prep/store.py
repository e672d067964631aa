"""A folder of an object store, and the folder on this machine in which its files are made."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_prep.sources.far import Place
from pretrain.base.files import aside

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Store:
    """Files by their names relative to both. Each is there whole or not at all.

    OSError names the file, what the store said, and what to do.
    """

    address: str  # for fsspec, without a slash behind it
    folder: Path

    def sizes(self, below: str = "") -> dict[str, int]:
        """Bytes of every file there whose name begins with the folder `below`."""

        def ask() -> dict[str, int]:
            system, root = self._open()
            base = f"{root}/{below}".rstrip("/")
            found = system.find(base, detail=True, refresh=True)
            return {name[len(root) + 1 :]: entry["size"] for name, entry in found.items()}

        with suppress(FileNotFoundError):
            return self._try(below, ask)
        return {}

    def bring(self, name: str) -> bool:
        """Copy a file here, over what is here; False where there is none."""

        def copy() -> None:
            system, root = self._open()
            with aside(self.folder / name) as file:
                system.get_file(f"{root}/{name}", file.name)

        try:
            self._try(name, copy)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """A small file there; None where there is none."""

        def ask() -> bytes:
            system, root = self._open()
            content: bytes = system.cat_file(f"{root}/{name}")
            return content

        try:
            return self._try(name, ask)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """A small file there."""

        def put() -> None:
            system, root = self._open()
            system.pipe_file(f"{root}/{name}", content)

        self._try(name, put)

    def send(self, name: str, *, stays: bool = True) -> None:
        """Copy a file there; whole before it can be seen. stays: whether it is kept here."""
        path = self.folder / name

        def copy() -> None:
            system, root = self._open()
            system.put_file(str(path), f"{root}/{name}")
            system.invalidate_cache()
            size = system.info(f"{root}/{name}")["size"]
            if size != path.stat().st_size:
                raise OSError(f"{size:,} of {path.stat().st_size:,} bytes are there")

        self._try(name, copy)
        if not stays:
            path.unlink()

    def take(self, address: str, name: str) -> None:
        """Copy a file of another folder of the same store to here, without its way over this
        machine."""

        def copy() -> None:
            system, root = self._open()
            system.copy(system._strip_protocol(address), f"{root}/{name}")

        self._try(name, copy)

    def move(self, name: str, to: str) -> None:
        """Rename a file there, unless that was done before."""

        def rename() -> None:
            system, root = self._open()
            with suppress(FileNotFoundError):
                system.mv(f"{root}/{name}", f"{root}/{to}")

        self._try(name, rename)

    def remove(self, names: Iterable[str]) -> None:
        """Files there go, in this order, those that are there."""
        asked = list(names)

        def delete() -> None:
            system, root = self._open()
            for name in asked:
                with suppress(FileNotFoundError):
                    system.rm_file(f"{root}/{name}")

        if asked:
            self._try(asked[0], delete)

    def _open(self) -> tuple[Any, str]:
        """The file system, and this folder's path there."""
        import fsspec  # most builds stay on this machine

        system, root = fsspec.url_to_fs(self.address)
        system.invalidate_cache()
        return system, root

    def _try(self, name: str, request: Callable[[], T]) -> T:
        place = Place()
        try:
            return place.persistently(request)
        except FileNotFoundError:
            raise
        except Exception as error:  # every file system has its own
            raise OSError(f"{self.address}/{name}: {place.describe(error)}") from error
