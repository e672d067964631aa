"""Copies of far files: whatever the address, whole, in time while something comes, and bounded."""

import hashlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from loopback import served

from pretrain.base.lock import locked
from pretrain.dataset.far_files import FarFile, FarFileError, FarFiles, read_all

PIECE, PIECES, WAIT_S = b"x" * 1000, 8, 0.2


class Slow(BaseHTTPRequestHandler):
    """Something comes all the time, but in all it takes long; /stands sends half, and waits."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(PIECE) * PIECES))
        self.end_headers()
        for number in range(PIECES):
            if self.path == "/stands" and number == PIECES // 2:
                time.sleep(1.5)
            self.wfile.write(PIECE)
            self.wfile.flush()
            time.sleep(WAIT_S)

    def log_message(self, format: str, *args: object) -> None:
        return


def copies(folder: Path, limit_bytes: int | None = None, timeout_s: float = 30.0) -> FarFiles:
    return FarFiles(folder, limit_bytes, timeout_s=timeout_s, options=("here", "limit", "wait"))


def far(name: str, content: bytes, *, known: bool = True) -> FarFile:
    """A file on fsspec's own file system in memory."""
    with fsspec.open(f"memory://far/{name}", "wb") as file:
        file.write(content)
    digest = hashlib.sha256(content).hexdigest() if known else None
    return FarFile(address=f"memory://far/{name}", bytes=len(content), sha256=digest)


def test_the_timeout_counts_from_what_came_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pretrain.dataset.far_files._BLOCK_BYTES", len(PIECE))
    with served(ThreadingHTTPServer(("127.0.0.1", 0), Slow)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        cache = copies(tmp_path, timeout_s=WAIT_S * PIECES / 2)
        file = FarFile(address=f"{address}/comes", bytes=len(PIECE) * PIECES, sha256=None)
        assert cache.read(file, Path.read_bytes) == PIECE * PIECES
        stands = FarFile(address=f"{address}/stands", bytes=len(PIECE) * PIECES, sha256=None)
        with pytest.raises(FarFileError, match=r"/stands could not .* nothing came for wait=0\.8"):
            cache.bring(stands)
        time.sleep(2.0)  # the read that was left behind ends, and writes nothing under any name
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [cache.path(file).name]


@pytest.mark.parametrize("known", [True, False])
def test_another_file_than_the_one_expected_is_none(tmp_path: Path, known: bool):
    cache, file = copies(tmp_path), far("a.parquet", b"first", known=known)
    assert cache.read(file, Path.read_bytes) == b"first"
    fsspec.filesystem("memory").rm("/far/a.parquet")
    assert cache.read(file, Path.read_bytes) == b"first"  # it is here
    assert cache.path(file).suffix == ".parquet"
    cache.path(file).unlink()
    with pytest.raises(FarFileError, match=r"memory://far/a\.parquet could not be copied to .*Not"):
        cache.bring(file)
    far("a.parquet", b"firsts" if not known else b"secon")
    said = "6 of 5 bytes came" if not known else "5 bytes with sha256 .* came"
    with pytest.raises(FarFileError, match=said):
        cache.bring(file)
    assert not [path for path in tmp_path.iterdir() if path.is_file()]


def test_room_is_made_before_a_file_comes_and_what_is_open_stays_readable(tmp_path: Path):
    cache = copies(tmp_path, limit_bytes=2000)
    files = [far(f"{number}.bin", bytes([number]) * 900) for number in range(6)]
    held = [cache.read(file, lambda path: path.open("rb")) for file in files]
    assert sum(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) == 1800
    assert [file.read() for file in held] == [bytes([number]) * 900 for number in range(6)]
    for file in held:
        file.close()
    unbounded = copies(tmp_path / "all")
    for file in files:
        unbounded.bring(file)
    assert len(list((tmp_path / "all").glob("*.bin"))) == 6


def test_no_failure_of_a_file_system_passes_for_a_success(tmp_path: Path, monkeypatch):
    """The room is taken before, so that the size alone would say that the copy is whole."""
    file = far("b.bin", b"right" * 100)

    class Fails:
        def __enter__(self) -> "Fails":
            return self

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("the connection is gone")

        def read(self, _: int) -> bytes:
            return b""

    cache = copies(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("pretrain.dataset.far_files.open_far", lambda *_: Fails())
        with pytest.raises(FarFileError, match="the connection is gone"):
            cache.bring(file)
    assert cache.read(file, Path.read_bytes) == b"right" * 100


def test_who_gives_up_does_not_wait_for_another_that_fetches(tmp_path: Path):
    file = far("c.bin", b"x" * 100)
    cache = copies(tmp_path)
    number = int(cache.path(file).name[:4], 16) % 64
    given_up = threading.Event()
    given_up.set()
    with locked(tmp_path / "locks" / str(number)):
        begin = time.monotonic()
        with pytest.raises(FarFileError, match="no longer needed"):
            cache.bring(file, given_up)
        assert time.monotonic() - begin < 5
    cache.bring(file)


def test_an_address_with_a_query_is_kept_by_its_suffix(tmp_path: Path):
    cache = copies(tmp_path)
    file = FarFile(address="https://host/a/x.tar?sig=a%2Fb.c", bytes=1, sha256=None)
    assert cache.path(file).suffix == ".tar"
    odd = FarFile(address="https://host/a/x.t-r!", bytes=1, sha256=None)
    assert cache.path(odd).suffix == ""


def test_an_address_that_nobody_knows_is_one_error():
    for address in ("nonsense://a/b", "memory://far/nothing"):
        with pytest.raises(FarFileError):
            read_all(address)
