"""A hub on loopback: as much of its HTTP interface as making and filling a repository needs."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import served

TOKEN = "hf_" + "t" * 34
SHA = "0" * 40


class Hub(ThreadingHTTPServer):
    """Repositories by name, and what is in them."""

    def __init__(self, large_aside: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.private: dict[str, bool] = {}
        # Files that go by Git LFS; hf_xet would send them by xet, which is not spoken here.
        self.large_suffix = (".safetensors",) if large_aside else ()
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.answer: tuple[int, str] | None = None  # to whoever wants to write
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def reply(self, content: Any, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        if status >= 400:
            self.send_header("X-Error-Message", content["error"])
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def known(self) -> bool:
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not known:
            self.reply({"error": "Invalid credentials in Authorization header"}, 401)
        return known

    def may_write(self) -> bool:
        if self.known() and self.server.answer is not None:
            self.reply({"error": self.server.answer[1]}, self.server.answer[0])
            return False
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def do_GET(self) -> None:
        path, _, tree = self.path.removeprefix("/api/models/").partition("/tree/")
        name = path.partition("/revision/")[0]
        if not self.known():
            return
        if name not in self.server.files:
            self.reply({"error": "Repository not found"}, 404)
            return
        files = self.server.files[name]
        if tree:
            self.reply([{"type": "file", "path": path, "oid": SHA, "size": len(content)}
                        for path, content in files.items()])  # fmt: skip
            return
        siblings = [{"rfilename": path} for path in files]
        private = self.server.private[name]
        self.reply({"id": name, "private": private, "sha": SHA, "siblings": siblings})

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.reply({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path.startswith("/verify/") or self.path == "/api/validate-yaml":
            self.reply({})
        elif not self.may_write():
            return
        elif self.path == "/api/repos/create":
            self.create(json.loads(body))
        elif "/preupload/" in self.path:
            self.reply({"files": [
                {"path": file["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": ("regular", "lfs")[file["path"].endswith(self.server.large_suffix)]}
                for file in json.loads(body)["files"]
            ]})  # fmt: skip
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            address = self.server.address
            self.reply({"transfer": "basic", "objects": [
                {**found, "actions": {kind: {"href": f"{address}/{kind}/{found['oid']}"}
                                      for kind in ("upload", "verify")}}
                for found in json.loads(body)["objects"]
            ]})  # fmt: skip
        else:
            self.commit(self.path.removeprefix("/api/models/").partition("/commit/")[0], body)

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.address}/{name}"
        if name in self.server.files:
            self.reply({"error": "You already created this model repo", "url": url}, 409)
            return
        self.server.private[name] = asked.get("visibility") == "private"
        self.server.files[name] = {}
        self.reply({"url": url, "name": name, "id": name})

    def commit(self, name: str, body: bytes) -> None:
        files = self.server.files[name]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
        url = f"{self.server.address}/{name}/commit/{SHA}"
        self.reply({"commitUrl": url, "commitOid": SHA})

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def hub(*, large_aside: bool = False) -> Iterator[Hub]:
    with served(Hub(large_aside)) as server:
        yield server
