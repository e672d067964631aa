"""The server of the search page."""

import contextlib
from pathlib import Path

from werkzeug.serving import WSGIRequestHandler, make_server

from pretrain import load
from pretrain.base.exit_codes import INTERRUPTED
from pretrain.search.collection import Collection
from pretrain.search.options import SearchOptions
from pretrain.search.page import SearchPage

_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
_LOCAL = {"127.0.0.1", "localhost", "::1"}


class QuietHandler(WSGIRequestHandler):
    """No line for each request: a page has one a picture."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Faults are still logged."""


def serve(model: Path, directory: Path, options: SearchOptions) -> int:
    """Serve the page until interrupted."""
    loaded = load(model, device=options.device, batch=options.batch)
    collection = Collection(loaded, directory, options.embeddings, options.batch)
    hosts = _LOOPBACK if options.host in _LOCAL else None
    page = SearchPage(collection, directory.resolve().name, options.top, hosts)
    try:
        server = make_server(
            options.host, options.port, page, threaded=True, request_handler=QuietHandler
        )
    except SystemExit as error:  # its way of saying that the address cannot be had
        raise ValueError(
            f"--host={options.host} --port={options.port} cannot be had: choose another --port"
        ) from error
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"{len(collection):,} pictures of {directory}, {collection.source}")
    print(f"http://{shown}:{server.server_port}/ until Ctrl-C", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # how one ends it
        server.serve_forever()
    return INTERRUPTED
