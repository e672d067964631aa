"""A dataset directory over HTTP on this machine, with faults."""

import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server:
    """A dataset directory over HTTP on this machine, with faults."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.broken: Counter[str] = Counter()  # answers with 503 still to give
        self.hanging = threading.Event()
        self.hanging.set()
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                outer.asked[name] += 1
                outer.hanging.wait(20)
                if outer.broken[name] > 0:
                    outer.broken[name] -= 1
                    self.send_error(503)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        class Patient(ThreadingHTTPServer):
            request_queue_size = 128  # a refused connection would be asked again, and count twice

        self._server = Patient(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.hanging.set()
        self._server.shutdown()
        self._server.server_close()
