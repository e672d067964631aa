"""The server of the search page."""

import contextlib
import threading
from pathlib import Path
from typing import Any

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler

from pretrain import load
from pretrain.base.exit_codes import INTERRUPTED
from pretrain.search.collection import Collection
from pretrain.search.options import SearchOptions
from pretrain.search.page import SearchPage

_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
_LOCAL = {"127.0.0.1", "localhost", "::1"}


REQUESTS_AT_ONCE = 32  # a page asks for its pictures by six or so connections


class QuietHandler(WSGIRequestHandler):
    """No line for each request: a page has one a picture. Whoever sends nothing is cut off."""

    timeout = 5.0  # s

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Faults are still logged."""


class BoundedServer(ThreadedWSGIServer):
    """A thread a request, and no more than REQUESTS_AT_ONCE: later ones wait to be accepted."""

    def __init__(self, host: str, port: int, page: SearchPage) -> None:
        self._free = threading.Semaphore(REQUESTS_AT_ONCE)
        super().__init__(host, port, page, QuietHandler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._free.acquire()
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


def _shown_name(model: Path) -> str:
    """The folder that a person knows the model by: the run's, of an export inside it."""
    folder = model.resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def serve(model: Path, directory: Path, options: SearchOptions) -> int:
    """Serve the page until interrupted."""
    loaded = load(model, device=options.device, batch=options.batch)
    collection = Collection(loaded, directory, options.embeddings, options.batch)
    hosts = _LOOPBACK if options.host in _LOCAL else None
    page = SearchPage(collection, directory.resolve().name, _shown_name(model), options.top, hosts)
    try:
        server = BoundedServer(options.host, options.port, page)
    except SystemExit as error:  # its way of saying that the address cannot be had
        raise ValueError(
            f"--host={options.host} --port={options.port} is not available: choose another --port"
        ) from error
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"{len(collection):,} pictures of {directory}, {collection.source}")
    print(f"http://{shown}:{server.server_port}/ until Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how one ends it
        server.serve_forever()
    return INTERRUPTED
