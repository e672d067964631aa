"""`python -m pretrain.search MODEL DIR`: a page that searches a dataset by text or picture."""

import sys
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings
from werkzeug.serving import WSGIRequestHandler, make_server

from pretrain import load
from pretrain.base.checks import check_between, check_positive
from pretrain.base.faults import INTERRUPTED, one_line_faults
from pretrain.search.collection import Collection
from pretrain.search.page import SearchPage

_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
_LOCAL = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How the page is served."""

    host: str = "127.0.0.1"
    """Address to listen on. Any but this machine's own shows the dataset to the network."""
    port: int = 8000
    """Port to listen on; 0: a free one."""
    top: int = 24
    """Pictures that are shown for a query."""
    embeddings: str | None = None
    """Name of embeddings of the dataset. Null: the first that this model made, or none."""
    batch: int = 64
    """Pictures per forward, where they are embedded now."""
    device: str = "auto"
    """Any of torch's names. auto: CUDA if there, else the CPU."""

    def __post_init__(self) -> None:
        check_positive({"--batch": self.batch})
        check_between({"--port": self.port}, 0, 65536)
        check_between({"--top": self.top}, 1, 1001)


class QuietHandler(WSGIRequestHandler):
    """No line for each request: a page has one a picture."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Faults are still logged."""


def serve(model: Path, directory: Path, options: SearchOptions) -> None:
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
    server.serve_forever()


def main(arguments: list[str] | None = None) -> None:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="pretrain.search", description=__doc__)
    parser.add_argument("model", metavar="MODEL", type=Path, help="Exported model or run folder.")
    parser.add_argument("dataset", metavar="DIR", type=Path, help="Dataset directory.")
    parser.add_class_arguments(SearchOptions, as_group=False)
    parsed = parser.parse_args(arguments)
    with one_line_faults():
        options = SearchOptions(
            host=parsed.host,
            port=parsed.port,
            top=parsed.top,
            embeddings=parsed.embeddings,
            batch=parsed.batch,
            device=parsed.device,
        )
        try:
            serve(parsed.model, parsed.dataset, options)
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
