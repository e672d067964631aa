"""A web server on loopback whose answers are of every kind that links of the web meet."""

import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data_prep_corpus import encoded, picture
from loopback import served
from PIL import Image

SLOW_S = 4
REQUESTS: Counter[str] = Counter()


def body(path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content for a path such as /good/3.jpg."""
    name, _, number = path.strip("/").partition("/")
    seed = int(number.partition(".")[0] or 0)
    jpeg = encoded(picture(seed, width=640, height=480), "JPEG")
    answers = {
        "good": (200, {}, jpeg),
        "png": (200, {}, encoded(picture(seed))),
        "gone": (404, {}, b"no such picture"),
        "broken": (500, {}, b"an error"),
        "page": (200, {}, b"<html>a page, no picture</html>"),
        "cut": (200, {}, jpeg[: len(jpeg) // 2]),
        "slow": (200, {}, jpeg),
        "noai": (200, {"X-Robots-Tag": "noai, noimageai"}, jpeg),
        "named": (200, {"X-Robots-Tag": "ourbot: noai"}, jpeg),
        "turned": (200, {}, turned(seed)),
    }
    return answers[name]


def turned(seed: int) -> bytes:
    """A JPEG that its EXIF tag turns by a quarter."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture(seed, width=640, height=480).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Answers by the path; `slow` comes too late for a short timeout."""

    def do_GET(self) -> None:
        REQUESTS[self.path] += 1
        status, headers, content = body(self.path)
        if self.path.startswith("/slow"):
            time.sleep(SLOW_S)
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content)
        except OSError:
            return  # whoever asked has gone

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def serving() -> Iterator[str]:
    """The server's address while it runs."""
    with served(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"
