"""A real S3 server on loopback (moto's), behind which requests can be refused, cut, or slowed."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import fsspec
from werkzeug.serving import WSGIRequestHandler, make_server

KEY = "the-right-key"
_REFUSED = b"<Error><Code>%s</Code><Message>%s</Message></Error>"
Application = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


class ObjectStore:
    """What the tests decide of its answers."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._lock = threading.Lock()
        self.requests: list[tuple[str, str]] = []  # method, path
        self.busy_every = 0  # of so many requests one is answered 503
        self.cut_every = 0  # of so many answers with a body one ends in its middle
        self.wait_s = 0.0  # before a body
        self.writes_left: int | None = None  # then everything is refused
        self.address = ""

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.requests.append((method, path))
            number = len(self.requests)
            if method in ("PUT", "POST") and self.writes_left is not None:
                self.writes_left -= 1
            over = self.writes_left is not None and self.writes_left < 0
        if KEY not in environ.get("HTTP_AUTHORIZATION", KEY):
            return self._refuse(environ, start, "403 Forbidden", b"InvalidAccessKeyId")
        if over:
            return self._refuse(environ, start, "403 Forbidden", b"AccessDenied")
        if self.busy_every and number % self.busy_every == 0:
            return self._refuse(environ, start, "503 Slow Down", b"SlowDown")
        answer = self._application(environ, start)
        if method == "GET" and (self.wait_s or self.cut_every):
            return self._spoil(b"".join(answer), number)
        return answer

    def _spoil(self, body: bytes, number: int) -> Iterator[bytes]:
        time.sleep(self.wait_s)
        if self.cut_every and number % self.cut_every == 0 and len(body) > 1000:
            yield body[: len(body) // 2]
            raise ConnectionResetError("cut by the test")
        yield body

    @staticmethod
    def _refuse(
        environ: WSGIEnvironment, start: StartResponse, status: str, code: bytes
    ) -> list[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"].read(length)
        start(status, [("Content-Type", "application/xml")])
        return [_REFUSED % (code, b"as the test asked")]

    def files(self, bucket: str) -> dict[str, bytes]:
        """All objects of a bucket."""
        system = fsspec.filesystem("s3")
        system.invalidate_cache()
        found = system.find(bucket)
        return {name.removeprefix(bucket + "/"): system.cat_file(name) for name in found}


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        del type, message, args


@contextmanager
def object_store(set_variable: Callable[[str, str], None]) -> Iterator[ObjectStore]:
    """A running store; set_variable: of the environment, through which clients find it."""
    from moto.backends import get_backend
    from moto.server import DomainDispatcherApplication, create_backend_app

    get_backend("s3")["123456789012"]["aws"].reset()
    store = ObjectStore(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, store, threaded=True, request_handler=_Quiet)
    store.address = f"http://127.0.0.1:{server.port}"
    variables = {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "5",
    }
    for name, value in variables.items():
        set_variable(name, value)
    fsspec.filesystem("s3").clear_instance_cache()  # another test's server
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        fsspec.filesystem("s3").mkdir("bucket")
        yield store
    finally:
        server.shutdown()
        thread.join()
        fsspec.filesystem("s3").clear_instance_cache()
